"""`ai-agent-service eval generate` as an operator runs it, with a provider's server on this
machine."""

import asyncio
import json
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from ai_agent_service.cli.eval import evaluate
from ai_agent_service.evaluation.dataset import read_dataset
from tests.support.commands import Done, command, invoke
from tests.support.fake_upstream import Action, Upstream, delta, events, reply
from tests.support.processes import environment


def prepared(folder: Path, url: str = "http://127.0.0.1:9") -> dict[str, str]:
    """Two documents, a file that is none, and an agent with a tool."""
    (folder / "docs").mkdir()
    (folder / "docs" / "hours.md").write_text(
        "# Hours\n\nOpen from 9:00 to 18:00.", encoding="utf-8"
    )
    (folder / "docs" / "prices.txt").write_text("A repair costs 25 euros.", encoding="utf-8")
    (folder / "docs" / "logo.png").write_bytes(b"\x89PNG")
    agent = {
        "agent_id": "shop",
        "system_prompt": "You are the shop.",
        "allowed_regular_tools": ["calculate"],
        "resources": ["memory"],
    }
    (folder / "agents.json").write_text(json.dumps([agent]), encoding="utf-8")
    return {
        "AGENT_CONFIG_FILE": str(folder / "agents.json"),
        "MCP_CONFIG_FILE": str(folder / "mcp.json"),
        "EVALUATION_OUTPUT_DIR": str(folder / "output"),
        "DEFAULT_PROVIDER": "demo",
        "OPENAI_BASE_URL": url,
        "PROVIDER_MAX_RETRIES": "0",
        "DATABASE_URL": "postgresql://nobody:none@127.0.0.1:1/none",
    }


def written(*cases: dict[str, Any]) -> list[Action]:
    usage = {"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 20, "cost": 0.001}}
    return events(delta(content=json.dumps({"cases": cases})), delta("stop"), usage)


def numbered(numbers: Iterable[int]) -> list[dict[str, Any]]:
    return [
        {"id": f"sum_{n}", "input": f"What is {n} + 1?", "expect": {"contains": [str(n + 1)]}}
        for n in numbers
    ]


async def generated(folder: Path, settings: dict[str, str], *arguments: str) -> Done:
    return await command(
        evaluate, folder, "generate", "--model", "openai:gpt-x", *arguments, **settings
    )


async def test_cases_about_a_folder_are_kept_and_can_be_run(tmp_path: Path) -> None:
    closing = {
        "id": "closing",
        "input": "When do you close?",
        "expect": {"contains": ["18:00"], "not_contains": [], "regex": None},
    }
    price = {
        "id": "price\u001b[31m",
        "input": 'How much is a "repair", é?',
        "expect": {"contains": [], "regex": "25", "refusal": False},
    }
    async with Upstream(
        written(closing),
        written({"id": "x", "input": "Hm?", "expect": {"regex": "("}}),
        written(price),
    ) as upstream:
        settings = prepared(tmp_path, upstream.url)
        done = await generated(
            tmp_path, settings, "--from", str(tmp_path / "docs"), "--agent", "shop", "--count", "2"
        )
    path = tmp_path / "output" / "datasets" / "docs.jsonl"
    assert (done.code, done.stderr) == (0, "[1/2] closing\n[2/2] price_31m\n")
    assert done.stdout.splitlines() == [
        f"left out: {tmp_path / 'docs' / 'logo.png'}",
        "3 questions to the model, 360 tokens, $0.0030",
        f"2 cases: {path}",
        f"To run them: ai-agent-service eval run {path}",
    ]
    hours, prices = (str(tmp_path / "docs" / name) for name in ("hours.md", "prices.txt"))
    assert path.read_text(encoding="utf-8").splitlines() == [
        (
            '{"id": "closing", "agent": "shop", "input": "When do you close?", "expect":'
            f' {{"contains": ["18:00"]}}, "source": "{hours}"}}'
        ),
        (
            '{"id": "price_31m", "agent": "shop", "input": "How much is a \\"repair\\", é?",'
            f' "expect": {{"regex": "25", "refusal": false}}, "source": "{prices}"}}'
        ),
    ]
    assert [case.source for case in read_dataset(path)] == [hours, prices]
    first, second, third = (request.json for request in upstream.requests)
    assert (first["model"], first["response_format"]["type"]) == ("gpt-x", "json_schema")
    assert "You are the shop." in first["messages"][0]["content"]
    assert "- calculate: " in first["messages"][0]["content"]
    assert "Open from 9:00 to 18:00." in first["messages"][1]["content"]
    assert "A repair costs 25 euros." in second["messages"][1]["content"]
    assert "this is no regular expression" in third["messages"][-1]["content"]
    assert not (tmp_path / "data").exists()
    ran = await command(evaluate, tmp_path, "run", str(path), **settings)
    assert (ran.code, "of 2 cases, 0 broken" in ran.stdout) == (0, True)
    report = next((tmp_path / "output").glob("*/report.html")).read_text(encoding="utf-8")
    assert f"from {hours}" in report


async def test_a_description_and_a_file_that_is_there_are_enough(tmp_path: Path) -> None:
    output = tmp_path / "cases.jsonl"
    output.write_text("mine", encoding="utf-8")
    asked = ("--description", "Sums of two numbers.", "--count", "1", "--output", str(output))
    async with Upstream(
        reply(500, {"error": {"message": "no"}}), written(*numbered([4]))
    ) as upstream:
        settings = prepared(tmp_path, upstream.url)
        refused = await generated(tmp_path, settings, *asked)
        failed = await generated(tmp_path, settings, *asked, "--force")
        kept = output.read_text(encoding="utf-8")
        done = await generated(tmp_path, settings, *asked, "--force")
    assert (
        refused.code,
        f"{output}: it is there already; --force replaces it." in refused.stderr,
    ) == (2, True)
    assert (failed.code, "No case was written." in failed.stderr, kept) == (1, True, "mine")
    assert (done.code, done.stdout.splitlines()[-1]) == (
        0,
        f"To run them: ai-agent-service eval run {output} --agent ID",
    )
    assert json.loads(output.read_text(encoding="utf-8")) == numbered([4])[0]
    assert "Sums of two numbers." in upstream.requests[-1].json["messages"][1]["content"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--agent", "shp"), "--agent: 'shp' is not an agent. Did you mean 'shop'?"),
        (("--from", "docs"), "Give either --from or --description."),
        (("--description", " "), "--description: it says nothing."),
        (("--count", "0"), "--count"),
        (("--output", "agents.json"), "agents.json: it is there already; --force replaces it."),
        (("--output", "agents.json/x.jsonl"), "agents.json/x.jsonl: its folder cannot be made"),
    ],
)
async def test_what_cannot_be_done_as_asked_ends_with_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], told: str
) -> None:
    settings = prepared(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    done = await generated(tmp_path, settings, "--description", "Sums.", *arguments)
    assert (done.code, told in " ".join(done.stderr.split())) == (2, True), done.stderr
    assert not list((tmp_path / "output").rglob("*.jsonl"))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("opnai:x", "--model: 'opnai' is not a provider. Did you mean 'openai'?"),
        ("demo", "--model: demo is no language model and cannot write cases."),
        ("openrouter:x", "--model: openrouter cannot be asked without OPENROUTER_API_KEY."),
    ],
)
def test_a_model_that_cannot_write_cases_ends_with_code_2(
    tmp_path: Path, model: str, told: str
) -> None:
    done = invoke(
        tmp_path,
        "eval",
        "generate",
        "--model",
        model,
        "--description",
        "Sums.",
        **prepared(tmp_path),
    )
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr
    assert not list((tmp_path / "output").rglob("*.jsonl"))


def test_a_document_that_is_no_text_ends_with_code_2_and_its_name(tmp_path: Path) -> None:
    done = invoke(
        tmp_path,
        "eval",
        "generate",
        "--model",
        "openai:x",
        "--from",
        "docs/logo.png",
        **prepared(tmp_path),
    )
    assert done.returncode == 2
    assert (
        "docs/logo.png: cases are written from .md, .markdown or .txt and not from .png files. Save"
        " it as text" in done.stderr
    )


async def test_a_provider_that_is_away_ends_with_one_message_and_what_came_is_kept(
    tmp_path: Path,
) -> None:
    path = tmp_path / "output" / "datasets" / "sums.jsonl"
    async with Upstream(
        written(*numbered(range(1, 11))), reply(503, {"error": {"message": "overloaded"}})
    ) as upstream:
        settings = prepared(tmp_path, upstream.url)
        done = await generated(tmp_path, settings, "--description", "Sums.", "--count", "15")
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("Error: openai: overloaded. 10 cases: ")
    assert done.stderr.endswith(f"10 cases: {path}\n")
    assert len(read_dataset(path)) == 10
    gone = await generated(tmp_path, settings, "--description", "Others.")
    assert (gone.code, gone.stderr.count("\n"), "No case was written." in gone.stderr) == (
        1,
        1,
        True,
    )


async def test_a_model_that_writes_nothing_of_use_ends_with_code_1(tmp_path: Path) -> None:
    async with Upstream(written()) as upstream:
        done = await generated(tmp_path, prepared(tmp_path, upstream.url), "--description", "Sums.")
    assert (done.code, done.stderr) == (
        1,
        "Error: openai:gpt-x wrote no case of use. Try another model, or say more.\n",
    )
    assert not list((tmp_path / "output").rglob("*.jsonl"))


async def test_ctrl_c_loses_nothing(tmp_path: Path) -> None:
    async with Upstream(written(*numbered(range(1, 11))), [asyncio.Event()]) as upstream:
        settings = environment(**prepared(tmp_path, upstream.url))
        arguments = (
            "eval",
            "generate",
            "--model",
            "openai:x",
            "--description",
            "Sums.",
            "--count",
            "20",
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "app.main",
            *arguments,
            cwd=tmp_path,
            env=settings,
            stderr=asyncio.subprocess.PIPE,
        )
        await upstream.until(lambda: len(upstream.requests) == 2, timeout=30)
        process.send_signal(signal.SIGINT)
        _, told = await asyncio.wait_for(process.communicate(), 20)
    path = tmp_path / "output" / "datasets" / "sums.jsonl"
    assert (process.returncode, told.decode().splitlines()[-1]) == (
        130,
        f"Stopped. 10 cases: {path}",
    )
    assert len(read_dataset(path)) == 10
