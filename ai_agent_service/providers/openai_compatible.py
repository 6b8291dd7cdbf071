"""Ask OpenAI, or any server that speaks its chat completions."""

from collections.abc import AsyncGenerator, Mapping
from typing import ClassVar, Self

import msgspec
from pydantic import SecretStr

from ai_agent_service.config.addresses import (
    build_address_hint,
    is_azure,
    is_openai,
    join_path,
)
from ai_agent_service.core.errors import ProviderNotConfiguredError
from ai_agent_service.providers import chat_wire
from ai_agent_service.providers.base import ModelEvent, ModelRequest, ProviderSetup
from ai_agent_service.providers.chat_wire import Profile
from ai_agent_service.providers.http import HttpClient
from ai_agent_service.providers.http_errors import HttpTarget

OPENAI_URL = "https://api.openai.com/v1"


class OpenAICompatible:
    """A provider on the chat completions wire; a vendor is a subclass that says how it differs."""

    name: ClassVar[str] = "openai"
    profile: ClassVar[Profile] = Profile()

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
        headers = {**request.http_headers, "Accept": "text/event-stream", **self.headers()}
        target = self._build_target(self.url(request.model), headers, request.model)
        return chat_wire.stream(self.http, target, request, self.wire_profile)

    def _build_target(self, url: str, headers: Mapping[str, str], model: str = "") -> HttpTarget:
        return HttpTarget(self.name, url, headers, (self.api_key,), model, self.address_hint)
