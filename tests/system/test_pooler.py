"""Through pgbouncer in transaction mode, where each transaction may reach another server process,
all works as without."""

import asyncio
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.support.ledger import Ledger, ServiceProcess
from tests.support.postgres import PgBouncer, PostgresServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
def pooled(postgres_18: PostgresServer) -> Generator[str, None, None]:
    """The address of an empty database through a pooler."""
    if PgBouncer.program() is None:
        pytest.skip("there is no pgbouncer here; `make test` fetches it where apt can")
    pooler = PgBouncer(postgres_18).start()
    yield pooler.url(postgres_18.new_database())
    pooler.remove()


async def test_many_turns_at_once_are_kept_through_a_pooler(tmp_path: Path, pooled: str) -> None:
    ledger = Ledger(6)
    async with ServiceProcess(tmp_path, DATABASE_URL=pooled) as service:
        for _ in range(3):
            turns = await asyncio.gather(
                *(ledger.turn(service.client, f"pooled-{number}", ()) for number in range(20))
            )
            assert all(turn.acknowledged for turn in turns)
        asked = {"message": "and through the server's history 5", "session_id": "pooled-0"}
        answer = await service.client.post("/agents/helper/chat", json=asked)
        assert answer.status_code == 200
        conversation = (await service.client.get("/agents/helper/conversations/pooled-0")).json()
        assert [message["role"] for message in conversation["messages"]] == [
            "user",
            "assistant",
            "user",
            "assistant",
        ]
        assert await _without(ledger, "pooled-0").verify(service.client) == []
        assert (await service.client.delete("/memory")).json()["sessions"] == 20


def _without(ledger: Ledger, session: str) -> Ledger:
    """The ledger without a session that was also written to in another way."""
    ledger.turns = [turn for turn in ledger.turns if turn.session != session]
    return ledger
