"""What a memory is to the agents: it knows a turn's conversation at its start, and keeps its answer
at its end."""

from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Literal, Protocol

import msgspec

from ai_agent_service.config.agent_definition import AgentDefinition
from ai_agent_service.config.settings import Settings
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.events import FinishReason
from ai_agent_service.core.messages import (
    UNKNOWN_RESULT,
    Content,
    Message,
    ToolCall,
    ToolResult,
    build_tool_message,
)
from ai_agent_service.core.turn import Turn
from ai_agent_service.core.usage import Usage

Status = Literal["complete", "incomplete"]
Origin = Literal["ours", "client"]


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the model said and called in one step of a turn, and one result for each call."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    results: tuple[ToolResult, ...] = ()

    @property
    def messages(self) -> tuple[Message, ...]:
        """The step as a model is told of it."""
        given = {result.call_id: result for result in self.results}
        unknown = (
            ToolResult(call_id=call.id, name=call.name, content=UNKNOWN_RESULT, is_error=True)
            for call in self.calls
        )
        results = (build_tool_message(given.get(result.call_id, result)) for result in unknown)
        return (Message(role="assistant", content=self.text, tool_calls=self.calls), *results)


class TurnAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a turn: `text` is all that was said, `steps` those with tool calls; `last` is
    what was said after them."""

    text: str
    steps: tuple[Step, ...] = ()
    last: str = ""
    status: Status = "complete"
    reason: FinishReason = "stop"
    usage: Usage | None = None
    error: str | None = None
    """The code of the error that ended an incomplete answer."""


class RememberedTurn(Protocol):
    """A turn that was begun: its question is stored."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """What the model is to see: the caller's system messages, a summary as another one, then
        the conversation."""
        ...

    @property
    def answer(self) -> TurnAnswer | None:
        """The complete answer that an earlier, equal turn was given; it is told again and nothing
        is run."""
        ...

    @property
    def in_progress(self) -> str | None:
        """The run id of an equal turn that this process is taking now; it is joined and nothing is
        run."""
        ...

    async def compact(self, max_tokens: int) -> tuple[Message, ...] | None:
        """As `messages`, the older ones summarised so that about `max_tokens` are left, for a model
        that found them too long; None if that cannot be done."""
        ...

    async def keep(self, answer: TurnAnswer, *, wait: float) -> None:
        """Stores the answer; a database that is away is waited for `wait` seconds. Raises
        MemoryUnavailableError."""
        ...


class ConversationInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A session of a user with an agent."""

    session_id: str
    created_at: datetime
    updated_at: datetime
    messages: int
    """How many messages are stored, those of all branches."""


class StoredMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message as it is stored; `id` and `parent` are hexadecimal, `parent` is None for the first
    message of a session."""

    id: str
    parent: str | None
    role: Literal["user", "assistant"]
    content: Content
    status: Status
    origin: Origin
    created_at: datetime
    steps: tuple[Step, ...] = ()
    run_id: str | None = None
    usage: Usage | None = None


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """A session with its messages: those of the newest branch, oldest first, or of all branches,
    parents first."""

    agent_id: str
    session_id: str
    created_at: datetime
    updated_at: datetime
    messages: tuple[StoredMessage, ...]


class ErasureCounts(msgspec.Struct, frozen=True):
    """How much was permanently deleted."""

    sessions: int = 0
    messages: int = 0
    runs: int = 0
    summaries: int = 0

    def __add__(self, other: "ErasureCounts") -> "ErasureCounts":
        return ErasureCounts(
            self.sessions + other.sessions,
            self.messages + other.messages,
            self.runs + other.runs,
            self.summaries + other.summaries,
        )


class Memory(Protocol):
    """The memory of one agent."""

    required: bool
    """Whether a turn fails when the memory cannot be used; else it is taken without."""

    @property
    def problem(self) -> str | None:
        """What keeps it from being used now, in a sentence for callers; None if nothing is known
        to."""
        ...

    async def begin(self, context: RunContext, turn: Turn) -> RememberedTurn:
        """Stores the question of a turn of `context.session` and finds what belongs to it.

        Raises MemoryUnavailableError, SessionBusyError where another turn of the session has to end
        first, and IdempotencyMismatchError where something else was asked in the session under a
        `message_id` that begins with IDEMPOTENCY_PREFIX.
        """
        ...


class MemorySetup(msgspec.Struct, frozen=True):
    """What a memory backend is opened with: the settings, all environment variables (`.env`
    included), and the agent it is for."""

    settings: Settings
    environment: Mapping[str, str]
    agent: AgentDefinition


class MemoryFactory(Protocol):
    """A class of memories, as plug-ins name them; `name` is what `resource_config.memory.backend`
    calls it."""

    name: str

    def open(self, setup: MemorySetup) -> AbstractAsyncContextManager[Memory]:
        """The memory of one agent, which is closed when the service ends. A class gives it as a
        class method."""
        ...


class Conversations(Protocol):
    """Everything that is remembered, of all agents, by whose it is."""

    async def list(
        self, tenant: str, user: str, agent_id: str, *, limit: int, after: str | None = None
    ) -> tuple[tuple[ConversationInfo, ...], str | None]:
        """At most `limit` sessions, the one used last first, and the `after` that goes on from
        there; None at the end.

        Raises InvalidRequestError for an `after` that is none, and MemoryUnavailableError.
        """
        ...

    async def get(
        self, tenant: str, user: str, agent_id: str, session_id: str, *, branches: bool = False
    ) -> Conversation:
        """The session with the messages of its newest branch, or of all; raises NotFoundError and
        MemoryUnavailableError."""
        ...

    async def delete(self, tenant: str, user: str, agent_id: str, session_id: str) -> ErasureCounts:
        """Delete the session permanently; raises NotFoundError and MemoryUnavailableError."""
        ...

    async def erase(
        self, tenant: str, user: str, *, agents: Collection[str] | None = None
    ) -> ErasureCounts:
        """Deletes everything of the user, with all agents or with those named, in one transaction;
        raises MemoryUnavailableError."""
        ...

    def export(
        self, tenant: str, user: str, *, agents: Collection[str] | None = None
    ) -> AsyncGenerator[Conversation, None]:
        """Everything of the user, with all agents or with those named, session by session, all
        branches; raises MemoryUnavailableError."""
        ...
