"""The base of agents: an agent takes a turn of a conversation and yields run events."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from typing import ClassVar

import msgspec

from ai_agent_service.agents.pending_steps import PendingSteps
from ai_agent_service.config.agent_definition import AgentDefinition
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import UpstreamError
from ai_agent_service.core.events import RunEvent
from ai_agent_service.core.turn import Turn
from ai_agent_service.memory.base import Memory
from ai_agent_service.memory.windows import ContextWindows
from ai_agent_service.providers.base import Provider
from ai_agent_service.tools.dynamic import AvailableTools
from ai_agent_service.tools.toolset import Toolset


class AgentParts(msgspec.Struct, frozen=True):
    """What an agent works with; the service opens and closes all of it.

    `version` is that of the agent, see `compute_version`. `memory` is the run's business: an agent
    gets the conversation that its memory knows in the turn's messages. `windows` is what the
    process knows of the models' context windows. `max_characters` bounds a run's text and
    reasoning.
    """

    provider: Provider
    tools: AvailableTools
    pending: PendingSteps
    version: str = ""
    memory: Memory | None = None
    windows: ContextWindows = msgspec.field(default_factory=ContextWindows)
    max_characters: int = 1_000_000

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

    async def find_problem(self) -> str | None:
        """Return `problem`, or that of a memory without which the agent does not answer."""
        memory = self.parts.memory
        return await self.problem() or (memory.problem if memory and memory.required else None)

    @abstractmethod
    def run(self, turn: Turn, context: RunContext) -> AsyncGenerator[RunEvent, None]:
        """Takes the turn; the events end with one RunFinished or RunFailed. Closing the generator
        stops the run."""
