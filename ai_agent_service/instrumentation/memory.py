"""Trace the operations of a memory, by the conventions for GenAI."""

from ai_agent_service.core.context import RunContext
from ai_agent_service.core.messages import Message
from ai_agent_service.core.text import replace_unstorable
from ai_agent_service.core.turn import Turn
from ai_agent_service.memory.base import Memory, RememberedTurn, TurnAnswer
from ai_agent_service.observability.tracing import (
    AttributeValue,
    Context,
    Tracing,
    get_context,
    use_context,
)


class TracedMemory:
    """`memory`, with a span for each operation."""

    def __init__(self, memory: Memory, tracing: Tracing) -> None:
        self.required = memory.required
        self._memory = memory
        self._tracing = tracing

    @property
    def problem(self) -> str | None:
        """The memory's."""
        return self._memory.problem

    async def begin(self, context: RunContext, turn: Turn) -> RememberedTurn:
        """Begin a turn; see Memory."""
        run = get_context()
        attributes = _build_attributes("search_memory", context.session)
        with self._tracing.open_span("search_memory", attributes) as span:
            begun = await self._memory.begin(context, turn)
            span.set_attribute("gen_ai.memory.record.count", len(begun.messages))
        return _TracedTurn(begun, self._tracing, run, context.session)


class _TracedTurn:
    """A turn whose later operations are traced in the context `run`, since tasks that outlive the
    run store its answer."""

    def __init__(
        self, turn: RememberedTurn, tracing: Tracing, run: Context, session: str | None
    ) -> None:
        self._turn = turn
        self._tracing = tracing
        self._run = run
        self._session = session

    @property
    def messages(self) -> tuple[Message, ...]:
        """The turn's."""
        return self._turn.messages

    @property
    def answer(self) -> TurnAnswer | None:
        """The turn's."""
        return self._turn.answer

    @property
    def in_progress(self) -> str | None:
        """The turn's."""
        return self._turn.in_progress

    async def compact(self, max_tokens: int) -> tuple[Message, ...] | None:
        """Shorten the turn, with spans of the model that makes the summary."""
        with use_context(self._run):
            return await self._turn.compact(max_tokens)

    async def keep(self, answer: TurnAnswer, *, wait: float) -> None:
        """Store the answer; see RememberedTurn."""
        attributes = _build_attributes("upsert_memory", self._session)
        with self._tracing.open_span("upsert_memory", attributes, parent=self._run):
            await self._turn.keep(answer, wait=wait)


def _build_attributes(operation: str, session: str | None) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {"gen_ai.operation.name": operation}
    if session is not None:
        attributes["gen_ai.conversation.id"] = replace_unstorable(session)
    return attributes
