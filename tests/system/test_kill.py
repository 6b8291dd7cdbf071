"""The service is killed at random moments: nothing that it acknowledged is lost, and nothing is
stored twice or made up."""

import asyncio
import contextlib
import random
import sqlite3
import time
from pathlib import Path

import pytest

from ai_agent_service.memory.processes import PROCESS_STALE_SECONDS
from tests.support.events import until
from tests.support.ledger import Ledger, ServiceProcess, under_load
from tests.support.postgres import DatabaseUnderTest

pytestmark = pytest.mark.slow

KILLS = 9
SESSIONS = 6


@pytest.mark.timeout(150)
@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_is_lost_when_the_service_is_killed(
    tmp_path: Path, database: DatabaseUnderTest, seed: int
) -> None:
    moments = random.Random(seed)
    ledger = Ledger(seed)
    async with ServiceProcess(tmp_path, **database.environment) as service:

        async def kills() -> None:
            for _ in range(KILLS):
                await asyncio.sleep(moments.uniform(0.0, 0.3))
                await service.kill()
                began = time.monotonic()
                await service.start()
                assert time.monotonic() - began < 15  # 5 on a machine that does nothing else
            await asyncio.sleep(0.3)

        await under_load(
            ledger, service.client, [f"{seed}-{number}" for number in range(SESSIONS)], kills
        )
        assert sum(sent.acknowledged for sent in ledger.turns) > SESSIONS
        assert any(sent.seen and not sent.acknowledged for sent in ledger.turns)
        assert await ledger.verify(service.client) == []


@pytest.mark.timeout(120)
async def test_the_runs_of_a_killed_process_become_incomplete(tmp_path: Path) -> None:
    ledger = Ledger(0)

    async def is_running() -> bool:
        with contextlib.closing(
            sqlite3.connect(tmp_path / "data" / "ai-agent-service.db")
        ) as connection:
            return bool(
                connection.execute("SELECT count(*) FROM runs WHERE status = 'running'").fetchone()[
                    0
                ]
            )

    async def is_over() -> bool:
        return not await is_running()

    async with ServiceProcess(tmp_path) as service:
        asking = asyncio.create_task(ledger.turn(service.client, "s", ()))
        await until(is_running)
        await service.kill()
        await asking
        assert await is_running()
        await service.start()
        await until(is_over, seconds=PROCESS_STALE_SECONDS + 40)
