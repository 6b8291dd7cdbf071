"""Ask OpenAI, or any server that speaks its chat completions or its Responses API."""

from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import ClassVar, Self

import msgspec
from pydantic import SecretStr

from ai_agent_service.config.addresses import (
    build_address_hint,
    is_azure,
    is_openai,
    join_path,
)
from ai_agent_service.config.agent_definition import ApiName
from ai_agent_service.core.errors import ProviderNotConfiguredError, ServiceError
from ai_agent_service.providers import chat_wire, responses_wire
from ai_agent_service.providers.api_choice import Api, ApiChoice, describe_api
from ai_agent_service.providers.base import ModelEvent, ModelRequest, ProviderSetup
from ai_agent_service.providers.chat_wire import Profile
from ai_agent_service.providers.http import HttpClient
from ai_agent_service.providers.http_errors import HttpTarget
from ai_agent_service.providers.responses_request import (
    Omission,
    ResponsesState,
    find_refused_part,
)
from ai_agent_service.providers.wire import Exchange, stream_answer

OPENAI_URL = "https://api.openai.com/v1"


class OpenAICompatible:
    """A provider on OpenAI's APIs; a vendor is a subclass that says how it differs."""

    name: ClassVar[str] = "openai"
    profile: ClassVar[Profile] = Profile()
    has_responses: ClassVar[bool] = True
    """Whether agents may ask it through the Responses API."""

    def __init__(
        self,
        http: HttpClient,
        *,
        base_url: str,
        api_key: SecretStr | str | None = None,
        default_model: str | None = None,
        default_model_variable: str = "",
        address_hint: str = "",
        model_list: tuple[str, ...] = (),
        missing: tuple[str, ...] = (),
    ) -> None:
        self.http = http
        self.base_url = base_url.rstrip("/")
        secret = api_key.get_secret_value() if isinstance(api_key, SecretStr) else api_key or ""
        self.api_key = secret.strip()  # a file's last newline would make the header invalid
        self.address_hint = address_hint
        self.wire_profile = self.profile
        if is_openai(base_url) or is_azure(base_url):
            self.wire_profile = msgspec.structs.replace(self.profile, null_content=True)
        self.model_list = model_list
        self.missing = missing
        self._default_model = default_model
        self._default_model_variable = default_model_variable
        self._choice: ApiChoice | None = None
        self._state = ResponsesState()

    @classmethod
    def from_setup(cls, setup: ProviderSetup) -> Self:
        """Return OpenAI, or the server at OPENAI_BASE_URL, which may need no key."""
        settings = setup.settings
        is_configured = settings.openai_api_key or settings.openai_base_url
        return cls(
            setup.http,
            base_url=settings.openai_base_url or OPENAI_URL,
            api_key=settings.openai_api_key,
            default_model=settings.openai_default_model,
            default_model_variable="OPENAI_DEFAULT_MODEL",
            address_hint=build_address_hint("OPENAI_BASE_URL", settings.openai_base_url),
            model_list=settings.openai_model_list,
            missing=() if is_configured else ("OPENAI_API_KEY",),
        )

    async def default_model(self) -> str:
        """Return the configured default; raises ProviderNotConfiguredError that names the
        variable."""
        if not self._default_model:
            variable = self._default_model_variable
            remedy = f'give it a "model", or set {variable}' if variable else 'give it a "model"'
            raise ProviderNotConfiguredError(f"The agent names no model for {self.name}: {remedy}.")
        return self._default_model

    def url(self, model: str) -> str:
        """Return the address of requests for `model`."""
        return join_path(self.base_url, "/chat/completions")

    def responses_url(self) -> str:
        """Return the address of the Responses API."""
        return join_path(self.base_url, "/responses")

    def default_api(self) -> Api:
        """Return the API for agents that leave the choice to the service."""
        is_vendor = is_openai(self.base_url) or is_azure(self.base_url)
        return "responses" if self.has_responses and is_vendor else "chat_completions"

    def describe_api(self, model: str, wanted: ApiName) -> str:
        """See ApiChooser."""
        return (
            describe_api(self.choice, model, wanted) if self.has_responses else "chat_completions"
        )

    @property
    def choice(self) -> ApiChoice:
        """The API of each model."""
        if self._choice is None:
            self._choice = ApiChoice(self.name, self.default_api())
        return self._choice

    def headers(self) -> Mapping[str, str]:
        """Return the headers that authenticate a request."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def ping_url(self) -> str:
        """Return the address that shows whether the server accepts the key: the list of models,
        which costs nothing."""
        return join_path(self.base_url, "/models")

    async def ping(self, *, timeout: float) -> None:
        """See Pingable."""
        headers = {"Accept": "application/json", **self.headers()}
        target = self._build_target(self.ping_url(), headers)
        await self.http.probe(target, timeout=timeout)

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """Yield the answer as it comes; see Provider."""
        api = self.choice.select(request.model, request.api)
        return stream_answer(self.http, request, self._build_exchange(request, api))

    def _build_exchange(
        self, request: ModelRequest, api: Api, tried: frozenset[Omission | Api] = frozenset()
    ) -> Exchange:
        """Return the request to `api`, which is repeated without what the server refuses."""
        url = self.responses_url() if api == "responses" else self.url(request.model)
        headers = {**request.http_headers, "Accept": "text/event-stream", **self.headers()}
        target = self._build_target(url, headers, request.model)
        recover = partial(self._recover, request, api, tried)
        if api == "responses":
            return responses_wire.build_exchange(target, request, self._state, recover)
        return chat_wire.build_exchange(target, request, self.wire_profile, recover)

    def _recover(
        self, request: ModelRequest, api: Api, tried: frozenset[Omission | Api], error: ServiceError
    ) -> Exchange | None:
        """Return what to send after `error`: the request without the part that it refuses, or to
        the other API."""
        part = find_refused_part(error, request) if api == "responses" else None
        if part is not None and part not in tried:
            self._state.omit(part, request)
            return self._build_exchange(request, api, tried | {part})
        if request.api != "auto" or not self.has_responses:
            return None
        other = self.choice.switch(request.model, api, error)
        if other is None:
            return None
        if other in tried:
            self.choice.restore(request.model)
            return None
        return self._build_exchange(request, other, tried | {api})

    def _build_target(self, url: str, headers: Mapping[str, str], model: str = "") -> HttpTarget:
        return HttpTarget(self.name, url, headers, (self.api_key,), model, self.address_hint)
