"""DeepEval in a process of its own keeps to itself: it is loaded only where it is needed, and tells
nobody anything by default."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request

from tests.support.eval_commands import prepared
from tests.support.judges import good, judged_by
from tests.support.processes import environment
from tests.support.service import running

pytestmark = pytest.mark.timeout(180)  # to import it takes seconds

RELEVANT = {
    "id": "open",
    "input": "Is it open?",
    "expect": {"contains": "open", "answer_relevancy": {}},
}
KIND = {"id": "kind", "input": "Is it red?", "expect": {"g_eval": {"criteria": "It is kind."}}}
ASIDE = {"id": "aside", "input": "Hm?", "expect": {"contains": "Hm"}}

ALONE = """
import os, sys
own = {"127.0.0.1", "localhost", "::1"}

def watch(event, arguments):
    if event == "socket.getaddrinfo" and arguments[0] not in own:
        os.write(2, f"LEFT {arguments[0]}\\n".encode())
    if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in own:
        os.write(2, f"LEFT {arguments[1]}\\n".encode())

sys.addaudithook(watch)
from app.main import main
try:
    main()
finally:
    os.write(2, f"LOADED {'deepeval' in sys.modules} CANARY {os.environ.get('CANARY')}\\n".encode())
"""


def alone(
    folder: Path, settings: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which tells where it went and what it loaded, in a
    folder with an `.env`."""
    (folder / ".env").write_text("CANARY=seen\n", encoding="utf-8")
    (folder / "home").mkdir(exist_ok=True)
    variables = environment(**settings, HOME=str(folder / "home"))
    variables = {
        name: value
        for name, value in variables.items()
        if not name.startswith(("DEEPEVAL_", "GRPC_"))
    } | {name: value for name, value in settings.items() if name.startswith("DEEPEVAL_")}
    command = [
        sys.executable,
        "-c",
        ALONE,
        "eval",
        "run",
        "cases.jsonl",
        "--agent",
        "a",
        *arguments,
    ]
    return subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_run_without_judged_metrics_loads_nothing_of_deepeval(tmp_path: Path) -> None:
    done = alone(tmp_path, prepared(tmp_path, cases=[ASIDE]))
    assert (done.returncode, "LOADED False" in done.stderr, "LEFT" in done.stderr) == (
        0,
        True,
        False,
    ), done.stderr


def confident_ai(received: list[dict[str, Any]]) -> FastAPI:
    """A server that takes traces as Confident AI does."""
    app = FastAPI()

    @app.post("/{path:path}")
    async def take(path: str, request: Request) -> dict[str, Any]:
        received.append(
            {"path": path, "key": request.headers.get("confident-api-key"), **await request.json()}
        )
        return {"success": True, "data": {"id": "1"}, "link": None}

    return app


def test_by_default_nothing_leaves_the_machine_and_nothing_is_left_on_it(tmp_path: Path) -> None:
    received: list[dict[str, Any]] = []
    settings = prepared(tmp_path, cases=[RELEVANT, KIND])
    before = {path.name for path in tmp_path.iterdir()} | {".env", "home", "output"}
    with judged_by(good) as (judge, _), running(confident_ai(received)) as address:
        keys = {"CONFIDENT_API_KEY": "confident_us_key", "CONFIDENT_BASE_URL": address}
        done = alone(
            tmp_path, settings | judge | keys, "--judge", "openai:strict", "--fail-under", "0.9"
        )
    assert (done.returncode, "LOADED True CANARY None" in done.stderr, "LEFT" in done.stderr) == (
        0,
        True,
        False,
    ), done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith(("[", "LOADED"))] == []
    assert received == []
    assert list((tmp_path / "home").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir() if path.name != "__pycache__"} == before


def test_traces_go_to_confident_ai_where_they_are_switched_on(tmp_path: Path) -> None:
    received: list[dict[str, Any]] = []
    settings = prepared(tmp_path, cases=[RELEVANT, KIND, ASIDE])
    with judged_by(good) as (judge, _), running(confident_ai(received)) as address:
        switched_on = {
            "CONFIDENT_API_KEY": "confident_us_key",
            "CONFIDENT_BASE_URL": address,
            "CONFIDENT_TRACING_ENABLED": "true",
        }
        done = alone(tmp_path, settings | judge | switched_on, "--judge", "openai:strict")
    assert (done.returncode, "LEFT" in done.stderr) == (0, False), done.stderr
    first, second = sorted(received, key=lambda trace: str(trace["input"]))
    assert [(trace["input"], trace["output"]) for trace in (first, second)] == [
        ("Is it open?", "You asked: Is it open?"),
        ("Is it red?", "You asked: Is it red?"),
    ]
    assert (first["metadata"]["answer_relevancy"], second["metadata"]["g_eval"]) == (1.0, 0.8)
    assert first["key"] == second["key"] == "confident_us_key"
