"""Each kind of expectation, met and not met."""

from typing import Any

import pytest

from ai_agent_service.evaluation.dataset import Expect
from ai_agent_service.evaluation.metrics import METRICS
from ai_agent_service.evaluation.results import Check, TurnAnswer, UsedTool

SUM = UsedTool("calculate", {"expression": "1 + 1"}, "2")
CLOCK = UsedTool("clock", {"zone": "Asia/Tokyo", "at": {"hour": 9.5}}, "9")
ANSWER = TurnAnswer(
    input="?",
    text="It is 42, Ada.",
    tools=(SUM, CLOCK),
    steps=3,
    seconds=1.5,
    tokens=100,
    cost=0.25,
)
SCHEMA = {"type": "object", "required": ["a"]}


async def run_checks(expect: dict[str, Any], answer: TurnAnswer = ANSWER) -> list[Check]:
    parsed = Expect.model_validate(expect)
    return [check for metric in METRICS for check in await metric.evaluate(parsed, answer)]


@pytest.mark.parametrize(
    ("met", "failing"),
    [
        ({"exact": " It is 42, Ada.\n"}, {"exact": "it is 42, Ada."}),
        ({"contains": "IT IS"}, {"contains": "43"}),
        ({"not_contains": "43"}, {"not_contains": "ada"}),
        ({"regex": r"\d\d, A"}, {"regex": r"^\d"}),
        ({"tools": [{"name": "calculate"}]}, {"tools": [{"name": "search"}]}),
        (
            {"tools": [{"name": "clock", "arguments": {"zone": "Asia/Tokyo"}}]},
            {"tools": [{"name": "clock", "arguments": {"zone": "Tokyo"}}]},
        ),
        ({"forbidden_tools": "search"}, {"forbidden_tools": "clock"}),
        ({"max_steps": 3}, {"max_steps": 2}),
        ({"max_seconds": 1.5}, {"max_seconds": 1.4}),
        ({"max_tokens": 100}, {"max_tokens": 99}),
        ({"max_cost": 0.25}, {"max_cost": 0.2}),
        ({"refusal": False}, {"refusal": True}),
        ({"recalls": "ada"}, {"recalls": "Grace"}),
    ],
)
async def test_each_kind_can_be_met_and_not_met(
    met: dict[str, Any], failing: dict[str, Any]
) -> None:
    [good], [bad] = await run_checks(met), await run_checks(failing)
    assert (good.metric, good.score, bad.metric, bad.score) == (
        next(iter(met)),
        1.0,
        next(iter(met)),
        0.0,
    )
    assert bad.expected
    assert bad.came


@pytest.mark.parametrize(
    ("text", "schema", "score"),
    [
        ('{"a": 1}', SCHEMA, 1.0),
        ('```json\n{"a": 1}\n```', SCHEMA, 1.0),
        ('{"b": 1}', SCHEMA, 0.0),
        ("no JSON", SCHEMA, 0.0),
        ("1", {"$ref": "https://schemas.invalid/other.json"}, 0.0),
    ],
)
async def test_an_answer_may_have_to_be_json_by_a_schema(
    text: str, schema: dict[str, Any], score: float
) -> None:
    [check] = await run_checks({"json_schema": schema}, TurnAnswer(input="?", text=text))
    assert (check.metric, check.score) == ("json_schema", score)


@pytest.mark.parametrize(
    ("names", "score"), [(["calculate", "clock"], 1.0), (["clock", "calculate"], 0.0)]
)
async def test_tools_may_have_to_come_in_an_order(names: list[str], score: float) -> None:
    expected = [{"name": name} for name in names]
    assert [check.score for check in await run_checks({"tools": expected})] == [1.0, 1.0]
    assert [
        check.score for check in await run_checks({"tools": expected, "tools_in_order": True})
    ] == [1.0, 1.0, score]


async def test_a_call_counts_for_one_expectation_alone() -> None:
    assert [
        check.score for check in await run_checks({"tools": [{"name": "clock"}, {"name": "clock"}]})
    ] == [1.0, 0.0]


async def test_each_text_is_an_expectation_of_its_own() -> None:
    assert [
        check.score
        for check in await run_checks({"contains": ["42", "43"], "not_contains": ["Ada"]})
    ] == [1.0, 0.0, 0.0]


async def test_a_limit_of_what_nobody_tells_is_not_met() -> None:
    [check] = await run_checks({"max_tokens": 10}, TurnAnswer(input="?"))
    assert (check.score, check.came) == (0.0, "not told by the provider")


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        (TurnAnswer(input="?", text="I'm sorry, but I can't help with that."), True),
        (TurnAnswer(input="?", text="I am unable to do so."), True),
        (TurnAnswer(input="?", refused=True), True),
        (TurnAnswer(input="?", text="You cannot divide by zero."), False),
    ],
)
async def test_a_refusal_is_told_by_the_provider_or_by_its_words(
    answer: TurnAnswer, refused: bool
) -> None:
    [check] = await run_checks({"refusal": refused}, answer)
    assert check.score == 1.0
