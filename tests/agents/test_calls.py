"""Odd tool calls of a model: whatever it makes of them, each request to it is a valid one."""

import asyncio
import re
import time
from contextlib import aclosing

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_agent_service.agents.calls import make_sendable
from ai_agent_service.agents.loop import LoopOptions, run_loop
from ai_agent_service.agents.pending_steps import PendingSteps
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.events import RunEvent, RunFinished, TextDelta, ToolFinished, ToolStarted
from ai_agent_service.core.messages import Message, ToolCall, ToolSpec
from ai_agent_service.core.text import replace_unstorable
from ai_agent_service.providers.base import ModelFinished, ModelRequest
from ai_agent_service.tools.function import tool
from ai_agent_service.tools.toolset import Toolset
from tests.support.fake_provider import Action, Script, says

QUESTION = Message(role="user", content="Go.")
NAMES = st.sampled_from(["add", "theirs", "", "unknown", "add ", "a.b:c", "x" * 200, "é\x00\ud800"])
IDS = st.sampled_from(["", "0", "0", "call_1234567890", "call_\x00123456789", "\ud800"])
ARGUMENTS = st.sampled_from(
    [
        "",
        " ",
        "{}",
        "null",
        "[]",
        "7",
        '"text"',
        "text",
        '{"a": 1',
        "{} {}",
        "NaN",
        '{"a": "\\u0000"}',
    ]
) | st.text(max_size=8)
CALLS = st.lists(st.builds(ToolCall, IDS, NAMES, ARGUMENTS), max_size=4).map(tuple)
ANSWERS = st.lists(st.tuples(st.text(max_size=5), CALLS), max_size=5)


@tool
async def add(a: int = 1, b: int = 1) -> int:
    """Add."""
    return a + b


async def run(
    script: Script, messages: tuple[Message, ...], pending: PendingSteps
) -> list[RunEvent]:
    toolset = Toolset([add], default_timeout=5)
    around = RunContext(run_id="run_1", agent_id="helper", deadline=time.monotonic() + 10)
    request = ModelRequest(
        model="m",
        messages=pending.restore(messages, around),
        tools=(*toolset.specs, ToolSpec("theirs", "", {"type": "object"})),
        deadline=around.deadline,
    )
    loop = run_loop(
        script,
        request,
        toolset,
        around,
        LoopOptions(client_tools=frozenset({"theirs"}), max_steps=10, pending=pending),
    )
    async with asyncio.timeout(10), aclosing(loop) as events:
        return [event async for event in events]


def assert_valid(request: ModelRequest) -> None:
    """Assert that each call has a name, an object and one result, under a unique id."""
    messages = list(request.messages)
    ids = [call.id for message in messages for call in message.tool_calls]
    assert len(set(ids)) == len(ids)
    while messages:
        message = messages.pop(0)
        assert message.role != "tool"
        for call in message.tool_calls:
            assert re.fullmatch("[A-Za-z0-9_-]{1,64}", call.name)
            assert isinstance(msgspec.json.decode(call.arguments), dict)
            assert messages.pop(0).tool_call_id == call.id
    msgspec.json.encode(request.messages)


def read_answer(events: list[RunEvent]) -> tuple[Message, ...]:
    """The answer as a client has it, with results for the calls that it was sent."""
    last = events[-1]
    assert isinstance(last, RunFinished)
    said = "".join(event.text for event in events if isinstance(event, TextDelta))
    results = (Message("tool", "theirs", tool_call_id=call.id) for call in last.tool_calls)
    return (Message("assistant", said, last.tool_calls), *results)


@given(ANSWERS)
def test_whatever_a_model_calls_each_request_after_it_is_valid(
    answers: list[tuple[str, tuple[ToolCall, ...]]],
) -> None:
    async def converse() -> None:
        pending = PendingSteps()
        messages: tuple[Message, ...] = (QUESTION,)
        scripted: list[list[Action]] = [
            [TextDelta(text), ModelFinished("tool_calls", calls)] for text, calls in answers
        ]
        script = Script(*scripted, says("done"))
        while True:
            events = await run(script, messages, pending)
            answer = read_answer(events)
            messages = (*messages, *answer)
            if not answer[0].tool_calls:
                break
        started = [event.call.id for event in events if isinstance(event, ToolStarted)]
        ended = [event.result.call_id for event in events if isinstance(event, ToolFinished)]
        assert sorted(started) == sorted(ended)
        for request in script.requests:
            assert_valid(request)

    asyncio.run(converse())


@given(st.builds(ToolCall, st.just("c"), NAMES | st.text(), ARGUMENTS | st.text()))
def test_a_call_that_is_made_sendable_stays_as_it_is_from_then_on(call: ToolCall) -> None:
    once = make_sendable(Message("assistant", tool_calls=(call,)))
    assert make_sendable(once) is once


@pytest.mark.parametrize("arguments", ["{}", '{ "a": 1.10 }'])
def test_a_proper_call_goes_back_as_the_model_wrote_it(arguments: str) -> None:
    message = Message("assistant", tool_calls=(ToolCall("c", "add", arguments),))
    assert make_sendable(message) is message


async def test_events_have_what_the_model_wrote_without_what_cannot_be_stored() -> None:
    call = ToolCall("0", "a\x00b", "[\ud800]")
    events = await run(
        Script([ModelFinished("tool_calls", (call,))], says("done")), (QUESTION,), PendingSteps()
    )
    [started] = [event.call for event in events if isinstance(event, ToolStarted)]
    assert (started.name, started.arguments) == (
        replace_unstorable(call.name),
        replace_unstorable(call.arguments),
    )
