"""A run: what its agent sees of a conversation, what memory keeps of its answer, its outcome."""

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import ClassVar

import msgspec
import pytest

from ai_agent_service.agents.base import AgentParts, BaseAgent
from ai_agent_service.agents.pending_steps import PendingSteps
from ai_agent_service.config.agent_definition import AgentDefinition
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import (
    InvalidRequestError,
    MemoryUnavailableError,
    ProviderUnavailableError,
    RunTimeoutError,
    ServiceError,
    SessionBusyError,
)
from ai_agent_service.core.events import (
    MemorySkipped,
    RunEvent,
    RunFailed,
    RunFinished,
    StepRecord,
    TextDelta,
    ToolFinished,
    ToolStarted,
)
from ai_agent_service.core.messages import Message, ToolCall, ToolResult
from ai_agent_service.core.tasks import Tasks
from ai_agent_service.core.turn import Turn
from ai_agent_service.core.usage import Usage
from ai_agent_service.memory.base import Memory, RememberedTurn, Step, TurnAnswer
from ai_agent_service.runs.lifecycle import Cancel
from ai_agent_service.runs.live import LiveRuns
from ai_agent_service.runs.run import Run, RunServices
from ai_agent_service.tools.dynamic import AvailableTools
from tests.support.fake_provider import Script, says

QUESTION = Message(role="user", content="6*7?")
CALL, OTHER = ToolCall("c1", "calculate", '{"expression":"6*7"}'), ToolCall("c2", "weather", "{}")
RESULT = ToolResult(call_id="c1", name="calculate", content="42")
AWAY = MemoryUnavailableError("It is away.")


class Kept(Memory, RememberedTurn):
    """A memory of one turn, which keeps what it is given in a list."""

    def __init__(
        self,
        *,
        required: bool = True,
        begin_error: ServiceError | None = None,
        keep_error: ServiceError | None = None,
        gate: asyncio.Event | None = None,
        messages: tuple[Message, ...] = (QUESTION,),
        answer: TurnAnswer | None = None,
        in_progress: str | None = None,
    ) -> None:
        self.required = required
        self.turns: list[Turn] = []
        self.answers: list[TurnAnswer] = []
        self.waits: list[float] = []
        self.keeping = asyncio.Event()
        self._begin_error = begin_error
        self._keep_error = keep_error
        self._gate = gate
        self._messages = messages
        self._answer = answer
        self._under_way = in_progress

    @property
    def problem(self) -> str | None:
        """What keeps it from being used."""
        return None if self._begin_error is None else self._begin_error.message

    @property
    def messages(self) -> tuple[Message, ...]:
        """What the model is to see."""
        return self._messages

    @property
    def answer(self) -> TurnAnswer | None:
        """An earlier answer."""
        return self._answer

    @property
    def in_progress(self) -> str | None:
        """The run to join."""
        return self._under_way

    async def begin(self, context: RunContext, turn: Turn) -> RememberedTurn:
        """Itself."""
        if self._begin_error is not None:
            raise self._begin_error
        self.turns.append(turn)
        return self

    async def compact(self, max_tokens: int) -> tuple[Message, ...] | None:
        """The question alone."""
        return (QUESTION,)

    async def keep(self, answer: TurnAnswer, *, wait: float) -> None:
        """Keeps it once the gate is open."""
        self.keeping.set()
        self.waits.append(wait)
        if self._gate is not None:
            await self._gate.wait()
        if self._keep_error is not None:
            raise self._keep_error
        self.answers.append(answer)


class Telling(BaseAgent):
    """An agent that tells prepared events; an asyncio.Event among them is waited for."""

    type: ClassVar[str] = "telling"

    def __init__(
        self, *events: RunEvent | asyncio.Event | Exception, memory: Memory | None = None
    ) -> None:
        definition = AgentDefinition.model_validate(
            {"agent_id": "helper", "system_prompt": "You help."}
        )
        super().__init__(
            definition,
            AgentParts(
                Script(says("-")),
                AvailableTools([], [], default_timeout=5),
                PendingSteps(),
                memory=memory,
            ),
        )
        self.events = events
        self.turns: list[Turn] = []
        self.waiting = asyncio.Event()
        self.closed = False

    async def run(self, turn: Turn, context: RunContext) -> AsyncGenerator[RunEvent, None]:
        """The events."""
        self.turns.append(turn)
        try:
            for event in self.events:
                if isinstance(event, asyncio.Event):
                    self.waiting.set()
                    await event.wait()
                elif isinstance(event, Exception):
                    raise event
                else:
                    yield event
        finally:
            self.closed = True


def finished(*steps: StepRecord, calls: tuple[ToolCall, ...] = ()) -> RunFinished:
    return RunFinished("tool_calls" if calls else "stop", Usage(10, 2), steps, calls)


ANSWERED = (TextDelta("It is "), TextDelta("42."), finished(StepRecord((), Usage(10, 2))))


def context(session: str | None = "s", run_id: str = "run_1", seconds: float = 20) -> RunContext:
    return RunContext(
        run_id=run_id, agent_id="helper", deadline=time.monotonic() + seconds, session=session
    )


async def collect(
    agent: BaseAgent,
    services: RunServices,
    turn: Turn | None = None,
    within: RunContext | None = None,
) -> list[RunEvent]:
    """Drive a run, and return all its events."""
    events: list[RunEvent] = []

    async def emit(event: RunEvent) -> None:
        events.append(event)

    run = Run(agent, turn or Turn(messages=(QUESTION,)), within or context(), services)
    async with asyncio.timeout(20):
        end = await run.drive(emit)
    assert end is events[-1] is run.record.end
    assert run.record.events == events
    return events


async def remembered(
    agent: BaseAgent, turn: Turn | None = None, within: RunContext | None = None
) -> list[RunEvent]:
    """All events of a run, once what it stores is stored."""
    async with Tasks() as tasks:
        return await collect(agent, RunServices(LiveRuns(), tasks), turn, within)


# A turn


async def test_the_events_are_the_agents_and_the_answer_is_kept() -> None:
    memory = Kept()
    assert await remembered(Telling(*ANSWERED, memory=memory)) == list(ANSWERED)
    assert memory.answers == [TurnAnswer(text="It is 42.", last="It is 42.", usage=Usage(10, 2))]


async def test_the_agent_is_told_what_the_memory_knows() -> None:
    known = (
        Message(role="user", content="Hello"),
        Message(role="assistant", content="Hi"),
        QUESTION,
    )
    memory = Kept(messages=known)
    agent = Telling(*ANSWERED, memory=memory)
    await remembered(
        agent,
        Turn(
            messages=(QUESTION,),
            history="server",
            is_retry=True,
            message_id="m",
            settings={"seed": 1},
        ),
    )
    (asked,) = memory.turns
    assert (asked.messages, asked.history) == ((QUESTION,), "server")
    assert (asked.is_retry, asked.message_id) == (True, "m")
    (turn,) = agent.turns
    assert (turn.messages, turn.settings) == (known, {"seed": 1})
    assert turn.compact is not None
    assert await turn.compact(100) == (QUESTION,)


async def test_the_last_event_comes_once_the_answer_is_kept() -> None:
    gate = asyncio.Event()
    memory = Kept(gate=gate)
    agent = Telling(*ANSWERED, memory=memory)
    async with asyncio.timeout(20), Tasks() as tasks:
        run = Run(agent, Turn(messages=(QUESTION,)), context(), RunServices(LiveRuns(), tasks))
        driving = asyncio.create_task(run.drive())
        await memory.keeping.wait()
        assert run.record.events == list(ANSWERED[:-1])
        gate.set()
        await driving
    assert run.record.events == list(ANSWERED)


async def test_a_run_without_a_session_is_the_agents_own() -> None:
    memory = Kept()
    agent = Telling(*ANSWERED, memory=memory)
    assert await remembered(agent, within=context(session=None)) == list(ANSWERED)
    assert (memory.turns, memory.answers) == ([], [])


async def test_a_failed_run_is_kept_as_incomplete_with_its_error() -> None:
    memory = Kept()
    failed = RunFailed(ProviderUnavailableError("It is down."), Usage(5, 1))
    assert await remembered(Telling(TextDelta("It is"), failed, memory=memory)) == [
        TextDelta("It is"),
        failed,
    ]
    assert memory.answers == [
        TurnAnswer(
            text="It is",
            last="It is",
            status="incomplete",
            usage=Usage(5, 1),
            error="provider_unavailable",
        ),
    ]


async def test_an_agent_that_crashes_is_kept_as_incomplete() -> None:
    memory = Kept()
    with pytest.raises(ZeroDivisionError):
        await remembered(Telling(TextDelta("It is"), ZeroDivisionError(), memory=memory))
    assert [(answer.text, answer.status) for answer in memory.answers] == [("It is", "incomplete")]


async def test_an_agent_that_ends_without_an_end_is_kept_as_incomplete() -> None:
    memory = Kept()
    with pytest.raises(RuntimeError):
        await remembered(Telling(TextDelta("It is"), memory=memory))
    assert [(answer.text, answer.status) for answer in memory.answers] == [("It is", "incomplete")]


# A memory that cannot be used


async def test_a_memory_that_is_needed_and_away_fails_the_run() -> None:
    agent = Telling(*ANSWERED, memory=Kept(begin_error=AWAY))
    assert await remembered(agent) == [RunFailed(AWAY)]
    assert agent.turns == []


async def test_a_memory_that_is_not_needed_and_away_is_done_without() -> None:
    agent = Telling(*ANSWERED, memory=Kept(begin_error=AWAY, required=False))
    assert await remembered(agent) == [
        MemorySkipped("It is away."),
        *ANSWERED,
    ]
    assert agent.turns == [Turn(messages=(QUESTION,))]


@pytest.mark.parametrize("required", [True, False])
async def test_a_session_that_is_busy_fails_the_run(required: bool) -> None:
    busy = SessionBusyError("Wait.")
    agent = Telling(*ANSWERED, memory=Kept(begin_error=busy, required=required))
    assert await remembered(agent) == [RunFailed(busy)]


async def test_an_answer_that_cannot_be_kept_is_not_told_as_finished() -> None:
    events = await remembered(Telling(*ANSWERED, memory=Kept(keep_error=AWAY)))
    assert events == [
        *ANSWERED[:-1],
        RunFailed(AWAY, Usage(10, 2), (StepRecord((), Usage(10, 2)),)),
    ]


async def test_an_answer_that_cannot_be_kept_is_finished_where_memory_is_not_needed() -> None:
    agent = Telling(*ANSWERED, memory=Kept(keep_error=AWAY, required=False))
    assert await remembered(agent) == list(ANSWERED)


async def test_the_error_of_a_failed_run_wins_over_one_of_the_memory() -> None:
    failed = RunFailed(ProviderUnavailableError("It is down."))
    assert await remembered(Telling(failed, memory=Kept(keep_error=AWAY))) == [failed]


async def test_a_memory_that_is_away_is_waited_for_until_the_deadline() -> None:
    memory = Kept()
    await remembered(Telling(*ANSWERED, memory=memory), within=context(seconds=20))
    await remembered(Telling(*ANSWERED, memory=memory), within=context(seconds=-0.2))
    assert 10 < memory.waits[0] <= 20
    assert memory.waits[1] == 1.0


async def test_an_agent_with_a_needed_memory_that_is_away_has_a_problem() -> None:
    assert await Telling(memory=Kept(begin_error=AWAY)).find_problem() == "It is away."
    not_needed = Kept(begin_error=AWAY, required=False)
    assert await Telling(memory=not_needed).find_problem() is None
    assert await Telling(memory=Kept()).find_problem() is None
    assert await Telling().find_problem() is None


async def test_a_result_of_no_call_is_refused_before_anything_is_kept() -> None:
    memory = Kept()
    stray = Message(role="tool", content="42", tool_call_id="c1")
    agent = Telling(*ANSWERED, memory=memory)
    (event,) = await remembered(agent, Turn(messages=(QUESTION, stray)))
    assert isinstance(event, RunFailed)
    assert isinstance(event.error, InvalidRequestError)
    assert memory.turns == []


# A caller who leaves


async def test_what_was_told_before_the_caller_left_is_kept() -> None:
    memory = Kept()
    agent = Telling(TextDelta("It is"), asyncio.Event(), memory=memory)
    async with asyncio.timeout(20), Tasks() as tasks:
        listening = asyncio.create_task(collect(agent, RunServices(LiveRuns(), tasks)))
        await agent.waiting.wait()
        listening.cancel()
        await asyncio.wait((listening,))
    assert agent.closed
    assert [(answer.text, answer.status) for answer in memory.answers] == [("It is", "incomplete")]


@pytest.mark.parametrize(
    "last",
    [ANSWERED[-1], RunFailed(ProviderUnavailableError("It is down."))],
    ids=["finished", "failed"],
)
async def test_an_answer_is_kept_though_the_caller_leaves_meanwhile(last: RunEvent) -> None:
    gate = asyncio.Event()
    memory = Kept(gate=gate)
    async with asyncio.timeout(20), Tasks() as tasks:
        agent = Telling(TextDelta("It is 42."), last, memory=memory)
        listening = asyncio.create_task(collect(agent, RunServices(LiveRuns(), tasks)))
        await memory.keeping.wait()
        listening.cancel()
        await asyncio.wait((listening,))
        assert listening.cancelled()
        gate.set()
    status = "complete" if isinstance(last, RunFinished) else "incomplete"
    assert [(answer.text, answer.status) for answer in memory.answers] == [("It is 42.", status)]


async def test_what_is_interrupted_is_kept_though_the_caller_is_cancelled_again() -> None:
    gate = asyncio.Event()
    memory = Kept(gate=gate)
    agent = Telling(TextDelta("It is"), asyncio.Event(), memory=memory)
    async with asyncio.timeout(20), Tasks() as tasks:
        listening = asyncio.create_task(collect(agent, RunServices(LiveRuns(), tasks)))
        await agent.waiting.wait()
        listening.cancel()
        await memory.keeping.wait()
        listening.cancel()
        await asyncio.wait((listening,))
        gate.set()
    assert [(answer.text, answer.status) for answer in memory.answers] == [("It is", "incomplete")]


# A request that repeats another one


async def test_an_earlier_answer_is_told_again_and_the_agent_is_not_asked() -> None:
    answer = TurnAnswer(
        text="Well. It is 42.",
        steps=(Step("Well. ", (CALL,), (RESULT,)),),
        last="It is 42.",
        reason="length",
        usage=Usage(1, 2),
    )
    agent = Telling(*ANSWERED, memory=Kept(answer=answer))
    assert await remembered(agent) == [
        TextDelta("Well. "),
        ToolStarted(CALL, 1),
        ToolFinished(RESULT),
        TextDelta("It is 42."),
        RunFinished("length", Usage(1, 2), is_repeated=True),
    ]
    assert agent.turns == []


async def test_an_earlier_answer_without_tools_is_told_again() -> None:
    assert await remembered(Telling(memory=Kept(answer=TurnAnswer(text="It is 42.")))) == [
        TextDelta("It is 42."),
        RunFinished("stop", None, is_repeated=True),
    ]


async def test_a_run_that_is_under_way_is_joined_from_its_beginning() -> None:
    gate = asyncio.Event()
    first_agent = Telling(ANSWERED[0], gate, *ANSWERED[1:], memory=Kept())
    second_agent = Telling(memory=Kept(in_progress="run_1"))
    live, turn, joined = LiveRuns(), Turn(messages=(QUESTION,)), asyncio.Event()

    async def emit(event: RunEvent) -> None:
        joined.set()

    async with asyncio.timeout(20), Tasks() as tasks:
        services = RunServices(live, tasks)
        first = asyncio.create_task(collect(first_agent, services, within=context(run_id="run_1")))
        await first_agent.waiting.wait()
        second = Run(second_agent, turn, context(run_id="run_2"), services)
        joining = asyncio.create_task(second.drive(emit))
        await joined.wait()
        assert second.record.events == [ANSWERED[0]]
        gate.set()
        assert await joining == msgspec.structs.replace(ANSWERED[2], is_repeated=True)
        assert second.record.events[:-1] == [ANSWERED[0], ANSWERED[1]]
        assert await first == list(ANSWERED)
    assert second_agent.turns == []
    assert live.find("run_1") is None


async def test_a_run_that_is_not_under_way_any_more_is_told_as_interrupted() -> None:
    (event,) = await remembered(Telling(memory=Kept(in_progress="run_gone")))
    assert isinstance(event, RunFailed)
    assert isinstance(event.error, SessionBusyError)


# The outcome


async def test_a_run_that_ends_has_the_outcome_answered() -> None:
    async with Tasks() as tasks:
        run = Run(
            Telling(*ANSWERED),
            Turn(messages=(QUESTION,)),
            context(),
            RunServices(LiveRuns(), tasks),
        )
        await run.drive()
    run.apply(Cancel("left"))
    assert (run.lifecycle.state, run.lifecycle.outcome) == ("completed", "answered")


async def test_a_run_past_its_deadline_is_stopped() -> None:
    agent = Telling(TextDelta("It is"), asyncio.Event())
    with pytest.raises(RunTimeoutError):
        await remembered(agent, within=context(seconds=-0.9))
    assert agent.closed


async def test_a_timeout_of_the_agents_own_is_not_that_of_the_run() -> None:
    with pytest.raises(TimeoutError, match="mine"):
        await remembered(Telling(TimeoutError("mine")))


async def test_what_a_surface_raises_ends_the_run() -> None:
    memory = Kept()
    agent = Telling(*ANSWERED, memory=memory)

    async def emit(event: RunEvent) -> None:
        raise BrokenPipeError

    async with asyncio.timeout(20), Tasks() as tasks:
        run = Run(agent, Turn(messages=(QUESTION,)), context(), RunServices(LiveRuns(), tasks))
        with pytest.raises(BrokenPipeError):
            await run.drive(emit)
    assert agent.closed
    assert [(answer.text, answer.status) for answer in memory.answers] == [("It is ", "incomplete")]


@pytest.mark.parametrize("last", [ANSWERED[-1], ValueError("mine")], ids=["finished", "crashed"])
async def test_a_result_without_a_call_costs_that_result_only(last: RunEvent | Exception) -> None:
    memory = Kept()
    agent = Telling(
        TextDelta("It is "), ToolFinished(RESULT), TextDelta("42."), last, memory=memory
    )
    if isinstance(last, Exception):
        with pytest.raises(ValueError, match="mine"):
            await remembered(agent)
    else:
        assert (await remembered(agent))[-1] == last
    (answer,) = memory.answers
    assert (answer.text, answer.steps) == ("It is 42.", ())
    assert answer.status == ("incomplete" if isinstance(last, Exception) else "complete")


async def test_a_run_is_answered_once_its_last_event_is_delivered() -> None:
    class Careless(Telling):
        async def run(self, turn: Turn, context: RunContext) -> AsyncGenerator[RunEvent, None]:
            try:
                yield ANSWERED[-1]
            finally:
                raise ValueError("too late")

    async with Tasks() as tasks:
        turn, services = Turn(messages=(QUESTION,)), RunServices(LiveRuns(), tasks)
        run = Run(Careless(), turn, context(), services)
        with pytest.raises(ValueError, match="too late"):
            await run.drive()
    assert run.lifecycle.outcome == "answered"
