"""`ai-agent-service eval` with a judge: what is judged, what is not, and that this is never a
pass."""

import json
import re
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from ai_agent_service.core.errors import ConfigError
from tests.support.commands import Done
from tests.support.eval_commands import evaluated, prepared, runs, shipped
from tests.support.judges import environment_restored, good, judged_by
from tests.support.processes import ROOT

pytestmark = [
    pytest.mark.xdist_group("deepeval"),
    pytest.mark.timeout(180),
]  # to import it takes seconds

RELEVANT = {
    "id": "open",
    "input": "Is it open?",
    "expect": {"contains": "open", "answer_relevancy": {"threshold": 0.7}},
}
KIND = {
    "id": "kind",
    "input": "Is it red?",
    "expect": {"g_eval": {"name": "manners", "criteria": "It is kind.", "threshold": 0.9}},
}
ASIDE = {"id": "aside", "input": "Hm?", "expect": {"contains": "Hm"}}
TOOLS = {"id": "tools", "input": "Hm?", "expect": {"tool_correctness": {"expected_tools": []}}}


@pytest.fixture(autouse=True)
def _process() -> Generator[None, None, None]:
    with environment_restored():
        yield


async def judged(folder: Path, settings: dict[str, str], *arguments: str) -> Done:
    return await evaluated(
        folder,
        settings,
        "run",
        str(folder / "cases.jsonl"),
        "--agent",
        "a",
        "--judge",
        "openai:strict",
        *arguments,
    )


def read_summary(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / "output" / name / "summary.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize(("agent", "score"), [("research_agent", 0.92), ("cli_agent", 0.917)])
async def test_the_shipped_judged_evaluations_pass_with_the_demo_provider_and_a_kind_judge(
    tmp_path: Path, agent: str, score: float
) -> None:
    settings = shipped(tmp_path)
    prompts: list[str] = []

    def kind(form: str, prompt: str) -> dict[str, Any]:
        prompts.append(prompt)
        return good(form, prompt)

    file = str(ROOT / "evaluations" / f"{agent}.judged.jsonl")
    with judged_by(kind) as (judge, asked):
        done = await evaluated(
            tmp_path,
            settings | judge,
            "run",
            file,
            "--judge",
            "openai:strict",
            "--fail-under",
            "0.9",
        )
    assert done.code == 0, done.stdout + done.stderr
    summary = read_summary(tmp_path, runs(tmp_path)[0])
    assert (round(summary["score"], 3), summary["not_judged"], summary["options"]["judge"]) == (
        score,
        0,
        "openai:strict",
    )
    assert summary["judge_tokens"] == 110 * len(asked) > summary["tokens"] > 0
    assert f"judged by openai:strict: {110 * len(asked)} tokens" in done.stdout
    assert {"Truths", "Claims", "Verdicts", "ReasonScore", "TaskCompletionVerdict"} <= set(asked)
    assert any("weekday" in prompt for prompt in prompts), (
        "what the tools told is shown to the judge"
    )


async def test_scores_count_as_they_are_and_thresholds_say_what_is_not_met(tmp_path: Path) -> None:
    settings = prepared(tmp_path, cases=[RELEVANT, KIND, ASIDE])
    with judged_by(good) as (judge, _):
        done = await judged(
            tmp_path, settings | judge, "--junit", str(tmp_path / "j.xml"), "--fail-under", "0.93"
        )
    assert done.code == 0, done.stdout + done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert (lines["open"].split()[1], lines["kind"].split()[1]) == ("1.00", "0.80")
    assert lines["kind"].endswith("g_eval:manners: It is kind., 0.9 at least")
    assert "answer_relevancy 1.00, contains 1.00, g_eval:manners 0.80" in done.stdout
    root = ET.parse(tmp_path / "j.xml").getroot()
    assert (root.get("failures"), root.get("errors")) == ("1", "0")
    assert "came 0.80: Good." in str(root.findtext(".//failure"))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "I like it.",
            (
                "the judge gave no answer that can be used, 3 times; the last time it has no JSON"
                " object"
            ),
        ),
        (429, "the judge cannot be asked (provider_rate_limited)"),
        (503, "the judge cannot be asked (provider_unavailable)"),
        (401, "the judge cannot be asked (provider_"),
    ],
)
async def test_what_is_not_judged_is_told_everywhere_and_is_never_a_pass(
    tmp_path: Path, said: str | int, told: str
) -> None:
    settings = prepared(tmp_path, cases=[RELEVANT, KIND, ASIDE])
    with judged_by(
        lambda form, prompt: said if form in ("Statements", "Steps") else good(form, prompt)
    ) as (judge, asked):
        done = await judged(
            tmp_path, settings | judge, "--fail-under", "0", "--junit", str(tmp_path / "j.xml")
        )
    assert (done.code, "Not all was judged, so that this is no pass." in done.stdout) == (1, True)
    assert set(asked) == {"Statements", "Steps"}
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert [lines[name].split()[1] for name in ("open", "kind", "aside")] == [
        "0.50",
        "0.00",
        "1.00",
    ]
    assert "not judged: answer_relevancy: the judge" in lines["open"]
    [name] = runs(tmp_path)
    assert (
        "2 of 3 cases not judged, whose expectations count 0. To have them judged again:"
        f" ai-agent-service eval run --resume {name}" in done.stdout
    )
    assert (
        "[1/3] open: 0.50 and not judged in " in done.stderr
        or "open: 0.50 and not judged in " in done.stderr
    )
    root = ET.parse(tmp_path / "j.xml").getroot()
    assert (root.get("failures"), root.get("errors")) == ("0", "2")
    assert [error.get("type") for error in root.iter("error")] == ["not_judged", "not_judged"]
    assert told in str(next(root.iter("error")).get("message"))
    written = (tmp_path / "output" / name / "results.jsonl").read_text(encoding="utf-8")
    assert (written.count('"not_judged":"the judge'), told in written) == (2, True)
    assert (await evaluated(tmp_path, settings, "show")).stdout in done.stdout
    assert (await evaluated(tmp_path, settings, "compare", name, name)).code == 1
    path = tmp_path / "output" / name / "summary.json"
    stopped = {**read_summary(tmp_path, name), "finished": None, "not_judged": 0}
    path.write_text(json.dumps(stopped), encoding="utf-8")
    done = await evaluated(tmp_path, settings, "compare", name, name)
    assert (done.code, f"{name} was stopped, so that this is no pass." in done.stdout) == (1, True)
    plain = await judged(
        tmp_path,
        settings | {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "PROVIDER_MAX_RETRIES": "0"},
    )
    assert plain.code == 0, "without a limit the score is told and nothing is asked of it"


async def test_what_was_not_judged_is_judged_again_by_resume_and_compares_not_before(
    tmp_path: Path,
) -> None:
    settings = prepared(tmp_path, cases=[RELEVANT, KIND, ASIDE])
    with judged_by(good) as (judge, _):
        await judged(tmp_path, settings | judge)
        [before] = runs(tmp_path)
    broken = True
    with judged_by(
        lambda form, prompt: 503 if broken and form == "Steps" else good(form, prompt)
    ) as (judge, asked):
        done = await judged(tmp_path, settings | judge, "--baseline", before)
        assert (done.code, "left out, not judged: kind" in done.stdout) == (1, True)
        [after] = set(runs(tmp_path)) - {before}
        assert read_summary(tmp_path, after)["not_judged"] == 1
        broken = False
        asked.clear()
        done = await evaluated(
            tmp_path, settings | judge, "run", "--resume", after, "--baseline", before
        )
    assert (done.code, [line.split(":")[0] for line in done.stderr.splitlines()]) == (
        0,
        ["[3/3] kind"],
    ), done.stderr
    assert (set(asked), read_summary(tmp_path, after)["not_judged"]) == (
        {"Steps", "ReasonScore"},
        0,
    )
    assert "left out" not in done.stdout
    results = (
        (tmp_path / "output" / after / "results.jsonl").read_text(encoding="utf-8").splitlines()
    )
    assert sorted(json.loads(line)["id"] for line in results) == ["aside", "kind", "open"]


async def test_runs_by_different_judges_are_told_apart(tmp_path: Path) -> None:
    settings = prepared(tmp_path, cases=[RELEVANT])
    with judged_by(good) as (judge, _):
        await judged(tmp_path, settings | judge)
        [before] = runs(tmp_path)
        cases = str(tmp_path / "cases.jsonl")
        await evaluated(
            tmp_path, settings | judge, "run", cases, "--agent", "a", "--judge", "openai:lenient"
        )
    [after] = set(runs(tmp_path)) - {before}
    done = await evaluated(tmp_path, settings, "compare", before, after)
    assert (
        "judged by openai:strict first and by openai:lenient then, which makes a difference of"
        " its own" in done.stdout
    )
    assert (await evaluated(tmp_path, settings, "compare", before, before)).stdout.count(
        "judged by"
    ) == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            (),
            (
                "cases.jsonl: line 2: expect.answer_relevancy: this takes a judge, and none is"
                " given. Give one, such as --judge openai:"
            ),
        ),
        (("--judge", "opnai:gpt"), "--judge: 'opnai' is not a provider. Did you mean 'openai'?"),
        (("--judge", "openai:gpt"), "--judge: openai cannot be asked without OPENAI_API_KEY."),
    ],
)
async def test_without_a_judge_nothing_is_run(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    settings = prepared(tmp_path, cases=[ASIDE, RELEVANT])
    with pytest.raises(ConfigError, match=re.escape(told)):
        await evaluated(
            tmp_path, settings, "run", str(tmp_path / "cases.jsonl"), "--agent", "a", *arguments
        )
    assert not (tmp_path / "output").exists()


async def test_without_the_extra_the_command_that_installs_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deepeval", None)
    settings = prepared(tmp_path, cases=[ASIDE, TOOLS])
    told = (
        "line 2: expect.tool_correctness: this is measured by DeepEval, which is not installed."
        " Install it: make deepeval  (or: pip install --no-deps --require-hashes -r"
        " requirements-eval.lock)"
    )
    with pytest.raises(ConfigError, match=re.escape(told)):
        await evaluated(tmp_path, settings, "run", str(tmp_path / "cases.jsonl"), "--agent", "a")
    assert (ROOT / "requirements-eval.lock").exists()
    assert "\ndeepeval: " in (ROOT / "Makefile").read_text(encoding="utf-8")
