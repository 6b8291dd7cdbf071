"""Replicas whose clocks differ, and a database whose clock jumps: no live run is abandoned, no
session's lease is stolen, and no acknowledged turn leaves its conversation."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.clocks import DatabaseClock, shift_process_clock
from tests.support.events import until
from tests.support.ledger import ServiceProcess
from tests.support.postgres import PostgresServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

HOLDING = """
import asyncio
from pathlib import Path
from ai_agent_service.core.events import TextDelta
from ai_agent_service.providers.base import ModelFinished
from ai_agent_service.providers.demo import Demo

class Holding(Demo):
    name = "steady"

    async def stream(self, request):
        question = request.messages[-1].text
        yield TextDelta(f"Answer to {question}")
        while question.startswith("slow") and not Path("GO").exists():
            await asyncio.sleep(0.02)
        yield ModelFinished("stop")
"""
"""Answers a slow question once a file is there."""


@asynccontextmanager
async def replicas(
    folder: Path, url: str, *shifts: float, **environment: str
) -> AsyncGenerator[list[ServiceProcess], None]:
    """A replica for each shift of its clock, in seconds."""
    found = []
    async with AsyncExitStack() as opened:
        for number, shift in enumerate(shifts):
            own = folder / f"replica-{number}"
            own.mkdir()
            each = ServiceProcess(
                own, DATABASE_URL=url, API_KEYS="0123456789abcdefghij", **environment
            )
            each.client.headers["authorization"] = "Bearer 0123456789abcdefghij"
            each.client.timeout = 120
            (own / "plugins" / "steady.py").write_text(
                HOLDING.replace("GO", str(folder / "go")), encoding="utf-8"
            )
            shift_process_clock(own / "plugins", shift)
            await opened.enter_async_context(each)
            found.append(each)
        yield found


async def chat(service: ServiceProcess, text: str) -> str:
    """Takes a turn with the server's history; gives the answer."""
    body = {"message": text, "session_id": "s"}
    response = await service.client.post("/agents/helper/chat", json=body)
    assert response.status_code == 200, response.text
    return str(response.json()["response"])


async def read_texts(service: ServiceProcess) -> list[str]:
    """The messages on the conversation's path."""
    response = await service.client.get("/agents/helper/conversations/s")
    return [message["content"] for message in response.json()["messages"]]


def beats(server: PostgresServer, name: str) -> dict[str, str]:
    """The last heartbeat of each process."""
    lines = server.sql("SELECT process_id, seen_at FROM processes", name).splitlines()
    return dict(line.split("|") for line in lines)


async def wait_for_beats(server: PostgresServer, name: str, number: int) -> None:
    """Waits for so many more heartbeats of every process."""
    for _ in range(number):
        before = beats(server, name)

        def have_changed(before: dict[str, str] = before) -> bool:
            now = beats(server, name)
            return all(now.get(process) != seen for process, seen in before.items())

        await until(have_changed, seconds=60)


@pytest.mark.parametrize(
    ("shifts", "jump"),
    [((600, 0, -600), None), ((0, 0), "3 days"), ((0, 0), "-3 days")],
    ids=["ten-minutes-apart", "days-ahead", "days-back"],
)
async def test_a_turn_in_progress_survives_wrong_clocks(
    tmp_path: Path, postgres_18: PostgresServer, shifts: tuple[float, ...], jump: str | None
) -> None:
    name = postgres_18.new_database()
    clock = DatabaseClock(postgres_18, name)
    settings: dict[str, Any] = {"REQUEST_TIMEOUT": "100", "MEMORY_RETENTION_DAYS": "1"}
    async with replicas(tmp_path, postgres_18.url(name), *shifts, **settings) as found:
        assert await chat(found[0], "first") == "Answer to first"
        slow = asyncio.create_task(chat(found[-1], "slow"))
        running = "SELECT count(*) FROM runs WHERE status = 'running'"
        await until(lambda: postgres_18.sql(running, name) == "1")
        following = [asyncio.create_task(chat(each, f"next {n}")) for n, each in enumerate(found)]
        if jump is not None:
            clock.jump(jump)
        await wait_for_beats(postgres_18, name, 3)
        assert postgres_18.sql(running, name) == "1"
        holder = "SELECT count(DISTINCT lease_process) FROM sessions"
        assert postgres_18.sql(holder, name) == "1"
        (tmp_path / "go").touch()
        assert await slow == "Answer to slow"
        assert sorted(await asyncio.gather(*following)) == [
            f"Answer to next {number}" for number in range(len(found))
        ]
        texts = await read_texts(found[0])
        assert texts[:4] == ["first", "Answer to first", "slow", "Answer to slow"]
        assert sorted(texts[4::2]) == [f"next {number}" for number in range(len(found))]
    assert postgres_18.sql("SELECT DISTINCT status FROM runs", name) == "done"
