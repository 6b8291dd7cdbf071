"""A memory whose operations are spans of a trace, by the conventions for GenAI."""

from ai_agent_service.core.context import RunContext
from ai_agent_service.core.messages import Message
from ai_agent_service.core.text import storable
from ai_agent_service.memory.base import Answer, Asked, Memory, RememberedTurn
from ai_agent_service.observability.tracing import AttributeValue, Context, Tracing, here, inside, within


class TracedMemory:
    """`memory`, with a span for each time that it is asked or told something."""

    def __init__(self, memory: Memory, tracing: Tracing) -> None:
        self.required = memory.required
        self._memory = memory
        self._tracing = tracing

    @property
    def problem(self) -> str | None:
        """The memory's."""
        return self._memory.problem

    async def begin(self, context: RunContext, asked: Asked) -> RememberedTurn:
        """Begins a turn; see Memory."""
        attributes = _attributes("search_memory", context.session)
        span = self._tracing.start("search_memory", attributes)
        run = here()
        with self._tracing.ending(span), within(inside(span)):
            turn = await self._memory.begin(context, asked)
            span.set_attribute("gen_ai.memory.record.count", len(turn.messages))
        return _TracedTurn(turn, self._tracing, run, context.session)


class _TracedTurn:
    """A turn whose later operations are told to belong to `run`, for an answer is kept by tasks that outlive it."""

    def __init__(self, turn: RememberedTurn, tracing: Tracing, run: Context, session: str | None) -> None:
        self._turn = turn
        self._tracing = tracing
        self._run = run
        self._session = session

    @property
    def messages(self) -> tuple[Message, ...]:
        """The turn's."""
        return self._turn.messages

    @property
    def answer(self) -> Answer | None:
        """The turn's."""
        return self._turn.answer

    @property
    def under_way(self) -> str | None:
        """The turn's."""
        return self._turn.under_way

    async def shorter(self) -> tuple[Message, ...] | None:
        """The turn's, with the questions to the model that it takes."""
        with within(self._run):
            return await self._turn.shorter()

    async def keep(self, answer: Answer, *, wait: float) -> None:
        """Stores the answer; see RememberedTurn."""
        span = self._tracing.start("upsert_memory", _attributes("upsert_memory", self._session), parent=self._run)
        with self._tracing.ending(span), within(inside(span)):
            await self._turn.keep(answer, wait=wait)


def _attributes(operation: str, session: str | None) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {"gen_ai.operation.name": operation}
    if session is not None:
        attributes["gen_ai.conversation.id"] = storable(session)
    return attributes
