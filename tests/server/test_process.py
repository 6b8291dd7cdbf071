"""How the service ends: what those see who watch it, who are being answered, and who come too
late."""

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.events import until
from tests.support.processes import list_workers, serving
from tests.support.talker import configured, ended, talking

STREAMS = 50
WORKERS = pytest.mark.parametrize(
    "workers",
    [(), pytest.param(("--workers", "2"), marks=pytest.mark.slow)],
    ids=["one", "workers"],
)
pytestmark = pytest.mark.timeout(180)


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
    with serving(tmp_path, *workers, **configured(tmp_path, DRAIN_SECONDS="5")) as (url, process):
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


@pytest.mark.slow
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
