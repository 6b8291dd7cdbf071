"""An agent with a memory: what it is told of a conversation, and what is kept of its answer."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import ClassVar

import msgspec
import pytest

from ai_agent_service.agents.base import AgentParts, BaseAgent, Turn
from ai_agent_service.agents.pending_steps import PendingSteps
from ai_agent_service.config.agent_definition import AgentDefinition
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import (
    InvalidRequestError,
    MemoryUnavailableError,
    ProviderUnavailableError,
    ServiceError,
    SessionBusyError,
)
from ai_agent_service.core.events import (
    MemorySkipped,
    RefusalDelta,
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
from ai_agent_service.core.usage import Usage
from ai_agent_service.memory.base import Memory, RememberedTurn, Step, TurnAnswer, TurnQuestion
from ai_agent_service.runs.live import LiveRuns
from ai_agent_service.runs.record import AnswerRecorder
from ai_agent_service.runs.remembering import MemoryAgent
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
        under_way: str | None = None,
    ) -> None:
        self.required = required
        self.asked: list[TurnQuestion] = []
        self.answers: list[TurnAnswer] = []
        self.waits: list[float] = []
        self.keeping = asyncio.Event()
        self._begin_error = begin_error
        self._keep_error = keep_error
        self._gate = gate
        self._messages = messages
        self._answer = answer
        self._under_way = under_way

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
    def under_way(self) -> str | None:
        """The run to join."""
        return self._under_way

    async def begin(self, context: RunContext, asked: TurnQuestion) -> RememberedTurn:
        """Itself."""
        if self._begin_error is not None:
            raise self._begin_error
        self.asked.append(asked)
        return self

    async def shorter(self) -> tuple[Message, ...] | None:
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

    def __init__(self, *events: RunEvent | asyncio.Event | Exception) -> None:
        definition = AgentDefinition.model_validate(
            {"agent_id": "helper", "system_prompt": "You help."}
        )
        super().__init__(
            definition,
            AgentParts(
                Script(says("-")), AvailableTools([], [], default_timeout=5), PendingSteps()
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


async def told(
    agent: BaseAgent, turn: Turn | None = None, within: RunContext | None = None
) -> list[RunEvent]:
    """All events of a run."""
    async with (
        asyncio.timeout(20),
        aclosing(agent.run(turn or Turn(messages=(QUESTION,)), within or context())) as events,
    ):
        return [event async for event in events]


async def remembered(
    agent: BaseAgent, memory: Memory, turn: Turn | None = None, within: RunContext | None = None
) -> list[RunEvent]:
    """All events of a run with a memory."""
    async with Tasks() as tasks:
        return await told(MemoryAgent(agent, memory, LiveRuns(), tasks), turn, within)


# A turn


async def test_the_events_are_the_agents_and_the_answer_is_kept() -> None:
    memory = Kept()
    assert await remembered(Telling(*ANSWERED), memory) == list(ANSWERED)
    assert memory.answers == [TurnAnswer(text="It is 42.", last="It is 42.", usage=Usage(10, 2))]


async def test_the_agent_is_told_what_the_memory_knows() -> None:
    known = (
        Message(role="user", content="Hello"),
        Message(role="assistant", content="Hi"),
        QUESTION,
    )
    agent, memory = Telling(*ANSWERED), Kept(messages=known)
    await remembered(
        agent,
        memory,
        Turn(
            messages=(QUESTION,),
            history="server",
            is_retry=True,
            message_id="m",
            settings={"seed": 1},
        ),
    )
    assert memory.asked == [
        TurnQuestion(messages=(QUESTION,), history="server", is_retry=True, message_id="m")
    ]
    (turn,) = agent.turns
    assert (turn.messages, turn.settings) == (known, {"seed": 1})
    assert turn.shorter is not None
    assert await turn.shorter() == (QUESTION,)


async def test_the_last_event_comes_once_the_answer_is_kept() -> None:
    gate = asyncio.Event()
    memory = Kept(gate=gate)
    events: list[RunEvent] = []

    async def listen(agent: BaseAgent) -> None:
        async with aclosing(agent.run(Turn(messages=(QUESTION,)), context())) as run:
            async for event in run:
                events.append(event)

    async with asyncio.timeout(20), Tasks() as tasks:
        listening = asyncio.create_task(
            listen(MemoryAgent(Telling(*ANSWERED), memory, LiveRuns(), tasks))
        )
        await memory.keeping.wait()
        assert events == list(ANSWERED[:-1])
        gate.set()
        await listening
    assert events == list(ANSWERED)


async def test_a_run_without_a_session_is_the_agents_own() -> None:
    memory = Kept()
    assert await remembered(Telling(*ANSWERED), memory, within=context(session=None)) == list(
        ANSWERED
    )
    assert (memory.asked, memory.answers) == ([], [])


async def test_a_failed_run_is_kept_as_incomplete_with_its_error() -> None:
    memory = Kept()
    failed = RunFailed(ProviderUnavailableError("It is down."), Usage(5, 1))
    assert await remembered(Telling(TextDelta("It is"), failed), memory) == [
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
        await remembered(Telling(TextDelta("It is"), ZeroDivisionError()), memory)
    assert [(answer.text, answer.status) for answer in memory.answers] == [("It is", "incomplete")]


async def test_an_agent_that_ends_without_an_end_is_kept_as_incomplete() -> None:
    memory = Kept()
    await remembered(Telling(TextDelta("It is")), memory)
    assert [(answer.text, answer.status) for answer in memory.answers] == [("It is", "incomplete")]


# A memory that cannot be used


async def test_a_memory_that_is_needed_and_away_fails_the_run() -> None:
    agent = Telling(*ANSWERED)
    assert await remembered(agent, Kept(begin_error=AWAY)) == [RunFailed(AWAY)]
    assert agent.turns == []


async def test_a_memory_that_is_not_needed_and_away_is_done_without() -> None:
    agent = Telling(*ANSWERED)
    assert await remembered(agent, Kept(begin_error=AWAY, required=False)) == [
        MemorySkipped("It is away."),
        *ANSWERED,
    ]
    assert agent.turns == [Turn(messages=(QUESTION,))]


@pytest.mark.parametrize("required", [True, False])
async def test_a_session_that_is_busy_fails_the_run(required: bool) -> None:
    busy = SessionBusyError("Wait.")
    assert await remembered(Telling(*ANSWERED), Kept(begin_error=busy, required=required)) == [
        RunFailed(busy)
    ]


async def test_an_answer_that_cannot_be_kept_is_not_told_as_finished() -> None:
    events = await remembered(Telling(*ANSWERED), Kept(keep_error=AWAY))
    assert events == [
        *ANSWERED[:-1],
        RunFailed(AWAY, Usage(10, 2), (StepRecord((), Usage(10, 2)),)),
    ]


async def test_an_answer_that_cannot_be_kept_is_finished_where_memory_is_not_needed() -> None:
    assert await remembered(Telling(*ANSWERED), Kept(keep_error=AWAY, required=False)) == list(
        ANSWERED
    )


async def test_the_error_of_a_failed_run_wins_over_one_of_the_memory() -> None:
    failed = RunFailed(ProviderUnavailableError("It is down."))
    assert await remembered(Telling(failed), Kept(keep_error=AWAY)) == [failed]


async def test_a_memory_that_is_away_is_waited_for_until_the_deadline() -> None:
    memory = Kept()
    await remembered(Telling(*ANSWERED), memory, within=context(seconds=20))
    await remembered(Telling(*ANSWERED), memory, within=context(seconds=-5))
    assert 10 < memory.waits[0] <= 20
    assert memory.waits[1] == 1.0


async def test_an_agent_with_a_needed_memory_that_is_away_has_a_problem() -> None:
    async with Tasks() as tasks:

        def made(memory: Memory) -> MemoryAgent:
            return MemoryAgent(Telling(), memory, LiveRuns(), tasks)

        assert await made(Kept(begin_error=AWAY)).problem() == "It is away."
        assert await made(Kept(begin_error=AWAY, required=False)).problem() is None
        assert await made(Kept()).problem() is None


async def test_a_result_of_no_call_is_refused_before_anything_is_kept() -> None:
    memory = Kept()
    stray = Message(role="tool", content="42", tool_call_id="c1")
    (event,) = await remembered(Telling(*ANSWERED), memory, Turn(messages=(QUESTION, stray)))
    assert isinstance(event, RunFailed)
    assert isinstance(event.error, InvalidRequestError)
    assert memory.asked == []


# A caller who leaves


async def test_what_was_told_before_the_caller_left_is_kept() -> None:
    agent, memory = Telling(TextDelta("It is"), asyncio.Event()), Kept()
    async with asyncio.timeout(20), Tasks() as tasks:
        run = MemoryAgent(agent, memory, LiveRuns(), tasks).run(
            Turn(messages=(QUESTION,)), context()
        )
        assert await anext(run) == TextDelta("It is")
        await run.aclose()
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
        agent = MemoryAgent(Telling(TextDelta("It is 42."), last), memory, LiveRuns(), tasks)
        listening = asyncio.create_task(told(agent))
        await memory.keeping.wait()
        listening.cancel()
        await asyncio.wait((listening,))
        assert listening.cancelled()
        gate.set()
    status = "complete" if isinstance(last, RunFinished) else "incomplete"
    assert [(answer.text, answer.status) for answer in memory.answers] == [("It is 42.", status)]


async def test_what_is_interrupted_is_kept_though_the_caller_is_cancelled_again() -> None:
    gate = asyncio.Event()
    agent, memory = Telling(TextDelta("It is"), asyncio.Event()), Kept(gate=gate)
    async with asyncio.timeout(20), Tasks() as tasks:
        listening = asyncio.create_task(told(MemoryAgent(agent, memory, LiveRuns(), tasks)))
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
    agent, memory = Telling(*ANSWERED), Kept(answer=answer)
    assert await remembered(agent, memory) == [
        TextDelta("Well. "),
        ToolStarted(CALL, 1),
        ToolFinished(RESULT),
        TextDelta("It is 42."),
        RunFinished("length", Usage(1, 2), is_repeated=True),
    ]
    assert agent.turns == []


async def test_an_earlier_answer_without_tools_is_told_again() -> None:
    assert await remembered(Telling(), Kept(answer=TurnAnswer(text="It is 42."))) == [
        TextDelta("It is 42."),
        RunFinished("stop", None, is_repeated=True),
    ]


async def test_a_run_that_is_under_way_is_joined_from_its_beginning() -> None:
    gate = asyncio.Event()
    first_agent, second_agent = Telling(ANSWERED[0], gate, *ANSWERED[1:]), Telling()
    live = LiveRuns()
    async with asyncio.timeout(20), Tasks() as tasks:
        first = asyncio.create_task(
            told(MemoryAgent(first_agent, Kept(), live, tasks), within=context(run_id="run_1"))
        )
        await first_agent.waiting.wait()
        joining = MemoryAgent(second_agent, Kept(under_way="run_1"), live, tasks).run(
            Turn(messages=(QUESTION,)), context(run_id="run_2")
        )
        async with aclosing(joining):
            assert await anext(joining) == ANSWERED[0]
            gate.set()
            *texts, last = [event async for event in joining]
            assert texts == [ANSWERED[1]]
            assert last == msgspec.structs.replace(ANSWERED[2], is_repeated=True)
        assert await first == list(ANSWERED)
    assert second_agent.turns == []
    assert live.find("run_1") is None


async def test_a_run_that_is_not_under_way_any_more_is_told_as_interrupted() -> None:
    (event,) = await remembered(Telling(), Kept(under_way="run_gone"))
    assert isinstance(event, RunFailed)
    assert isinstance(event.error, SessionBusyError)


# Live runs


async def test_all_who_follow_a_run_are_told_everything() -> None:
    live = LiveRuns()
    run = live.begin("run_1")
    run.publish(ANSWERED[0])

    async def follow() -> list[RunEvent]:
        return [event async for event in run.follow()]

    async with asyncio.timeout(20):
        followers = [asyncio.create_task(follow()) for _ in range(3)]
        await asyncio.sleep(0)
        run.publish(ANSWERED[1])
        await asyncio.sleep(0)
        run.publish(ANSWERED[2])
        live.end("run_1")
        assert [await follower for follower in followers] == [list(ANSWERED)] * 3
    assert live.find("run_1") is None


async def test_who_follows_a_run_that_is_stopped_is_told_what_there_is() -> None:
    live = LiveRuns()
    run = live.begin("run_1")
    run.publish(ANSWERED[0])
    live.end("run_1")
    async with asyncio.timeout(20):
        assert [event async for event in run.follow()] == [ANSWERED[0]]


# The record


def record(*events: RunEvent) -> AnswerRecorder:
    made = AnswerRecorder()
    for event in events:
        made.add(event)
    return made


def test_an_answer_has_its_steps_with_what_was_said_before_each() -> None:
    second = ToolCall("c9", "calculate", "{}")
    made = record(
        TextDelta("Let me "),
        TextDelta("see. "),
        ToolStarted(CALL, 1),
        ToolStarted(OTHER, 1),
        ToolFinished(RESULT),
        ToolFinished(msgspec.structs.replace(RESULT, call_id="c2", name="weather")),
        ToolStarted(second, 2),
        ToolFinished(msgspec.structs.replace(RESULT, call_id="c9")),
        TextDelta("It is 42."),
    )
    answer = made.build_final_answer(finished())
    assert (answer.text, answer.last, answer.status) == (
        "Let me see. It is 42.",
        "It is 42.",
        "complete",
    )
    assert [
        (step.text, [call.id for call in step.calls], [result.call_id for result in step.results])
        for step in answer.steps
    ] == [
        ("Let me see. ", ["c1", "c2"], ["c1", "c2"]),
        ("", ["c9"], ["c9"]),
    ]


def test_a_call_that_was_cut_has_an_unknown_result() -> None:
    answer = record(ToolStarted(CALL, 1)).build_partial_answer()
    assert answer.status == "incomplete"
    assistant, result = answer.steps[0].messages
    assert assistant.tool_calls == (CALL,)
    assert (result.tool_call_id, result.text) == (
        "c1",
        "No result of this call is known; it may or may not have been carried out.",
    )


def test_a_refusal_is_what_was_said() -> None:
    assert record(RefusalDelta("I will not.")).build_final_answer(finished()).text == "I will not."


def test_an_answer_that_waits_for_the_clients_tools_is_incomplete() -> None:
    steps = StepRecord((OTHER,), None)
    answer = record(TextDelta("I look. ")).build_final_answer(finished(steps, calls=(OTHER,)))
    assert (answer.status, answer.reason, answer.text, answer.last) == (
        "incomplete",
        "tool_calls",
        "I look. ",
        "",
    )
    assert answer.steps == (Step("I look. ", (OTHER,)),)


def test_a_step_with_calls_of_both_kinds_has_them_in_the_models_order() -> None:
    made = record(TextDelta("I look. "), ToolStarted(CALL, 1), ToolFinished(RESULT))
    answer = made.build_final_answer(finished(StepRecord((OTHER, CALL), None), calls=(OTHER,)))
    assert answer.steps == (Step("I look. ", (OTHER, CALL), (RESULT,)),)


def test_the_clients_tools_in_a_later_step_stand_in_a_step_of_their_own() -> None:
    made = record(ToolStarted(CALL, 1), ToolFinished(RESULT), TextDelta("And now: "))
    answer = made.build_final_answer(
        finished(StepRecord((CALL,), None), StepRecord((OTHER,), None), calls=(OTHER,))
    )
    assert answer.steps == (Step("", (CALL,), (RESULT,)), Step("And now: ", (OTHER,)))


@pytest.mark.parametrize(
    "of",
    [lambda made: made.build_partial_answer(), lambda made: made.build_final_answer(finished())],
    ids=["interrupted", "finished"],
)
def test_a_run_that_said_nothing_has_an_empty_answer(
    of: Callable[[AnswerRecorder], TurnAnswer],
) -> None:
    answer = of(AnswerRecorder())
    assert (answer.text, answer.steps, answer.last) == ("", (), "")
