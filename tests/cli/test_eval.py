"""`ai-agent-service eval` as an operator runs it: its exit codes, what it shows and keeps, and a
prompt made worse that is caught."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.support.commands import invoke
from tests.support.eval_commands import CASES, evaluated, prepared, runs, shipped
from tests.support.processes import ROOT, environment


async def test_a_run_is_shown_and_kept_and_leaves_the_database_alone(tmp_path: Path) -> None:
    settings = prepared(
        tmp_path,
        cases=[*CASES, {"id": "other", "input": "Hm?", "expect": {"exact": "No.", "max_steps": 1}}],
    )
    settings["DATABASE_URL"] = "postgresql://nobody:none@127.0.0.1:1/none"
    done = await evaluated(
        tmp_path,
        settings,
        "run",
        str(tmp_path / "cases.jsonl"),
        "--agent",
        "a",
        "--junit",
        str(tmp_path / "j.xml"),
    )
    assert done.code == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert lines["question1"].split()[:3] == ["question1", "1.00", "1"]
    assert lines["other"].split()[1] == "0.50"
    assert lines["other"].endswith("exact: 'No.'")
    assert "score 0.929 of 7 cases, 0 broken by an error; 7 steps" in done.stdout
    assert "84 tokens" in done.stdout
    assert "note: " not in done.stdout, "the database of the settings was asked for"
    assert done.stderr.count("] question") == 6
    [name] = runs(tmp_path)
    assert name.endswith("-cases")
    folder = tmp_path / "output" / name
    assert sorted(path.name for path in folder.iterdir()) == [
        "dataset.jsonl",
        "report.html",
        "results.jsonl",
        "summary.json",
    ]
    assert f"report: {folder / 'report.html'}\n{folder}\n" in done.stdout
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert (summary["cases"], summary["tokens"], summary["options"]["agent"]) == (7, 84, "a")
    assert (len(summary["agents"]["a"]["version"]), summary["agents"]["a"]["model"]) == (12, "demo")
    assert summary["metrics"] == {"contains": 1.0, "exact": 0.0, "max_steps": 1.0}
    assert ET.parse(tmp_path / "j.xml").getroot().get("failures") == "1"
    assert not (tmp_path / "data").exists()
    assert (await evaluated(tmp_path, settings, "show")).stdout == done.stdout
    assert (await evaluated(tmp_path, settings, "show", name)).stdout == done.stdout


async def test_a_prompt_made_worse_is_caught(tmp_path: Path) -> None:
    file = str(tmp_path / "cases.jsonl")
    good = await evaluated(
        tmp_path, prepared(tmp_path), "run", file, "--agent", "a", "--fail-under", "1"
    )
    [before] = runs(tmp_path)
    worse = prepared(tmp_path, prompt="Answer.")
    bad = await evaluated(tmp_path, worse, "run", file, "--agent", "a", "--baseline", before)
    assert (good.code, bad.code) == (0, 1)
    assert (
        "worse: 1.000 -> 0.000 over 6 cases, difference -1.000 (95 % between -1.000 and -1.000)"
        in bad.stdout
    )
    assert "question3: 1.00 -> 0.00" in bad.stdout
    [after] = set(runs(tmp_path)) - {before}
    back = await evaluated(tmp_path, worse, "compare", after, before)
    same = await evaluated(tmp_path, worse, "compare", before, before)
    again = await evaluated(tmp_path, worse, "compare", before, after)
    assert ("\nbetter: " in back.stdout, "\nwithin noise: " in same.stdout) == (True, True)
    assert (back.code, same.code, again.code) == (0, 0, 1)


async def test_the_report_is_written_with_each_run_and_anew_when_it_is_asked_for(
    tmp_path: Path,
) -> None:
    file = str(tmp_path / "cases.jsonl")
    settings = prepared(
        tmp_path,
        cases=[
            *CASES,
            {"id": "secret", "input": "Is it hunter2hunter2<?", "expect": {"exact": "No."}},
        ],
    )
    settings["OPENAI_API_KEY"] = "hunter2hunter2<"
    await evaluated(tmp_path, settings, "run", file, "--agent", "a")
    [before] = runs(tmp_path)
    worse = {
        **prepared(tmp_path, prompt="Answer.", cases=CASES),
        "OPENAI_API_KEY": "hunter2hunter2<",
    }
    await evaluated(tmp_path, worse, "run", file, "--agent", "a", "--baseline", before)
    [after] = set(runs(tmp_path)) - {before}
    first, second = (tmp_path / "output" / name / "report.html" for name in (before, after))
    verdict = "1.000 → 0.000 over 6 cases, difference -1.000 (95 % between -1.000 and -1.000)."
    written = second.read_text(encoding="utf-8")
    assert (
        "is it [redacted]?" in first.read_text(encoding="utf-8").lower(),
        verdict in written,
    ) == (True, True)
    assert "hunter2" not in first.read_text(encoding="utf-8")
    second.unlink()
    other = tmp_path / "other.html"
    done = await evaluated(
        tmp_path, worse, "report", after, "--baseline", before, "--output", str(other)
    )
    assert (done.code, done.stdout, other.read_text(encoding="utf-8")) == (0, f"{other}\n", written)
    again = await evaluated(tmp_path, worse, "report")
    assert (again.stdout, verdict in second.read_text(encoding="utf-8")) == (f"{second}\n", False)
    missing = invoke(tmp_path, "eval", "report", "--output", "nowhere/r.html", **worse)
    assert (missing.returncode, "nowhere/r.html: it cannot be written" in missing.stderr) == (
        2,
        True,
    )


async def test_the_walk_through_of_the_page_catches_the_prompt_that_was_made_worse(
    tmp_path: Path,
) -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8").split("\n## Commands")[0]
    good, worse, told = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    definition, cases = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    settings = prepared(tmp_path) | {
        "PROMPTS_DIR": str(tmp_path),
        "DEFAULT_PROVIDER": "knows_its_prompt",
    }
    (tmp_path / "agents.json").write_text(definition, encoding="utf-8")
    file = tmp_path / "shop.jsonl"
    file.write_text(cases, encoding="utf-8")
    run_shop = ("run", str(file), "--agent", "shop", "--repeat", "3", "--fail-under", "0.9")
    (tmp_path / "shop.txt").write_text(good, encoding="utf-8")
    assert (await evaluated(tmp_path, settings, *run_shop)).code == 0
    (tmp_path / "shop.txt").write_text(worse, encoding="utf-8")
    done = await evaluated(tmp_path, settings, *run_shop, "--baseline", runs(tmp_path)[0])
    assert (done.code, told in done.stdout) == (1, True), done.stdout


async def test_a_score_that_is_too_low_ends_with_code_1(tmp_path: Path) -> None:
    settings = prepared(tmp_path, prompt="Answer.")
    done = await evaluated(
        tmp_path,
        settings,
        "run",
        str(tmp_path / "cases.jsonl"),
        "--agent",
        "a",
        "--fail-under",
        "0.8",
    )
    assert (done.code, "The score 0.000 is under 0.8." in done.stdout) == (1, True)


async def test_attempts_are_repeated_and_told_with_their_spread(tmp_path: Path) -> None:
    settings = prepared(tmp_path)
    done = await evaluated(
        tmp_path, settings, "run", str(tmp_path / "cases.jsonl"), "--agent", "a", "--repeat", "3"
    )
    assert "3 attempts: mean 1.000, standard deviation 0.000, 1.000 to 1.000" in done.stdout
    assert "question1  1.00 (±0.00, 1.00 to 1.00)  3" in done.stdout
    summary = json.loads(
        (tmp_path / "output" / runs(tmp_path)[0] / "summary.json").read_text(encoding="utf-8")
    )
    assert (summary["attempts"], summary["cases"], summary["steps"]) == ([1.0, 1.0, 1.0], 6, 18)


def test_faults_end_with_code_2_and_all_of_them(tmp_path: Path) -> None:
    settings = prepared(
        tmp_path,
        cases=[{"id": "x", "inpt": "?"}, {"id": "y", "input": "?", "expect": {"exakt": 1}}],
    )
    done = invoke(tmp_path, "eval", "run", "cases.jsonl", "--agent", "a", **settings)
    assert done.returncode == 2
    assert (
        "cases.jsonl: line 1: inpt: this field is not known. Did you mean 'input'?" in done.stderr
    )
    assert (
        "cases.jsonl: line 2: expect.exakt: this field is not known. Did you mean 'exact'?"
        in done.stderr
    )


def test_an_agent_that_there_is_not_ends_with_code_2(tmp_path: Path) -> None:
    done = invoke(tmp_path, "eval", "run", "cases.jsonl", "--agent", "b", **prepared(tmp_path))
    assert (done.returncode, "cases.jsonl: line 1: agent: 'b' is not an agent" in done.stderr) == (
        2,
        True,
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("run",), "Give either FILE or --resume RUN."),
        (("run", "cases.jsonl", "--baseline", "none"), "There is no one run 'none'"),
        (("run", "--resume", "none"), "There is no one run 'none'"),
        (("run", "--resume", "none", "--repeat", "2"), "keeps its --agent"),
        (("run", "cases.jsonl", "--junit", "nowhere/j.xml"), "There is no folder nowhere."),
        (("show",), "There is no run in"),
        (("report",), "There is no run in"),
        (("report", "--baseline", "a"), "There is no run in"),
        (("compare", "a", "b"), "There is no one run 'a'"),
    ],
)
async def test_what_cannot_be_done_as_asked_ends_with_code_2(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    done = await evaluated(tmp_path, prepared(tmp_path), *arguments)
    assert (done.code, told in done.stderr) == (2, True)


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    cases = [
        *CASES[:2],
        {"id": "long", "input": "stop here", "expect": {"contains": "stop here"}},
        *CASES[2:4],
    ]
    settings = prepared(tmp_path, cases=cases)
    arguments = [
        sys.executable,
        "-m",
        "app.main",
        "eval",
        "run",
        "cases.jsonl",
        "--agent",
        "a",
        "--parallel",
        "1",
    ]
    stopping = environment(**settings, STOP_HERE="yes")
    with subprocess.Popen(
        arguments,
        cwd=tmp_path,
        env=stopping,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        told = [process.stderr.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=20)
    [name] = runs(tmp_path)
    assert process.returncode == 130
    assert [line.split(":")[0] for line in told] == ["[1/5] question1", "[2/5] question2"]
    assert f"Stopped. To go on: ai-agent-service eval run --resume {name}" in rest
    shown = invoke(tmp_path, "eval", "show", **settings)
    assert f"{name} was stopped" in shown.stdout
    done = invoke(tmp_path, "eval", "run", "--resume", name, "--fail-under", "1", **settings)
    assert (done.returncode, runs(tmp_path)) == (0, [name])
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [
        "[3/5] long",
        "[4/5] question3",
        "[5/5] question4",
    ]
    assert "score 1.000 of 5 cases" in done.stdout


async def test_a_run_of_an_agent_that_was_changed_is_not_gone_on_with(tmp_path: Path) -> None:
    await evaluated(
        tmp_path, prepared(tmp_path), "run", str(tmp_path / "cases.jsonl"), "--agent", "a"
    )
    done = await evaluated(
        tmp_path, prepared(tmp_path, prompt="Another."), "run", "--resume", runs(tmp_path)[0]
    )
    assert (done.code, "a is not what it was when" in done.stderr) == (2, True)


async def test_a_dataset_is_recorded_and_then_replayed(tmp_path: Path) -> None:
    case = {"id": "sum", "input": "What is 3 * 7?", "expect": {"contains": "21"}, "tags": ["t"]}
    settings = {**prepared(tmp_path, cases=[case]), "DEFAULT_PROVIDER": "demo"}
    agent = {"agent_id": "a", "system_prompt": "x", "allowed_regular_tools": ["calculate"]}
    (tmp_path / "agents.json").write_text(json.dumps(agent), encoding="utf-8")
    done = await evaluated(
        tmp_path, settings, "run", str(tmp_path / "cases.jsonl"), "--agent", "a", "--record"
    )
    path = tmp_path / "cases.recorded.jsonl"
    assert (done.code, f"Recorded: {path}" in done.stdout) == (0, True)
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written == {
        **case,
        "tool_results": [
            {"name": "calculate", "arguments": {"expression": "3 * 7"}, "content": "21"}
        ],
    }
    written["tool_results"][0]["content"] = "22"
    path.write_text(json.dumps(written), encoding="utf-8")
    replayed = await evaluated(
        tmp_path, settings, "run", str(path), "--agent", "a", "--fail-under", "1"
    )
    assert (replayed.code, "contains: with '21'" in replayed.stdout) == (1, True)


@pytest.mark.parametrize("agent", ["research_agent", "cli_agent"])
async def test_the_shipped_evaluations_pass_with_the_demo_provider(
    tmp_path: Path, agent: str
) -> None:
    settings = shipped(tmp_path)
    file = str(ROOT / "evaluations" / f"{agent}.jsonl")
    done = await evaluated(
        tmp_path, settings, "run", file, "--agent", agent, "--fail-under", "1", "--parallel", "8"
    )
    assert (done.code, ", 0 broken by an error" in done.stdout) == (0, True), done.stdout
