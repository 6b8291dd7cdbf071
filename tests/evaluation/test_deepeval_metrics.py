"""The metrics of DeepEval itself, with a judge of ours: more is always better, and nothing that a
judge leaves out is a pass."""

import os
import sys
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import pytest

from ai_agent_service.config.settings import load_settings
from ai_agent_service.core.errors import ConfigError, ProviderUnavailableError
from ai_agent_service.evaluation.dataset import Expect
from ai_agent_service.evaluation.deepeval_extra import open_judging
from ai_agent_service.evaluation.metrics import Metric
from ai_agent_service.evaluation.results import Check, TurnAnswer, UsedTool
from tests.support.judges import GOOD, Said, ScriptedJudge, environment_restored, good

pytestmark = [
    pytest.mark.xdist_group("deepeval"),
    pytest.mark.timeout(180),
]  # to import it takes seconds, once

CLOCK = UsedTool("clock", {"timezone": "UTC"}, "It is 9:05.")
SUM = UsedTool("calculate", {"expression": "3 * 7"}, "21")
ANSWER = TurnAnswer(input="What time is it?", text="It is 9:05.", tools=(CLOCK,))
BAD = {
    **GOOD,
    "Verdicts": {"verdicts": [{"verdict": "no", "reason": "It is not."}]},
    "ReasonScore": {"score": 1, "reason": "Bad."},
}
BAD["TaskCompletionVerdict"] = {"verdict": 0.0, "reason": "It was not."}


@pytest.fixture(autouse=True)
def _environment() -> Generator[None, None, None]:
    with environment_restored():
        yield


@pytest.fixture
def judge() -> ScriptedJudge:
    return ScriptedJudge(dict(GOOD))


@pytest.fixture
async def metric(tmp_path: Path, judge: ScriptedJudge) -> AsyncGenerator[Metric, None]:
    async with open_judging(judge.judge(), load_settings(), {}, tmp_path) as found:
        yield found


async def check(metric: Metric, expect: dict[str, Any], answer: TurnAnswer = ANSWER) -> Check:
    [found] = await metric.evaluate(Expect.model_validate(expect), answer)
    return found


@pytest.mark.parametrize(
    ("expect", "high", "low"),
    [
        ({"answer_relevancy": {}}, 1.0, 0.0),
        ({"faithfulness": {}}, 1.0, 0.0),
        ({"hallucination": {}}, 1.0, 0.0),
        ({"task_completion": {}}, 0.9, 0.0),
        ({"g_eval": {"criteria": "It is right."}}, 0.8, 0.1),
    ],
)
async def test_more_is_better_in_every_metric(
    metric: Metric, judge: ScriptedJudge, expect: dict[str, Any], high: float, low: float
) -> None:
    found = await check(metric, expect)
    assert (found.metric, round(found.score, 3), found.is_met, found.not_judged) == (
        next(iter(expect)),
        high,
        True,
        "",
    )
    assert (found.tokens, round(found.cost, 3)) == (
        110 * len(judge.asked),
        round(0.001 * len(judge.asked), 3),
    )
    assert found.came.startswith(f"{high:.2f}: ")
    judge.answers = BAD
    found = await check(metric, expect)
    assert (round(found.score, 3), found.is_met, found.not_judged) == (low, False, "")


async def test_a_score_is_met_from_its_threshold_on(metric: Metric) -> None:
    found = [
        await check(metric, {"task_completion": {"threshold": threshold}})
        for threshold in (0.0, 0.9, 0.91)
    ]
    assert [(each.score, each.is_met) for each in found] == [(0.9, True), (0.9, True), (0.9, False)]
    assert found[2].expected == "what was asked for done, 0.91 at least"


async def test_what_an_answer_is_held_against_is_given_or_what_tools_told(
    metric: Metric, judge: ScriptedJudge
) -> None:
    held: list[tuple[dict[str, Any], str]] = [
        ({"faithfulness": {}}, CLOCK.content),
        ({"hallucination": {}}, CLOCK.content),
        ({"faithfulness": {"retrieval_context": "canary"}}, "canary"),
        ({"hallucination": {"context": ["canary"]}}, "canary"),
    ]
    for expect, text in held:
        judge.requests.clear()
        await check(metric, expect)
        assert text in judge.prompts


async def test_without_anything_to_hold_it_against_the_score_is_0_and_nobody_is_asked(
    metric: Metric, judge: ScriptedJudge
) -> None:
    bare = TurnAnswer(input="Hm?", text="It is 9:05.")
    refused = TurnAnswer(
        input="Hm?", text="It is 9:05.", tools=(UsedTool("no_such", {}, "Error.", True, "refused"),)
    )
    for answer in (bare, refused):
        for name in ("faithfulness", "hallucination"):
            found = await check(metric, {name: {}}, answer)
            assert (found.score, found.is_met, found.not_judged, "bear it out" in found.came) == (
                0.0,
                False,
                "",
                True,
            )
    every = {
        "answer_relevancy": {},
        "faithfulness": {},
        "hallucination": {},
        "task_completion": {},
        "g_eval": {"criteria": "It is right."},
    }
    found_all = await metric.evaluate(
        Expect.model_validate(every), TurnAnswer(input="Hm?", text=" ", tools=(CLOCK,))
    )
    assert [(each.score, each.came) for each in found_all] == [(0.0, "an answer without text")] * 5
    assert judge.asked == []


@pytest.mark.parametrize(
    ("expect", "form", "said", "told"),
    [
        ({"answer_relevancy": {}}, "Statements", {"statements": []}, "statements is empty"),
        ({"answer_relevancy": {}}, "Verdicts", {"verdicts": []}, "verdicts is empty"),
        (
            {"answer_relevancy": {}},
            "Verdicts",
            {"verdicts": [{"verdict": "yes"}] * 2},
            "there are 2 verdicts, and 1 are asked for",
        ),
        (
            {"answer_relevancy": {}},
            "Verdicts",
            {"verdicts": [{"verdict": "perhaps"}]},
            "verdicts.0.verdict",
        ),
        ({"faithfulness": {}}, "Claims", {"claims": []}, "claims is empty"),
        ({"faithfulness": {}}, "Truths", {"truths": []}, "truths is empty"),
        (
            {"hallucination": {"context": ["a", "b"]}},
            "Verdicts",
            GOOD["Verdicts"],
            "there are 1 verdicts, and 2 are asked for",
        ),
        (
            {"task_completion": {}},
            "TaskCompletionVerdict",
            {"verdict": 9, "reason": ""},
            "verdict is 9, and not from 0 to 1",
        ),
        (
            {"task_completion": {}},
            "TaskCompletionVerdict",
            '{"verdict": NaN, "reason": ""}',
            "verdict is nan, and not from 0 to 1",
        ),
        (
            {"g_eval": {"criteria": "x"}},
            "ReasonScore",
            {"score": 85, "reason": ""},
            "score is 85, and not from 0 to 10",
        ),
        ({"g_eval": {"criteria": "x"}}, "Steps", {"steps": []}, "steps is empty"),
        ({"g_eval": {"criteria": "x"}}, "ReasonScore", "Great!", "it has no JSON object"),
        (
            {"g_eval": {"criteria": "x"}},
            "ReasonScore",
            ProviderUnavailableError("It is down."),
            "(provider_unavailable): It is down.",
        ),
    ],
)
async def test_rubbish_is_not_judged_and_never_a_pass(
    metric: Metric, judge: ScriptedJudge, expect: dict[str, Any], form: str, said: Said, told: str
) -> None:
    judge.answers = {**GOOD, form: said}
    found = await check(metric, expect)
    assert (found.score, found.is_met, told in found.not_judged) == (0.0, False, True), (
        found.not_judged
    )
    assert judge.asked.count(form) == (1 if isinstance(said, Exception) else 3)
    assert found.tokens > 0 or isinstance(said, Exception)


async def test_rubbish_that_is_put_right_is_judged(metric: Metric, judge: ScriptedJudge) -> None:
    judge.answers = {**GOOD, "Verdicts": [{"verdicts": []}, good("Verdicts", "")]}
    found = await check(metric, {"answer_relevancy": {}})
    assert (found.score, found.not_judged, judge.asked.count("Verdicts")) == (1.0, "", 2)


async def test_g_eval_shows_the_judge_what_is_named(metric: Metric, judge: ScriptedJudge) -> None:
    wanted = {
        "name": "right",
        "evaluation_steps": ["Compare the hours."],
        "expected_output": "Five past nine.",
        "threshold": 0.8,
    }
    found = await check(metric, {"g_eval": wanted})
    assert (found.metric, found.is_met, found.expected, judge.asked) == (
        "g_eval:right",
        True,
        "Compare the hours., 0.8 at least",
        ["ReasonScore"],
    )
    for text in ("Compare the hours.", "Five past nine.", "What time is it?", "It is 9:05."):
        assert text in judge.prompts
    assert "timezone" not in judge.prompts
    await check(
        metric,
        {
            "g_eval": {
                "criteria": "It used a tool.",
                "evaluation_params": ["actual_output", "tools_called"],
            }
        },
    )
    assert "timezone" in judge.prompts
    two = [{"criteria": "It is kind."}, {"criteria": "It is short."}]
    assert len(await metric.evaluate(Expect.model_validate({"g_eval": two}), ANSWER)) == 2


async def test_the_task_is_the_one_that_is_named(metric: Metric, judge: ScriptedJudge) -> None:
    await check(metric, {"task_completion": {"task": "Wish a good day."}})
    assert "Wish a good day." in judge.requests[-1].messages[0].text
    assert "clock" in judge.requests[0].messages[0].text, "the calls are shown"


@pytest.mark.parametrize(
    ("wanted", "tools", "score"),
    [
        ({"expected_tools": [{"name": "calculate"}]}, (CLOCK, SUM), 1.0),
        ({"expected_tools": [{"name": "calculate"}, {"name": "search"}]}, (SUM,), 0.5),
        ({"expected_tools": [{"name": "calculate"}]}, (), 0.0),
        ({"expected_tools": []}, (), 1.0),
        ({"expected_tools": []}, (SUM,), 0.0),
        ({"expected_tools": [{"name": "calculate"}, {"name": "calculate"}]}, (SUM, SUM), 1.0),
        ({"expected_tools": [{"name": "calculate"}, {"name": "calculate"}]}, (SUM,), 0.5),
        (
            {"expected_tools": [{"name": "calculate", "arguments": {"expression": "3 * 7"}}]},
            (SUM,),
            1.0,
        ),
        (
            {"expected_tools": [{"name": "calculate", "arguments": {"expression": "3 * 8"}}]},
            (SUM,),
            0.0,
        ),
        (
            {"expected_tools": [{"name": "calculate", "arguments": {}}]},
            (UsedTool("calculate", None, ""),),
            1.0,
        ),
        (
            {
                "expected_tools": [{"name": "calculate"}, {"name": "clock"}],
                "should_consider_ordering": True,
            },
            (SUM, CLOCK),
            1.0,
        ),
        (
            {
                "expected_tools": [{"name": "clock"}, {"name": "calculate"}],
                "should_consider_ordering": True,
            },
            (SUM, CLOCK),
            0.5,
        ),
        (
            {"expected_tools": [{"name": "calculate"}], "should_exact_match": True},
            (SUM, CLOCK),
            0.0,
        ),
    ],
)
async def test_tool_correctness_takes_no_judge(
    tmp_path: Path, wanted: dict[str, Any], tools: tuple[UsedTool, ...], score: float
) -> None:
    async with open_judging(None, load_settings(), {}, tmp_path) as metric:
        found = await check(
            metric, {"tool_correctness": wanted}, TurnAnswer(input="Hm?", text="", tools=tools)
        )
    assert (found.score, found.not_judged, found.tokens) == (score, "", 0)


async def test_what_is_no_matter_of_deepeval_gives_no_checks(metric: Metric) -> None:
    assert await metric.evaluate(Expect(contains=("9",)), ANSWER) == []


@pytest.mark.parametrize(
    ("variables", "telemetry", "tracing", "key"),
    [
        ({}, "YES", "NO", None),
        ({"DEEPEVAL_TELEMETRY_OPT_OUT": "YES"}, "YES", "NO", None),
        ({"DEEPEVAL_TELEMETRY_OPT_OUT": "no"}, "YES", "NO", None),
        ({"DEEPEVAL_TELEMETRY_OPT_OUT": "0"}, "YES", "NO", None),
        ({"DEEPEVAL_TELEMETRY_OPT_OUT": "NO"}, "NO", "NO", None),
        ({"CONFIDENT_TRACING_ENABLED": "true"}, "YES", "NO", None),
        ({"CONFIDENT_API_KEY": "k"}, "YES", "NO", None),
        ({"CONFIDENT_API_KEY": "k", "CONFIDENT_TRACING_ENABLED": "false"}, "YES", "NO", None),
        ({"CONFIDENT_API_KEY": "k", "CONFIDENT_TRACING_ENABLED": "true"}, "YES", "YES", "k"),
    ],
)
async def test_deepeval_sends_only_what_is_switched_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    telemetry: str,
    tracing: str,
    key: str | None,
) -> None:
    for name, value in {"DEEPEVAL_TELEMETRY_ENABLED": "1", **variables}.items():
        monkeypatch.setenv(name, value)
    async with open_judging(None, load_settings(), {}, tmp_path):
        names = (
            "DEEPEVAL_TELEMETRY_OPT_OUT",
            "CONFIDENT_TRACING_ENABLED",
            "CONFIDENT_API_KEY",
            "DEEPEVAL_TELEMETRY_ENABLED",
        )
        assert [os.environ.get(name) for name in names] == [telemetry, tracing, key, None]


async def test_a_variable_that_deepeval_does_not_take_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ai_agent_service.evaluation.deepeval_metrics", None)
    with pytest.raises(ConfigError, match="DeepEval cannot be loaded"):
        async with open_judging(None, load_settings(), {}, tmp_path):
            pass
