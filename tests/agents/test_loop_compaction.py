"""The loop and a model that finds the conversation too long: it is asked once more, with less of
it."""

import asyncio
import itertools
import time
from contextlib import aclosing
from typing import Any

import pytest
from dirty_equals import IsFloat

from ai_agent_service.agents.loop import LoopOptions, run_loop
from ai_agent_service.agents.pending_steps import PendingSteps
from ai_agent_service.agents.shortening import MAX_ATTEMPTS, CompactMessages
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import ContextTooLongError, ProviderUnavailableError
from ai_agent_service.core.events import (
    ReasoningDelta,
    RefusalDelta,
    RunEvent,
    RunFailed,
    RunFinished,
    StepRecord,
    TextDelta,
    ToolFinished,
)
from ai_agent_service.core.messages import Message
from ai_agent_service.core.usage import Usage
from ai_agent_service.memory.windows import ContextWindows
from ai_agent_service.providers.base import ModelEvent, ModelRequest
from ai_agent_service.tools.function import tool
from ai_agent_service.tools.toolset import Toolset
from tests.support.fake_provider import Action, Script, calls, says

SOME_TIME: Any = IsFloat(ge=0)
SYSTEM = Message(role="system", content="You help.")
OLD = (Message(role="user", content="Long ago."), Message(role="assistant", content="Indeed."))
QUESTION = Message(role="user", content="Go.")
FEWER = (Message(role="system", content="You help. Long ago, in short."), QUESTION)
TOO_LONG: list[Action] = [ContextTooLongError("This does not fit.", param="messages")]


class Shortening:
    """Gives the same messages each time, and counts how often it was asked."""

    def __init__(self, messages: tuple[Message, ...] | None = FEWER) -> None:
        self.messages = messages
        self.asked = 0

    async def __call__(self, max_tokens: int) -> tuple[Message, ...] | None:
        self.asked += 1
        return self.messages


async def run(
    script: Script,
    shorter: CompactMessages | None,
    ran: list[int] | None = None,
    *,
    messages: tuple[Message, ...] = (SYSTEM, *OLD, QUESTION),
    windows: ContextWindows | None = None,
) -> list[RunEvent]:
    @tool
    async def note(number: int) -> str:
        (ran if ran is not None else []).append(number)
        return f"noted {number}"

    toolset = Toolset([note], default_timeout=5)
    context = RunContext(run_id="run_1", agent_id="helper", deadline=time.monotonic() + 20)
    request = ModelRequest(
        model="m", messages=messages, tools=toolset.specs, deadline=context.deadline
    )
    loop = run_loop(
        script,
        request,
        toolset,
        context,
        LoopOptions(
            max_steps=5,
            pending=PendingSteps(),
            compact=shorter,
            windows=windows or ContextWindows(),
        ),
    )
    async with asyncio.timeout(20), aclosing(loop) as events:
        return [event async for event in events]


async def test_the_model_is_asked_once_more_with_less_and_the_run_shows_nothing_of_it() -> None:
    script, shorter = Script(TOO_LONG, says("Hello")), Shortening()
    events = await run(script, shorter)
    assert events == [
        TextDelta("Hello"),
        RunFinished(
            "stop", Usage(10, 1), (StepRecord((), Usage(10, 1), "m", "scripted", SOME_TIME),)
        ),
    ]
    assert [request.messages for request in script.requests] == [(SYSTEM, *OLD, QUESTION), FEWER]
    assert (shorter.asked, script.closed) == (1, 2)


async def test_a_conversation_that_is_still_too_long_ends_the_run() -> None:
    script, shorter = Script(TOO_LONG), Shortening()
    events = await run(script, shorter)
    assert isinstance(events[-1], RunFailed)
    assert (len(events), events[-1].error.code) == (1, "context_length_exceeded")
    assert (len(script.requests), shorter.asked) == (2, 2), "nothing is asked twice alike"


async def test_a_conversation_is_shortened_a_few_times_each_time_by_more() -> None:
    wanted: list[int] = []

    async def compact(max_tokens: int) -> tuple[Message, ...]:
        wanted.append(max_tokens)
        return (SYSTEM, Message(role="user", content="x" * (3 * max_tokens)))

    script = Script(*[TOO_LONG] * MAX_ATTEMPTS, says("Hello"))
    long = (SYSTEM, Message(role="user", content="x" * 4000))
    events = await run(script, compact, messages=long)
    assert events[0] == TextDelta("Hello")
    assert len(script.requests) == MAX_ATTEMPTS + 1
    assert all(next_one < one * 3 / 4 for one, next_one in itertools.pairwise(wanted))
    script = Script(*[TOO_LONG] * (MAX_ATTEMPTS + 1), says("Hello"))
    assert isinstance((await run(script, compact, messages=long))[-1], RunFailed)


async def test_a_window_that_was_not_stated_is_not_remembered() -> None:
    windows = ContextWindows()
    first = windows.learn_refusal(("p", "m"), fixed=100, variable=1000, window=None)
    assert (first, windows.find_limit("p", "m")) == (850, None)
    windows.learn_refusal(("p", "m"), fixed=100, variable=1000, window=1_000_000)
    assert windows.find_limit("p", "m") is None


async def test_what_does_not_fit_a_stated_window_is_not_sent_again() -> None:
    windows, wanted = ContextWindows(), list[int]()

    async def compact(max_tokens: int) -> tuple[Message, ...]:
        wanted.append(max_tokens)
        return (SYSTEM, Message(role="user", content="x" * max_tokens))

    long = (SYSTEM, Message(role="user", content="x" * 4000))
    refusal: list[Action] = [ContextTooLongError("This does not fit.", window=400)]
    await run(Script(refusal, says("Hello")), compact, messages=long, windows=windows)
    script = Script(says("Hello"))
    await run(script, compact, messages=long, windows=windows)
    await run(script, None, messages=long, windows=windows)
    assert [len(request.messages[1].text) for request in script.requests] == [wanted[1], 4000]
    assert wanted[0] == wanted[1] < 400
    await run(script, compact, messages=long, windows=windows)
    assert len(wanted) == 2, "the model answered to that much"


async def test_the_error_stands_where_nothing_can_be_left_out() -> None:
    for shorter in (Shortening(None), None):
        script = Script(TOO_LONG, says("never asked"))
        events = await run(script, shorter)
        assert isinstance(events[-1], RunFailed)
        assert (events[-1].error.code, len(script.requests)) == ("context_length_exceeded", 1)


@pytest.mark.parametrize("told", [TextDelta("Hel"), ReasoningDelta("Hm"), RefusalDelta("No")])
async def test_nothing_is_asked_again_once_something_of_the_answer_was_told(
    told: ModelEvent,
) -> None:
    script, shorter = Script([told, *TOO_LONG], says("Hello")), Shortening()
    events = await run(script, shorter)
    assert events[0] == told
    assert isinstance(events[-1], RunFailed)
    assert (len(events), events[-1].error.code) == (2, "context_length_exceeded")
    assert (len(script.requests), shorter.asked) == (1, 0)


async def test_steps_that_were_taken_stay_and_no_tool_runs_twice() -> None:
    ran: list[int] = []
    script = Script(calls(("note", {"number": 7}), text="Noting."), TOO_LONG, says("Done"))
    events = await run(script, Shortening(), ran)
    assert ran == [7]
    assert [event.result.content for event in events if isinstance(event, ToolFinished)] == [
        "noted 7"
    ]
    step = script.requests[1].messages[4:]
    assert [(message.role, message.text) for message in step] == [
        ("assistant", "Noting."),
        ("tool", "noted 7"),
    ]
    assert script.requests[2].messages == (*FEWER, *step)
    assert isinstance(events[-1], RunFinished)
    assert len(events[-1].steps) == 2


async def test_steps_after_the_messages_became_fewer_go_on_from_these() -> None:
    script = Script(TOO_LONG, calls(("note", {"number": 7})), says("Done"))
    await run(script, Shortening())
    assert script.requests[2].messages[:2] == FEWER
    assert [message.role for message in script.requests[2].messages[2:]] == ["assistant", "tool"]


async def test_a_later_step_that_is_too_long_again_ends_the_run() -> None:
    script, shorter = Script(TOO_LONG, calls(("note", {"number": 7})), TOO_LONG), Shortening()
    events = await run(script, shorter)
    assert isinstance(events[-1], RunFailed)
    assert (events[-1].error.code, len(events[-1].steps), shorter.asked) == (
        "context_length_exceeded",
        1,
        2,
    )


async def test_other_errors_of_the_provider_leave_the_messages_alone() -> None:
    script, shorter = Script([ProviderUnavailableError("It is down.")]), Shortening()
    events = await run(script, shorter)
    assert isinstance(events[-1], RunFailed)
    assert (events[-1].error.code, shorter.asked, len(script.requests)) == (
        "provider_unavailable",
        0,
        1,
    )
