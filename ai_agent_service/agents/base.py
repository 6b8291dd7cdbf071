"""What an agent is: something that takes a turn of a conversation and tells what happens."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, ClassVar

import msgspec

from ai_agent_service.agents.pending_steps import PendingSteps
from ai_agent_service.config.agent_definition import AgentDefinition
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import UpstreamError
from ai_agent_service.core.events import RunEvent
from ai_agent_service.core.messages import Message, ToolChoice, ToolSpec
from ai_agent_service.memory.base import History
from ai_agent_service.providers.base import Provider
from ai_agent_service.tools.dynamic import AvailableTools
from ai_agent_service.tools.toolset import Toolset


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller asks of an agent: the conversation so far, the caller's own tools, and settings
    for this turn.

    `messages` are the caller's, system messages among them; `settings` are OpenAI's request fields
    by their names and win over the agent's. `model` replaces the agent's own. `history` says
    whether `messages` are the whole conversation or only what is new in it; `is_retry` that the
    caller may have asked this before; `message_id` is the caller's own id of the turn. `compact`
    gives the messages with less of the older conversation, for a model that finds them too long.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice | None = None
    settings: Mapping[str, Any] = {}
    model: str | None = None
    history: History = "client"
    is_retry: bool = False
    message_id: str | None = None
    compact: Callable[[], Awaitable[tuple[Message, ...] | None]] | None = None


class AgentParts(msgspec.Struct, frozen=True):
    """What an agent works with; all of it is opened and closed by the service. `version` is that of
    the agent, see `compute_version`."""

    provider: Provider
    tools: AvailableTools
    pending: PendingSteps
    version: str = ""

    @property
    def toolset(self) -> Toolset:
        """The tools that the agent may use now; a run takes this once and keeps to it."""
        return self.tools.get_toolset()


class BaseAgent(ABC):
    """The base of every agent type; `type` is what agent_config.json calls it."""

    type: ClassVar[str]

    def __init__(self, definition: AgentDefinition, parts: AgentParts) -> None:
        self.definition = definition
        self.parts = parts

    @property
    def agent_id(self) -> str:
        """The id that callers know it by, as a model."""
        return self.definition.agent_id

    @property
    def version(self) -> str:
        """A digest of all that was written of it: another one means another agent."""
        return self.parts.version

    async def model(self) -> str:
        """The model that answers unless a turn names another; raises ProviderNotConfiguredError
        when there is none.

        It is empty while the agent's own provider cannot tell it and another can answer.
        """
        return self.definition.model or await self.parts.provider.default_model()

    async def problem(self) -> str | None:
        """What keeps it from answering, in a sentence; None if nothing is known to."""
        if self.parts.provider.missing:
            return (
                f"{' and '.join(self.parts.provider.missing)} must be set for"
                f" {self.parts.provider.name}."
            )
        try:
            await self.model()
        except UpstreamError as error:
            return error.message
        return None

    @abstractmethod
    def run(self, turn: Turn, context: RunContext) -> AsyncGenerator[RunEvent, None]:
        """Takes the turn; the events end with one RunFinished or RunFailed. Closing the generator
        stops the run."""
