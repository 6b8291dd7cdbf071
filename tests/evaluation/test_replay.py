"""Recorded results in place of tools."""

from pathlib import Path

from ai_agent_service.evaluation.results import Options
from tests.support.evaluation import run_cases
from tests.support.fake_provider import Script, calls, says


def recorded(expression: str | None, content: str, **more: object) -> dict[str, object]:
    return {
        "name": "calculate",
        "content": content,
        **({} if expression is None else {"arguments": {"expression": expression}}),
        **more,
    }


async def test_a_replay_tells_what_was_recorded_and_runs_no_tool(tmp_path: Path) -> None:
    wanted = calls(
        ("calculate", {"expression": "1 + 1"}),
        ("calculate", '{"expression":  "2 + 2"}'),
        ("calculate", {"expression": "9"}),
    )
    script = Script(wanted, says("done"))
    results = [
        recorded("2 + 2", "five"),
        recorded("1 + 1", "Error: no", is_error=True),
        recorded(None, "anything"),
    ]
    [result] = await run_cases(
        tmp_path, script, {"id": "a", "input": "Hi", "tool_results": results}
    )
    assert [message.text for message in script.requests[1].messages if message.role == "tool"] == [
        "Error: no",
        "five",
        "anything",
    ]
    assert [used.is_error for used in result.answers[0].tools] == [True, False, False]
    assert result.answers[0].notes == ()


async def test_a_call_without_a_recorded_result_is_told_to_the_model_and_noted(
    tmp_path: Path,
) -> None:
    script = Script(calls(("calculate", {"expression": "1 + 1"}), ("calculate", "{")), says("done"))
    [result] = await run_cases(tmp_path, script, {"id": "a", "input": "Hi", "tool_results": []})
    first, second = (
        message.text for message in script.requests[1].messages if message.role == "tool"
    )
    assert "no recorded result of 'calculate'" in first
    assert "no recorded result of 'calculate'" in second
    assert result.answers[0].notes == (
        'no recorded result for calculate with {"expression":"1 + 1"}',
        "no recorded result for calculate with {",
    )


async def test_a_recorded_result_stands_for_the_same_call_again_and_results_are_used_in_order(
    tmp_path: Path,
) -> None:
    same = ("calculate", {"expression": "1"})
    script = Script(
        calls(same),
        calls(same),
        calls(("calculate", {"expression": "2"})),
        calls(same),
        says("done"),
    )
    results = [recorded("1", "first"), recorded("1", "second"), recorded(None, "third")]
    await run_cases(tmp_path, script, {"id": "a", "input": "Hi", "tool_results": results})
    assert [message.text for message in script.requests[4].messages if message.role == "tool"] == [
        "first",
        "second",
        "third",
        "second",
    ]


async def test_recording_runs_the_tools_though_there_are_results(tmp_path: Path) -> None:
    script = Script(calls(("calculate", {"expression": "1 + 1"})), says("done"))
    case = {"id": "a", "input": "Hi", "tool_results": [recorded(None, "old")]}
    [result] = await run_cases(tmp_path, script, case, options=Options(record=True))
    assert [used.content for used in result.answers[0].tools] == ["2"]
