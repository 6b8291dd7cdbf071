"""How the service ends: what those see who watch it, who are being answered, and who come too
late."""

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.events import until
from tests.support.mcp_rogue import ROGUE
from tests.support.processes import list_workers, serving

STREAMS = 50
WORKERS = pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["one", "workers"])
pytestmark = pytest.mark.timeout(180)

TALKER = """
import asyncio
from pathlib import Path
from ai_agent_service.core.events import TextDelta
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.base import ModelFinished
from ai_agent_service.providers.demo import Demo

class Talker(Demo):
    name = "talker"

    async def stream(self, request):
        last = request.messages[-1].text
        while last != "quick" and not (last.startswith("ends") and Path("end").exists()):
            yield TextDelta("word ")
            await asyncio.sleep(0.1)
        yield ModelFinished("stop", (), Usage(1, 1))
"""


def configured(folder: Path, **variables: str) -> dict[str, str]:
    """The environment of a service in `folder` with an agent `a` that talks until it is told to
    end, remembers, and has an MCP server."""
    (folder / "talker.py").write_text(TALKER, encoding="utf-8")
    agent = {
        "agent_id": "a",
        "system_prompt": "x",
        "provider": "talker",
        "resources": ["memory"],
        "allowed_mcp_servers": {"rogue": {}},
    }
    (folder / "agents.json").write_text(json.dumps([agent]), encoding="utf-8")
    server = {
        "server_label": "rogue",
        "command": sys.executable,
        "args": [ROGUE, "behaves", str(folder)],
    }
    (folder / "mcp.json").write_text(json.dumps([server]), encoding="utf-8")
    return {
        "AGENT_CONFIG_FILE": "agents.json",
        "PLUGINS_DIR": str(folder),
        "ALLOW_UNAUTHENTICATED": "true",
        **variables,
    }


async def talk(client: httpx2.AsyncClient, question: str, begun: asyncio.Event) -> str:
    """All that a stream brings, to its end."""
    body = {"model": "a", "messages": [{"role": "user", "content": question}], "stream": True}
    said = ""
    async with client.stream(
        "POST", "/v1/chat/completions", json=body, headers={"X-Session-Id": question}
    ) as response:
        assert response.status_code == 200
        async for piece in response.aiter_text():
            said += piece
            if "word" in said:
                begun.set()
    return said


@contextlib.asynccontextmanager
async def talking(
    url: str, *questions: str
) -> AsyncGenerator[tuple[httpx2.AsyncClient, list[asyncio.Task[str]]], None]:
    """A client, and streams that have begun."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx2.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        begun = [asyncio.Event() for _ in questions]
        streams = [
            asyncio.create_task(talk(client, *each)) for each in zip(questions, begun, strict=True)
        ]
        async with asyncio.timeout(60):
            await asyncio.gather(*(event.wait() for event in begun))
        yield client, streams


async def ended(process: "subprocess.Popen[str]", *, within: float) -> int:
    """The exit code."""
    return await asyncio.to_thread(process.wait, within)


def error_in(said: str) -> str | None:
    """The code of a stream's error; None if it has none. The stream has to be whole."""
    events = [line.removeprefix("data: ") for line in said.split("\n") if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    last: dict[str, Any] = json.loads(events[-2])
    return last["error"]["code"] if "error" in last else None


def stored(folder: Path) -> dict[str, int]:
    """How many answers there are of each status, of those that say something."""
    with contextlib.closing(sqlite3.connect(folder / "data" / "ai-agent-service.db")) as database:
        found = database.execute(
            "SELECT status, count(*) FROM nodes WHERE role = 'assistant' AND body LIKE '%word%'"
            " GROUP BY status"
        ).fetchall()
    return dict(found)


def alive(folder: Path) -> list[int]:
    """The MCP servers that run."""
    return [
        pid
        for path in folder.glob("pid-*")
        if Path(f"/proc/{(pid := int(path.name[4:]))}").exists()
    ]


@WORKERS
async def test_told_to_stop_the_service_lets_streams_end_and_tells_the_rest(
    tmp_path: Path, workers: tuple[str, ...]
) -> None:
    short = [f"ends {number}" for number in range(STREAMS // 2)]
    long = [f"stays {number}" for number in range(STREAMS // 2)]
    with serving(tmp_path, *workers, **configured(tmp_path, SHUTDOWN_TIMEOUT="8")) as (
        url,
        process,
    ):
        async with talking(url, *short, *long) as (client, streams):

            async def has_servers() -> bool:
                return len(alive(tmp_path)) >= (2 if workers else 1)

            await until(has_servers)
            assert (await client.get("/health/ready")).status_code == 200
            process.send_signal(signal.SIGTERM)
            told = time.monotonic()

            async def not_ready() -> bool:
                return (await client.get("/health/ready")).status_code == 503

            await until(not_ready, seconds=10)
            assert (await client.get("/health/live")).status_code == 200
            assert (await client.get("/health")).json()["status"] == "healthy"

            async def refuses() -> bool:
                late = await client.post(
                    "/v1/chat/completions",
                    json={"model": "a", "messages": [{"role": "user", "content": "quick"}]},
                )
                if late.status_code == 503 and late.json()["error"]["code"] == "shutting_down":
                    assert (int(late.headers["retry-after"]), late.headers["connection"]) == (
                        1,
                        "close",
                    )
                    return True
                return False

            await until(refuses, seconds=10)
            assert not any(stream.done() for stream in streams)
            (tmp_path / "end").touch()
            said = await asyncio.wait_for(asyncio.gather(*streams), 40)
        assert await ended(process, within=20) == 0
        assert time.monotonic() - told < 8 + 3 + 15
    assert [error_in(each) for each in said] == [None] * len(short) + ["shutting_down"] * len(long)
    assert all('"finish_reason":"stop"' in each for each in said[: len(short)])
    assert stored(tmp_path) == {"complete": len(short), "incomplete": len(long)}
    assert alive(tmp_path) == []


@WORKERS
async def test_while_load_balancers_take_notice_all_is_served_as_before(
    tmp_path: Path, workers: tuple[str, ...]
) -> None:
    (tmp_path / "end").touch()
    with serving(tmp_path, *workers, **configured(tmp_path, DRAIN_SECONDS="10")) as (url, process):
        async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
            assert (await client.get("/health/ready")).status_code == 200
            process.send_signal(signal.SIGTERM)

            async def not_ready() -> bool:
                return (await client.get("/health/ready")).status_code == 503

            await until(not_ready, seconds=10)
            answer = await client.post(
                "/v1/chat/completions",
                json={"model": "a", "messages": [{"role": "user", "content": "ends"}]},
            )
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert await ended(process, within=40) == 0


@WORKERS
async def test_told_twice_the_service_ends_at_once(
    tmp_path: Path, workers: tuple[str, ...]
) -> None:
    patience = {"DRAIN_SECONDS": "50", "SHUTDOWN_TIMEOUT": "100"}
    with serving(tmp_path, *workers, **configured(tmp_path, **patience)) as (url, process):
        async with talking(url, "stays 1", "stays 2") as (client, streams):
            process.send_signal(signal.SIGTERM)

            async def not_ready() -> bool:
                return (await client.get("/health/ready")).status_code == 503

            await until(not_ready, seconds=10)
            process.send_signal(signal.SIGINT)
            said = await asyncio.wait_for(asyncio.gather(*streams), 15)
        assert await ended(process, within=15) == 0, process.stderr.read() if process.stderr else ""
    assert [error_in(each) for each in said] == ["shutting_down"] * 2
    assert stored(tmp_path) == {"incomplete": 2}
    assert alive(tmp_path) == []


async def test_a_service_manager_that_tells_each_process_hurries_none(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2", **configured(tmp_path, SHUTDOWN_TIMEOUT="100")) as (
        url,
        process,
    ):
        async with talking(url, "ends 1", "ends 2", "ends 3") as (client, streams):
            for pid in (process.pid, *list_workers(process)):
                os.kill(pid, signal.SIGTERM)

            async def not_ready() -> bool:
                return (await client.get("/health/ready")).status_code == 503

            await until(not_ready, seconds=10)
            (tmp_path / "end").touch()
            said = await asyncio.wait_for(asyncio.gather(*streams), 20)
        assert await ended(process, within=20) == 0
    assert [error_in(each) for each in said] == [None] * 3


def test_workers_that_cannot_start_end_the_service(tmp_path: Path) -> None:
    broken = (
        "from ai_agent_service.providers.demo import Demo\nclass Broken(Demo):\n    name ="
        " 'broken'\n    @classmethod\n    def from_setup(cls, setup):\n"
    )
    (tmp_path / "broken.py").write_text(
        broken + "        raise RuntimeError('no')\n", encoding="utf-8"
    )
    (tmp_path / "agents.json").write_text(
        '[{"agent_id": "a", "system_prompt": "x", "provider": "broken"}]', encoding="utf-8"
    )
    with serving(
        tmp_path, "--workers", "2", AGENT_CONFIG_FILE="agents.json", PLUGINS_DIR=str(tmp_path)
    ) as (_, process):
        assert process.wait(60) == 3


async def test_a_worker_that_cannot_restart_leaves_the_others_and_the_service_ends_with_the_last(
    tmp_path: Path,
) -> None:
    with serving(tmp_path, "--workers", "2", **configured(tmp_path)) as (url, process):
        async with httpx2.AsyncClient(base_url=url, timeout=30) as client:

            async def answers() -> bool:
                with contextlib.suppress(httpx2.TransportError):
                    return "aas_workers 2.0" in (await client.get("/metrics")).text
                return False

            await until(answers, seconds=60)
            first, second = list_workers(process)
            agents = (tmp_path / "agents.json").read_text(encoding="utf-8")
            (tmp_path / "agents.json").write_text("[{", encoding="utf-8")
            os.kill(first, signal.SIGKILL)

            async def is_tried_again() -> bool:
                return len(set(list_workers(process)) - {first, second}) == 1

            async def is_alone() -> bool:
                return list_workers(process) == [second]

            await until(is_tried_again)
            await until(is_alone)
            (tmp_path / "agents.json").write_text(agents, encoding="utf-8")
            await until(answers, seconds=60)
        (tmp_path / "agents.json").write_text("[{", encoding="utf-8")
        for pid in list_workers(process):
            os.kill(pid, signal.SIGKILL)
        assert await ended(process, within=60) == 3


async def test_a_worker_that_dies_is_followed_by_another(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2", **configured(tmp_path)) as (url, process):
        async with talking(url, "stays") as (client, [stream]):
            before = list_workers(process)
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            await asyncio.wait((stream,), timeout=20)
            assert isinstance(stream.exception(), httpx2.TransportError)

            async def is_back() -> bool:
                with contextlib.suppress(httpx2.TransportError):
                    return (await client.get("/health/ready")).status_code == 200
                return False

            await until(is_back, seconds=60)
            assert not set(before) & set(list_workers(process))
        process.send_signal(signal.SIGTERM)
        assert await ended(process, within=40) == 0


async def test_workers_do_not_outlive_their_parent(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2", ALLOW_UNAUTHENTICATED="true") as (url, process):
        async with httpx2.AsyncClient(base_url=url) as client:

            async def answers() -> bool:
                with contextlib.suppress(httpx2.TransportError):
                    return (await client.get("/health/live")).status_code == 200
                return False

            await until(answers)
        workers = list_workers(process)
        assert len(workers) == 2
        process.kill()

        async def are_gone() -> bool:
            return not any(Path(f"/proc/{pid}").exists() for pid in workers)

        try:
            await until(are_gone)
        finally:
            for pid in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
