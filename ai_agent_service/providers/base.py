"""What a provider is, what it is asked and what it answers."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol, runtime_checkable

import msgspec

from ai_agent_service.config.settings import Settings
from ai_agent_service.core.events import FinishReason, ReasoningDelta, RefusalDelta, TextDelta
from ai_agent_service.core.messages import Message, ToolCall, ToolChoice, ToolSpec
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.http import HttpClient


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One question to a model.

    `settings` are OpenAI's request fields by their names (`temperature`, `max_tokens`,
    `response_format`, ...); a provider drops what its vendor cannot do. `deadline` is a reading of
    `time.monotonic()` in seconds.
    """

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice | None = None
    settings: Mapping[str, Any] = {}
    deadline: float
    request_id: str = ""

    @property
    def http_headers(self) -> dict[str, str]:
        """The headers of the HTTP request that sends it as JSON."""
        headers = {"Content-Type": "application/json"}
        return {**headers, "X-Request-Id": self.request_id} if self.request_id else headers


class ModelFinished(msgspec.Struct, frozen=True):
    """The last event of an answer: why it ended, the calls it asks for, what it took (None: not
    reported).

    `reasoning` is what the provider wants back as `Message.reasoning`, for some refuse the results
    of a thinking model's calls without. `model` and `provider` name what answered where it is
    another than was asked.
    """

    reason: FinishReason
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage | None = None
    reasoning: str = ""
    model: str = ""
    provider: str = ""


ModelEvent = TextDelta | ReasoningDelta | RefusalDelta | ModelFinished


class Provider(Protocol):
    """Answers model requests. Holds no connection of its own: those belong to the HttpClient it is
    given."""

    @property
    def name(self) -> str:
        """What `"provider"` in agent_config.json calls it."""
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
        """The model of agents that name none; raises ProviderNotConfiguredError when there is
        none."""
        ...

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """The answer as it comes, ending with exactly one ModelFinished; raises UpstreamError or
        ContextTooLongError.

        Closing the generator ends the upstream request.
        """
        ...


@runtime_checkable
class Pingable(Protocol):
    """A provider that can be asked whether it is there; health says `unknown` of one that
    cannot."""

    async def ping(self, *, timeout: float) -> None:
        """Returns when it answers, within `timeout` seconds and without cost; raises UpstreamError,
        `provider_model_not_found` where it is there and does not know the question."""
        ...


class ProviderSetup(msgspec.Struct, frozen=True):
    """What a provider is made from: the settings, all environment variables (`.env` included), and
    the shared HTTP client."""

    settings: Settings
    environment: Mapping[str, str]
    http: HttpClient


class ProviderFactory(Protocol):
    """A class of providers, as plugins name them."""

    def from_setup(self, setup: ProviderSetup) -> Provider:
        """Makes the provider; missing credentials show in `missing` and raise nothing."""
        ...
