"""The record of a run, and the answer that memory keeps of it."""

from collections.abc import Callable

import msgspec
import pytest

from ai_agent_service.core.events import (
    MemorySkipped,
    ReasoningDelta,
    RefusalDelta,
    RunEvent,
    RunFinished,
    StepRecord,
    TextDelta,
    ToolFinished,
    ToolsMissing,
    ToolStarted,
)
from ai_agent_service.core.messages import ToolCall, ToolResult
from ai_agent_service.core.usage import Usage
from ai_agent_service.memory.base import Step, TurnAnswer
from ai_agent_service.runs.record import RunRecord, build_final_answer, build_partial_answer

CALL, OTHER = ToolCall("c1", "calculate", '{"expression":"6*7"}'), ToolCall("c2", "weather", "{}")
RESULT = ToolResult(call_id="c1", name="calculate", content="42")


def finished(*steps: StepRecord, calls: tuple[ToolCall, ...] = ()) -> RunFinished:
    return RunFinished("tool_calls" if calls else "stop", Usage(10, 2), steps, calls)


def record(*events: RunEvent) -> RunRecord:
    made = RunRecord()
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
    answer = build_final_answer(made, finished())
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
    answer = build_partial_answer(record(ToolStarted(CALL, 1)))
    assert answer.status == "incomplete"
    assistant, result = answer.steps[0].messages
    assert assistant.tool_calls == (CALL,)
    assert (result.tool_call_id, result.text) == (
        "c1",
        "No result of this call is known; it may or may not have been carried out.",
    )


def test_a_refusal_is_what_was_said() -> None:
    assert build_final_answer(record(RefusalDelta("I will not.")), finished()).text == "I will not."


def test_an_answer_that_waits_for_the_clients_tools_is_incomplete() -> None:
    steps = StepRecord((OTHER,), None)
    answer = build_final_answer(record(TextDelta("I look. ")), finished(steps, calls=(OTHER,)))
    assert (answer.status, answer.reason, answer.text, answer.last) == (
        "incomplete",
        "tool_calls",
        "I look. ",
        "",
    )
    assert answer.steps == (Step("I look. ", (OTHER,)),)


def test_a_step_with_calls_of_both_kinds_has_them_in_the_models_order() -> None:
    made = record(TextDelta("I look. "), ToolStarted(CALL, 1), ToolFinished(RESULT))
    answer = build_final_answer(made, finished(StepRecord((OTHER, CALL), None), calls=(OTHER,)))
    assert answer.steps == (Step("I look. ", (OTHER, CALL), (RESULT,)),)


def test_the_clients_tools_in_a_later_step_stand_in_a_step_of_their_own() -> None:
    made = record(ToolStarted(CALL, 1), ToolFinished(RESULT), TextDelta("And now: "))
    answer = build_final_answer(
        made, finished(StepRecord((CALL,), None), StepRecord((OTHER,), None), calls=(OTHER,))
    )
    assert answer.steps == (Step("", (CALL,), (RESULT,)), Step("And now: ", (OTHER,)))


@pytest.mark.parametrize(
    "of",
    [build_partial_answer, lambda made: build_final_answer(made, finished())],
    ids=["interrupted", "finished"],
)
def test_a_run_that_said_nothing_has_an_empty_answer(
    of: Callable[[RunRecord], TurnAnswer],
) -> None:
    answer = of(RunRecord())
    assert (answer.text, answer.steps, answer.last) == ("", (), "")


def test_a_record_adds_up_what_was_said_by_its_kind() -> None:
    made = record(
        MemorySkipped("It is away."),
        ToolsMissing(("search is down",)),
        ReasoningDelta("Hm. "),
        TextDelta("It is "),
        RefusalDelta("No."),
        TextDelta("42."),
    )
    assert (made.text, made.said) == ("It is 42.", "It is No.42.")
    assert (made.reasoning, made.refusal, made.characters) == ("Hm. ", "No.", 16)
    assert made.notes == ("without memory: It is away.", "search is down")
    assert made.is_without_memory


def test_a_record_counts_the_steps_that_were_started() -> None:
    made = record()
    assert made.started_steps == 0
    made.is_started = True
    assert made.started_steps == 1
    made.add(ToolStarted(CALL, 3))
    assert made.started_steps == 4
