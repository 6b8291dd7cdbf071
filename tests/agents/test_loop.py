"""The loop: the rules, one test each."""

import asyncio
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
import pytest
from dirty_equals import IsFloat, IsStr

from ai_agent_service.agents import loop as module
from ai_agent_service.agents.loop import REPEATED_CALL_RESULT, LoopOptions, run_loop
from ai_agent_service.agents.pending_steps import PendingSteps
from ai_agent_service.core.bounds import MAX_CALLS_PER_STEP
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import (
    ProviderProtocolError,
    ProviderUnavailableError,
    RunTimeoutError,
    ToolError,
)
from ai_agent_service.core.events import (
    FinishReason,
    ReasoningDelta,
    RefusalDelta,
    RunEvent,
    RunFailed,
    RunFinished,
    StepRecord,
    TextDelta,
    ToolFinished,
    ToolProgress,
    ToolStarted,
)
from ai_agent_service.core.messages import (
    ImagePart,
    Message,
    NamedTool,
    ProviderData,
    ToolCall,
    ToolChoice,
    ToolResult,
    ToolSpec,
)
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.base import ModelFinished, ModelRequest
from ai_agent_service.tools.base import Tool, ToolOutput
from ai_agent_service.tools.function import tool
from ai_agent_service.tools.toolset import Toolset
from tests.support.fake_provider import Action, Script, calls, says

SOME_TIME: Any = IsFloat(ge=0)


def step(calls: tuple[ToolCall, ...], usage: Usage) -> StepRecord:
    """A step that the script answered, whatever time it took."""
    return StepRecord(calls, usage, "m", "scripted", SOME_TIME)


QUESTION = Message(role="user", content="Go.")


@tool
async def add(a: int, b: int) -> int:
    """Add."""
    return a + b


def context(seconds: float = 10.0, user: str = "ada") -> RunContext:
    return RunContext(
        run_id="run_1", agent_id="helper", deadline=time.monotonic() + seconds, user=user
    )


async def run(
    script: Script,
    tools: Sequence[Tool] = (add,),
    *,
    client_tools: Sequence[str] = (),
    max_steps: int = 10,
    pending: PendingSteps | None = None,
    seconds: float = 10.0,
    tool_choice: ToolChoice | None = None,
    default_timeout: float = 5.0,
    messages: Iterable[Message] = (QUESTION,),
    max_characters: int = 1_000_000,
) -> list[RunEvent]:
    toolset = Toolset(tools, default_timeout=default_timeout)
    specs = (*toolset.specs, *(ToolSpec(name, "", {"type": "object"}) for name in client_tools))
    around = context(seconds)
    request = ModelRequest(
        model="m",
        messages=tuple(messages),
        tools=specs,
        tool_choice=tool_choice,
        deadline=around.deadline,
    )
    loop = run_loop(
        script,
        request,
        toolset,
        around,
        LoopOptions(
            client_tools=frozenset(client_tools),
            max_steps=max_steps,
            pending=pending or PendingSteps(),
            max_characters=max_characters,
        ),
    )
    async with asyncio.timeout(10), aclosing(loop) as events:
        return [event async for event in events]


def results(events: list[RunEvent]) -> list[ToolResult]:
    return [event.result for event in events if isinstance(event, ToolFinished)]


def failure(events: list[RunEvent]) -> Exception:
    assert isinstance(events[-1], RunFailed)
    return events[-1].error


async def test_an_answer_without_calls_ends_the_run() -> None:
    assert await run(Script(says("Hel", "lo", usage=Usage(7, 2)))) == [
        TextDelta("Hel"),
        TextDelta("lo"),
        RunFinished("stop", Usage(7, 2), (step((), Usage(7, 2)),)),
    ]


async def test_an_empty_answer_stays_empty() -> None:
    assert await run(Script(says())) == [
        RunFinished("stop", Usage(10, 0), (step((), Usage(10, 0)),))
    ]


@pytest.mark.parametrize("reason", ["length", "content_filter"])
async def test_the_finish_reason_is_the_providers(reason: FinishReason) -> None:
    events = await run(Script([TextDelta("a"), ModelFinished(reason)]))
    assert isinstance(events[-1], RunFinished)
    assert (events[-1].reason, events[-1].usage) == (reason, None)


async def test_reasoning_and_refusal_are_passed_on_and_not_taken_for_text() -> None:
    script = Script(
        [ReasoningDelta("hm"), RefusalDelta("no"), *calls(("add", {"a": 1, "b": 2}))], says("3")
    )
    events = await run(script)
    assert events[:2] == [ReasoningDelta("hm"), RefusalDelta("no")]
    assert script.requests[1].messages[1].content == ""


async def test_a_call_is_run_and_its_result_goes_back_to_the_model() -> None:
    script = Script(
        calls(("add", {"a": 2, "b": 3}), text="Let me add.", usage=Usage(20, 5)),
        says("5", usage=Usage(30, 1, cost=0.5)),
    )
    events = await run(script)
    call = ToolCall("call_000000001", "add", '{"a":2,"b":3}')
    assert events == [
        TextDelta("Let me add."),
        ToolStarted(call),
        ToolFinished(
            ToolResult(call_id="call_000000001", name="add", content="5", seconds=SOME_TIME)
        ),
        TextDelta("5"),
        RunFinished(
            "stop",
            Usage(50, 6, cost=0.5),
            (step((call,), Usage(20, 5)), step((), Usage(30, 1, cost=0.5))),
        ),
    ]
    assert script.requests[1].messages == (
        QUESTION,
        Message(role="assistant", content="Let me add.", tool_calls=(call,)),
        Message(role="tool", content="5", tool_call_id="call_000000001"),
    )


async def test_calls_of_one_step_run_in_parallel_and_their_results_keep_the_models_order() -> None:
    both = asyncio.Barrier(2)

    @tool
    async def meet(name: str) -> str:
        await both.wait()
        if name == "first":
            await asyncio.sleep(0.02)
        return name

    script = Script(calls(("meet", {"name": "first"}), ("meet", {"name": "second"})), says("met"))
    events = await run(script, [meet])
    assert [type(event) for event in events[:4]] == [
        ToolStarted,
        ToolStarted,
        ToolFinished,
        ToolFinished,
    ]
    assert [result.content for result in results(events)] == ["second", "first"]
    assert [message.content for message in script.requests[1].messages[2:]] == ["first", "second"]


async def test_a_tool_that_is_not_parallel_runs_alone_and_in_order() -> None:
    running: list[str] = []

    @tool(parallel=False)
    async def alone(name: str) -> str:
        running.append(name)
        await asyncio.sleep(0.01)
        assert running == [name]
        running.remove(name)
        return name

    @tool
    async def beside(name: str) -> str:
        assert not running
        return name

    script = Script(
        calls(("alone", {"name": "1"}), ("alone", {"name": "2"}), ("beside", {"name": "3"})),
        says("done"),
    )
    assert [
        (result.content, result.is_error) for result in results(await run(script, [alone, beside]))
    ] == [
        ("1", False),
        ("2", False),
        ("3", False),
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ('{"a": 1,', "not valid JSON"),
        ("[1, 2]", "not a JSON object but an array"),
        ('"a"', "not a JSON object but a string"),
        ("", "a: Field required"),
        ("{}", "a: Field required"),
        ('{"a": 1, "b": "x"}', "b: Input should be a valid integer"),
        ('{"a": 1, "b": 2, "c": 3}', "c: Extra inputs are not permitted"),
    ],
)
async def test_bad_arguments_are_told_to_the_model_with_what_is_expected(
    arguments: str, told: str
) -> None:
    script = Script(calls(("add", arguments)), says("sorry"))
    events = await run(script)
    [result] = results(events)
    assert result.is_error
    assert result.content == IsStr(regex=f"Error: The arguments .*{told}.*")
    assert isinstance(events[-1], RunFinished)
    assert script.requests[1].messages[-1].content == result.content


async def test_an_unknown_tool_is_told_to_the_model_with_those_there_are() -> None:
    events = await run(Script(calls(("subtract", {})), says("sorry")))
    assert results(events)[0].content == "Error: There is no tool 'subtract'. There are: add."


async def test_numbers_keep_their_precision() -> None:
    @tool
    async def same(number: int) -> str:
        return str(number)

    events = await run(
        Script(calls(("same", '{"number": 123456789012345678901234567890}')), says("ok")), [same]
    )
    assert results(events)[0].content == "123456789012345678901234567890"


async def test_what_a_tool_raises_for_the_model_reaches_it_and_a_bug_shows_nothing_of_itself() -> (
    None
):
    @tool
    async def picky() -> str:
        raise ToolError("ask for a smaller page")

    @tool
    async def buggy() -> str:
        raise RuntimeError("secret internals")

    script = Script(calls(("picky", {}), ("buggy", {})), says("sorry"))
    contents = {
        result.name: result.content for result in results(await run(script, [picky, buggy]))
    }
    assert contents["picky"] == "Error: ask for a smaller page"
    assert "secret" not in contents["buggy"]
    assert contents["buggy"].startswith("Error: the tool 'buggy' failed unexpectedly")


async def test_a_tool_that_takes_too_long_is_cancelled_and_the_model_told() -> None:
    cancelled = asyncio.Event()

    @tool(timeout=0.02)
    async def slow() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return ""

    events = await run(Script(calls(("slow", {})), says("sorry")), [slow])
    assert cancelled.is_set()
    assert (
        results(events)[0].content
        == "Error: the tool did not answer within 0.02 seconds and was stopped"
    )
    assert isinstance(events[-1], RunFinished)


async def test_a_tool_without_its_own_limit_has_the_default_one() -> None:
    @tool
    async def slow() -> str:
        await asyncio.Event().wait()
        return ""

    events = await run(Script(calls(("slow", {})), says("sorry")), [slow], default_timeout=0.03)
    assert "within 0.03 seconds" in results(events)[0].content


async def test_a_tool_that_ignores_its_cancellation_is_left_behind() -> None:
    release = asyncio.Event()

    @tool(timeout=0.01)
    async def stubborn() -> str:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return "late"

    started = time.monotonic()
    events = await run(Script(calls(("stubborn", {})), says("sorry")), [stubborn])
    release.set()
    assert time.monotonic() - started < 2
    assert results(events)[0].is_error


async def test_a_long_result_is_cut_and_unstorable_characters_are_replaced() -> None:
    @tool(max_output=10)
    async def long() -> str:
        return "ä\x00\ud800" + "b" * 100

    events = await run(Script(calls(("long", {})), says("ok")), [long])
    assert results(events)[0].content == "ä\ufffd\ufffdbb\n[cut here: 10 of 108 bytes are shown]"


async def test_images_of_a_tool_go_on_with_its_message() -> None:
    image = ImagePart("data:image/png;base64,AAAA")

    @tool
    async def draw() -> ToolOutput:
        return ToolOutput("drawn", (image,))

    script = Script(calls(("draw", {})), says("see"))
    await run(script, [draw])
    assert script.requests[1].messages[-1] == Message(
        role="tool", content="drawn", tool_call_id="call_000000001", images=(image,)
    )


async def test_the_step_limit_ends_the_run_with_an_explanation() -> None:
    ran = []

    @tool
    async def again(number: int) -> str:
        ran.append(number)
        return "ok"

    script = Script(*[calls(("again", {"number": number})) for number in range(5)])
    events = await run(script, [again], max_steps=3)
    assert ran == [0, 1]
    assert isinstance(events[-2], TextDelta)
    assert "more than the 3 steps" in events[-2].text
    assert isinstance(events[-1], RunFinished)
    assert (events[-1].reason, len(events[-1].steps), events[-1].usage) == (
        "stop",
        3,
        Usage(60, 15),
    )


async def test_the_same_call_is_not_run_a_third_time_in_a_row() -> None:
    ran = []

    @tool
    async def look(place: str, depth: int) -> str:
        ran.append(place)
        return "nothing"

    same = calls(("look", '{"place": "attic", "depth": 1}'))
    same_in_other_words = calls(("look", '{"depth":1,"place":"attic"}'))
    script = Script(
        same,
        same_in_other_words,
        same,
        calls(("look", {"place": "cellar", "depth": 1})),
        same,
        says("gave up"),
    )
    events = await run(script, [look])
    assert ran == ["attic", "attic", "cellar", "attic"]
    assert [result.content for result in results(events)] == [
        "nothing",
        "nothing",
        REPEATED_CALL_RESULT,
        "nothing",
        "nothing",
    ]


async def test_steps_that_go_in_circles_are_not_run_a_third_time() -> None:
    circle = [calls(("add", {"a": 1, "b": 1})), calls(("add", {"a": 2, "b": 2}))]
    events = await run(Script(*circle * 4, says("done")))
    contents = [result.content for result in results(events)]
    assert contents == ["2", "4", "2", "4", *[REPEATED_CALL_RESULT] * 4]
    assert isinstance(events[-1], RunFinished)


async def test_steps_that_go_on_with_other_arguments_are_run() -> None:
    steps = [calls(("add", {"a": number % 2, "b": number})) for number in range(8)]
    events = await run(Script(*steps, says("done")))
    assert REPEATED_CALL_RESULT not in [result.content for result in results(events)]


async def test_an_endless_answer_is_cut_at_its_limit() -> None:
    answer: list[Action] = [ReasoningDelta("x" * 50), TextDelta("y" * 50)]
    answer *= 1000
    answer.append(asyncio.Event())
    script = Script(answer)
    events = await run(script, max_characters=1000)
    assert isinstance(events[-1], RunFinished)
    assert events[-1].reason == "length"
    said = sum(len(event.text) for event in events if isinstance(event, TextDelta | ReasoningDelta))
    assert 1000 < said <= 1050
    assert script.closed == 1


async def test_the_limit_of_an_answer_counts_all_steps() -> None:
    step = calls(("add", {"a": 1, "b": 1}), text="x" * 60)
    events = await run(Script(step, says("y" * 60), says("z")), max_characters=100)
    assert isinstance(events[-1], RunFinished)
    assert events[-1].reason == "length"


async def test_of_too_many_calls_in_one_step_the_first_are_run() -> None:
    many = [("add", {"a": number, "b": 0}) for number in range(MAX_CALLS_PER_STEP + 100)]
    script = Script(calls(*many), says("done"))
    events = await run(script)
    assert len(results(events)) == MAX_CALLS_PER_STEP
    assert len(script.requests[1].messages[1].tool_calls) == MAX_CALLS_PER_STEP


async def test_a_call_that_one_step_repeats_is_not_run_a_third_time() -> None:
    events = await run(Script(calls(*[("add", {"a": 1, "b": 1})] * 4), says("2")))
    assert sorted(result.content for result in results(events)) == [
        "2",
        "2",
        REPEATED_CALL_RESULT,
        REPEATED_CALL_RESULT,
    ]


async def test_a_call_of_the_client_goes_out_and_ends_the_run() -> None:
    script = Script(calls(("theirs", {"x": 1})))
    events = await run(script, client_tools=["theirs"])
    call = ToolCall("call_000000001", "theirs", '{"x":1}')
    assert events == [
        RunFinished("tool_calls", Usage(20, 5), (step((call,), Usage(20, 5)),), (call,))
    ]


async def test_a_name_that_both_have_is_ours() -> None:
    events = await run(Script(calls(("add", {"a": 1, "b": 1})), says("2")), client_tools=["add"])
    assert [result.content for result in results(events)] == ["2"]
    assert isinstance(events[-1], RunFinished)
    assert events[-1].reason == "stop"


async def test_a_step_with_both_kinds_runs_ours_and_is_restored_for_the_follow_up() -> None:
    pending = PendingSteps()
    script = Script(calls(("theirs", {}), ("add", {"a": 1, "b": 2}), text="Both."))
    events = await run(script, client_tools=["theirs"], pending=pending)
    assert [result.content for result in results(events)] == ["3"]
    assert isinstance(events[-1], RunFinished)
    assert [call.name for call in events[-1].tool_calls] == ["theirs"]
    follow_up = (
        QUESTION,
        Message(role="assistant", content="Both.", tool_calls=events[-1].tool_calls),
        Message(role="tool", content="their result", tool_call_id="call_000000001"),
    )
    whole = pending.restore(follow_up, context())
    assert [(message.role, message.content) for message in whole] == [
        ("user", "Go."),
        ("assistant", "Both."),
        ("tool", "their result"),
        ("tool", "3"),
    ]
    assert [call.name for call in whole[1].tool_calls] == ["theirs", "add"]


async def test_at_the_step_limit_a_call_of_the_client_still_goes_out() -> None:
    events = await run(Script(calls(("theirs", {}))), client_tools=["theirs"], max_steps=1)
    assert isinstance(events[-1], RunFinished)
    assert events[-1].reason == "tool_calls"


@pytest.mark.parametrize("choice", ["required", NamedTool("add")])
async def test_a_forced_call_is_forced_in_the_first_step_only(choice: ToolChoice) -> None:
    script = Script(calls(("add", {"a": 1, "b": 1})), says("2"))
    await run(script, tool_choice=choice)
    assert [request.tool_choice for request in script.requests] == [choice, "auto"]


def offered(script: Script) -> list[tuple[list[str], Any]]:
    return [
        ([spec.name for spec in request.tools], request.tool_choice) for request in script.requests
    ]


def adding(*numbers: int) -> list[list[Action]]:
    return [calls(("add", {"a": number, "b": 1})) for number in numbers]


async def test_a_call_that_the_client_requires_stays_required_after_calls_of_ours() -> None:
    script = Script(*adding(1, 2), calls(("theirs", {})))
    events = await run(script, client_tools=["theirs"], tool_choice="required")
    assert offered(script) == [(["add", "theirs"], "required")] * 3
    assert isinstance(events[-1], RunFinished)
    assert [call.name for call in events[-1].tool_calls] == ["theirs"]


@pytest.mark.parametrize("max_steps", [1, 4])
async def test_the_last_step_offers_only_the_clients_tools_where_one_is_required(
    max_steps: int,
) -> None:
    script = Script(*adding(*range(1, max_steps)), calls(("theirs", {})))
    events = await run(script, client_tools=["theirs"], tool_choice="required", max_steps=max_steps)
    *before, last = offered(script)
    assert before == [(["add", "theirs"], "required")] * (max_steps - 1)
    assert last == (["theirs"], "required")
    assert isinstance(events[-1], RunFinished)
    assert events[-1].reason == "tool_calls"


async def test_a_model_that_repeats_itself_is_offered_only_the_clients_tools() -> None:
    script = Script(*adding(1, 1, 1), calls(("theirs", {})))
    await run(script, client_tools=["theirs"], tool_choice="required")
    assert [names for names, _ in offered(script)] == [["add", "theirs"]] * 3 + [["theirs"]]


async def test_a_tool_of_the_client_that_is_named_is_the_only_one_offered_until_it_is_called() -> (
    None
):
    choice = NamedTool("theirs")
    script = Script(*adding(1), calls(("theirs", {})))
    events = await run(script, client_tools=["theirs", "other"], tool_choice=choice)
    assert offered(script) == [(["theirs"], choice)] * 2
    assert [result.content for result in results(events)] == ["2"]
    assert isinstance(events[-1], RunFinished)
    assert events[-1].reason == "tool_calls"


async def test_a_named_tool_of_ours_is_forced_once_though_the_client_has_tools() -> None:
    script = Script(*adding(1), says("2"))
    await run(script, client_tools=["theirs"], tool_choice=NamedTool("add"))
    assert [choice for _, choice in offered(script)] == [NamedTool("add"), "auto"]


async def test_text_in_place_of_a_required_call_is_the_answer() -> None:
    script = Script(*adding(1), says("Two."))
    events = await run(script, client_tools=["theirs"], tool_choice="required")
    assert events[-2] == TextDelta("Two.")
    assert isinstance(events[-1], RunFinished)
    assert events[-1].reason == "stop"


async def test_no_tools_stays_no_tools() -> None:
    script = Script(calls(("add", {"a": 1, "b": 1})), says("2"))
    await run(script, tool_choice="none")
    assert [request.tool_choice for request in script.requests] == ["none", "none"]


async def test_ids_that_a_provider_repeats_are_made_unique() -> None:
    script = Script(calls(("add", {"a": 1, "b": 1})), calls(("add", {"a": 2, "b": 2})), says("4"))
    events = await run(script)
    ids = [result.call_id for result in results(events)]
    assert ids == ["call_000000001", IsStr(regex=r"call_[0-9a-f]{24}")]
    assert [
        call.id for message in script.requests[2].messages for call in message.tool_calls
    ] == ids


async def test_an_error_of_the_provider_ends_the_run_with_what_was_used() -> None:
    error = ProviderUnavailableError("down")
    events = await run(Script(calls(("add", {"a": 1, "b": 1})), [TextDelta("The "), error]))
    assert events[-2:] == [
        TextDelta("The "),
        RunFailed(
            error,
            Usage(20, 5),
            (step((ToolCall("call_000000001", "add", '{"a":1,"b":1}'),), Usage(20, 5)),),
        ),
    ]


async def test_an_answer_without_an_end_is_an_error() -> None:
    assert isinstance(failure(await run(Script([TextDelta("Hel")]))), ProviderProtocolError)


async def test_a_finish_reason_of_tool_calls_without_any_is_a_stop() -> None:
    events = await run(Script([TextDelta("a"), ModelFinished("tool_calls")]))
    assert isinstance(events[-1], RunFinished)
    assert events[-1].reason == "stop"


async def test_the_deadline_ends_the_run_within_a_tool() -> None:
    @tool
    async def slow() -> str:
        await asyncio.Event().wait()
        return ""

    started = time.monotonic()
    error = failure(await run(Script(calls(("slow", {})), says("never")), [slow], seconds=0.05))
    assert isinstance(error, RunTimeoutError)
    assert time.monotonic() - started < 1


async def test_closing_the_run_closes_the_provider() -> None:
    script = Script([TextDelta("a"), asyncio.Event()])
    around = context()
    request = ModelRequest(model="m", messages=(QUESTION,), deadline=around.deadline)
    loop = run_loop(
        script,
        request,
        Toolset((), default_timeout=1),
        around,
        LoopOptions(max_steps=3, pending=PendingSteps()),
    )
    assert await anext(loop) == TextDelta("a")
    await loop.aclose()
    assert script.closed == 1


@pytest.mark.parametrize("count", [1, 3])
async def test_cancelling_the_run_cancels_its_tools_within_a_second(count: int) -> None:
    running = asyncio.Semaphore(0)
    cancelled = []

    @tool
    async def slow(number: int) -> str:
        running.release()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(number)
        return ""

    script = Script(
        calls(*[("slow", {"number": number}) for number in range(count)]), says("never")
    )
    task = asyncio.ensure_future(run(script, [slow]))
    async with asyncio.timeout(5):
        for _ in range(count):
            await running.acquire()
        task.cancel()
        started = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert time.monotonic() - started < 1
    assert sorted(cancelled) == list(range(count))


@pytest.mark.parametrize("guessable", ["call_0", "functions.theirs:0", "", "call_demo_2"])
async def test_a_call_goes_out_under_an_id_that_no_other_is_given(guessable: str) -> None:
    script = Script(
        [
            ModelFinished(
                "tool_calls",
                (
                    ToolCall(guessable, "theirs", "{}"),
                    ToolCall("call_ours", "add", '{"a":1,"b":1}'),
                ),
            )
        ]
    )
    first, second = [
        await run(script, client_tools=["theirs"], pending=pending)
        for pending in [PendingSteps()] * 2
    ]
    assert isinstance(first[-1], RunFinished)
    assert isinstance(second[-1], RunFinished)
    assert first[-1].tool_calls[0].id == IsStr(regex=r"call_[0-9a-f]{24}")
    assert first[-1].tool_calls[0].id != second[-1].tool_calls[0].id


@pytest.mark.parametrize(
    "kept", ["call_9pw2RrbMBYqYjqWzJfRZzVdq", "D681PevKs", "toolu_01A09q90qw90lq917835lq9"]
)
async def test_an_id_that_is_random_is_the_providers(kept: str) -> None:
    events = await run(
        Script([ModelFinished("tool_calls", (ToolCall(kept, "theirs", "{}"),))]),
        client_tools=["theirs"],
    )
    assert isinstance(events[-1], RunFinished)
    assert events[-1].tool_calls[0].id == kept


async def test_a_turn_whose_earlier_step_was_ours_is_restored_whole() -> None:
    pending = PendingSteps()
    script = Script(
        calls(("add", {"a": 1, "b": 2}), text="First."), calls(("theirs", {}), text="Then.")
    )
    events = await run(script, client_tools=["theirs"], pending=pending)
    assert isinstance(events[-1], RunFinished)
    [call] = events[-1].tool_calls
    follow_up = (
        QUESTION,
        Message(role="assistant", content="First.Then.", tool_calls=(call,)),
        Message(role="tool", content="theirs", tool_call_id=call.id),
    )
    assert [
        (message.role, message.content) for message in pending.restore(follow_up, context())
    ] == [
        ("user", "Go."),
        ("assistant", "First."),
        ("tool", "3"),
        ("assistant", "Then."),
        ("tool", "theirs"),
    ]


async def test_what_a_provider_sent_with_a_call_goes_back_with_its_result() -> None:
    data = ProviderData("script", "m", "{}")
    call = ToolCall("call_000000001", "add", '{"a":1,"b":1}', data)
    script = Script([ReasoningDelta("hm"), ModelFinished("tool_calls", (call,))], says("2"))
    await run(script)
    assert script.requests[1].messages[1].tool_calls[0].provider_data == data


async def test_what_a_provider_sent_with_a_clients_call_is_restored_in_the_follow_up() -> None:
    data = ProviderData("script", "m", "{}")
    call = ToolCall("call_0000000000001", "theirs", "{}", data)
    pending = PendingSteps()
    await run(
        Script([ModelFinished("tool_calls", (call,))]), client_tools=["theirs"], pending=pending
    )
    sent = msgspec.structs.replace(call, provider_data=None)
    follow_up = (
        QUESTION,
        Message(role="assistant", tool_calls=(sent,)),
        Message(role="tool", content="theirs", tool_call_id=call.id),
    )
    assert pending.restore(follow_up, context())[1].tool_calls == (call,)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("threaded", [True, False])
async def test_a_tool_that_ends_itself_ends_nothing_else(
    error: BaseException, threaded: bool
) -> None:
    async def leave() -> str:
        raise error

    def leave_in_a_thread() -> str:
        raise error

    leaving = tool(name="leave")(leave_in_a_thread if threaded else leave)
    events = await run(Script(calls(("leave", {})), says("sorry")), [leaving])
    assert results(events)[0].content == f"Error: the tool ended itself ({type(error).__name__})"


async def test_output_that_is_no_text_is_a_failure_of_the_tool() -> None:
    @tool
    async def odd() -> ToolOutput:
        return ToolOutput(3)  # type: ignore[arg-type]  # as a plug-in may

    events = await run(Script(calls(("odd", {})), says("sorry")), [odd])
    assert results(events)[0].content.startswith("Error: the tool 'odd' failed unexpectedly")


async def test_tools_that_hang_in_threads_keep_no_other_waiting() -> None:
    release = threading.Event()

    @tool(timeout=0.05)
    def hang() -> str:
        release.wait(10)
        return ""

    @tool(timeout=2)
    def quick() -> str:
        return "done"

    events = await run(
        Script(
            calls(
                *[("hang", {})] * 2, *[("hang", f'{{"n": {n}}}') for n in range(2)], ("quick", {})
            ),
            says("ok"),
        ),
        [hang, quick],
    )
    for _ in range(20):
        more = await run(Script(calls(("hang", {})), says("ok")), [hang])
        assert results(more)[0].is_error
    last = await run(Script(calls(("quick", {})), says("ok")), [quick])
    release.set()
    assert [result.content for result in results([*events, *last]) if result.name == "quick"] == [
        "done",
        "done",
    ]


async def test_a_tool_that_was_refused_is_logged_with_whose_run_it_was(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await run(Script(calls(("github__delete_repository", {})), says("sorry")))
    assert [
        (vars(record)["tool"], vars(record)["agent_id"], vars(record)["run_id"])
        for record in caplog.records
        if record.getMessage() == "tool.refused"
    ] == [("github__delete_repository", "helper", "run_1")]


@pytest.mark.parametrize("threaded", [True, False])
async def test_progress_is_told_in_order_between_the_start_and_the_end_of_its_call(
    monkeypatch: pytest.MonkeyPatch, threaded: bool
) -> None:
    monkeypatch.setattr(module, "PROGRESS_SECONDS", 0.0)

    def count_in_a_thread(context: RunContext) -> str:
        for number in range(3):
            context.report_progress(number, 3, f"at {number}")
        return "counted"

    async def count(context: RunContext) -> str:
        return count_in_a_thread(context)

    counting = tool(name="count")(count_in_a_thread if threaded else count)
    events = await run(Script(calls(("count", {})), says("done")), [counting])
    call = ToolCall("call_000000001", "count", "{}")
    assert events[:5] == [
        ToolStarted(call),
        *(ToolProgress(call, number, 3, f"at {number}") for number in range(3)),
        ToolFinished(
            ToolResult(call_id="call_000000001", name="count", content="counted", seconds=SOME_TIME)
        ),
    ]


async def test_progress_is_told_while_the_tool_is_still_at_work() -> None:
    seen = asyncio.Event()

    @tool
    async def work(context: RunContext) -> str:
        context.report_progress(1)
        await asyncio.wait_for(seen.wait(), 5)
        return "seen"

    around = context()
    toolset = Toolset([work], default_timeout=5)
    request = ModelRequest(model="m", messages=(QUESTION,), deadline=around.deadline)
    script = Script(calls(("work", {})), says("done"))
    finished = []
    async with aclosing(
        run_loop(script, request, toolset, around, LoopOptions(max_steps=3, pending=PendingSteps()))
    ) as events:
        async for event in events:
            if isinstance(event, ToolProgress):
                seen.set()
            elif isinstance(event, ToolFinished):
                finished.append(event.result.content)
    assert finished == ["seen"]


async def test_progress_of_one_call_is_told_no_more_often_than_anyone_can_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PROGRESS_SECONDS", 60.0)

    @tool
    async def count(first: int, context: RunContext) -> str:
        for number in range(100):
            context.report_progress(first + number)
            await asyncio.sleep(0)
        return "counted"

    events = await run(
        Script(calls(("count", {"first": 0}), ("count", {"first": 500})), says("done")), [count]
    )
    assert [event.progress for event in events if isinstance(event, ToolProgress)] == [0, 500]


async def test_a_message_of_progress_is_cut_and_unstorable_characters_are_replaced() -> None:
    @tool
    async def work(context: RunContext) -> str:
        context.report_progress(0.5, None, "\x00\ud800" + "a" * 10_000)
        return "done"

    events = await run(Script(calls(("work", {})), says("ok")), [work])
    (progress,) = [event for event in events if isinstance(event, ToolProgress)]
    assert (progress.total, progress.message) == (
        None,
        "\ufffd\ufffd" + "a" * (module.MAX_PROGRESS_MESSAGE - 2),
    )


async def test_a_tool_that_was_stopped_tells_no_progress_any_more() -> None:
    stopped, reported = threading.Event(), asyncio.Event()
    running = asyncio.get_running_loop()

    @tool(timeout=0.05)
    def hang(context: RunContext) -> str:
        stopped.wait(10)
        context.report_progress(1)
        running.call_soon_threadsafe(reported.set)
        return ""

    @tool
    async def wait() -> str:
        await asyncio.wait_for(reported.wait(), 5)
        return "waited"

    around = context()
    request = ModelRequest(model="m", messages=(QUESTION,), deadline=around.deadline)
    script = Script(calls(("hang", {}), ("wait", {})), says("done"))
    told: list[str] = []
    toolset = Toolset([hang, wait], default_timeout=5)
    async with aclosing(
        run_loop(script, request, toolset, around, LoopOptions(max_steps=3, pending=PendingSteps()))
    ) as events:
        async for event in events:
            if isinstance(event, ToolProgress):
                told.append("progress")
            elif isinstance(event, ToolFinished):
                told.append(event.result.name)
                stopped.set()
    assert told == ["hang", "wait"]
