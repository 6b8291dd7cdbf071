"""Define the interface of a provider: its requests and the events of its answers."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol, runtime_checkable

import msgspec

from ai_agent_service.config.agent_definition import ApiName
from ai_agent_service.config.settings import Settings
from ai_agent_service.core.events import FinishReason, ReasoningDelta, RefusalDelta, TextDelta
from ai_agent_service.core.messages import Message, ToolCall, ToolChoice, ToolSpec
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.http import HttpClient


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request to a model.

    `settings` are OpenAI's request fields by their names (`temperature`, `max_tokens`,
    `response_format`, ...); a provider drops those that its vendor does not support. `api` is the
    API that the agent wants, for a provider that has several. `deadline` is a reading of
    `time.monotonic()` in seconds. `caller` says whose request it is: the failures of one caller do
    not keep others from the model.
    """

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice | None = None
    settings: Mapping[str, Any] = {}
    api: ApiName = "auto"
    deadline: float
    request_id: str = ""
    caller: str = ""

    @property
    def http_headers(self) -> dict[str, str]:
        """The headers of the HTTP request that sends it as JSON.

        The id goes by the name that OpenAI documents for clients, at most 512 ASCII characters:
        some servers take `X-Request-Id` for theirs and refuse what is not a UUID.
        """
        headers = {"Content-Type": "application/json"}
        request_id = self.request_id
        if request_id and request_id.isascii() and len(request_id) <= 512:
            headers["X-Client-Request-Id"] = request_id
        return headers


class ModelFinished(msgspec.Struct, frozen=True):
    """The last event of an answer: why it ended, its tool calls, and its usage (None: not
    reported).

    `model` and `provider` name what answered, if it is not what was asked.
    """

    reason: FinishReason
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage | None = None
    model: str = ""
    provider: str = ""


ModelEvent = TextDelta | ReasoningDelta | RefusalDelta | ModelFinished


class Provider(Protocol):
    """Answers model requests. Connections belong to the HttpClient that it gets."""

    @property
    def name(self) -> str:
        """The name in `"provider"` of agent_config.json."""
        ...

    @property
    def missing(self) -> tuple[str, ...]:
        """The environment variables without which it cannot be asked."""
        ...

    @property
    def model_list(self) -> tuple[str, ...]:
        """The models a caller may ask for instead of the agent's own."""
        ...

    async def default_model(self) -> str:
        """Return the model of agents that name none; raises ProviderNotConfiguredError without
        one."""
        ...

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """Yield the answer as it comes, ending with exactly one ModelFinished; raises UpstreamError
        or ContextTooLongError.

        Closing the generator ends the upstream request.
        """
        ...


@runtime_checkable
class Pingable(Protocol):
    """A provider whose health can be checked; that of another one is `unknown`."""

    async def ping(self, *, timeout: float) -> None:
        """Return when it answers, within `timeout` seconds and without cost; raises UpstreamError,
        with the code `provider_model_not_found` if it answers but does not know the request."""
        ...


@runtime_checkable
class ApiChooser(Protocol):
    """A provider that can be asked through more than one API."""

    def describe_api(self, model: str, wanted: ApiName) -> str:
        """Return the API through which `model` is asked now, for an agent that wants `wanted`."""
        ...


class ProviderSetup(msgspec.Struct, frozen=True):
    """The input of a provider's factory: the settings, all environment variables (`.env` included),
    and the shared HTTP client."""

    settings: Settings
    environment: Mapping[str, str]
    http: HttpClient


class ProviderFactory(Protocol):
    """A class of providers, as plugins name them."""

    def from_setup(self, setup: ProviderSetup) -> Provider:
        """Return the provider; missing credentials are listed in `missing` and raise nothing."""
        ...
