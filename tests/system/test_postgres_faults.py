"""PostgreSQL is killed, frozen, absent, exhausted and replaced under load: what was acknowledged
stays, and all recovers."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg
import httpx2
import pytest

from tests.support.events import until
from tests.support.ledger import Ledger, ServiceProcess, under_load
from tests.support.postgres import PostgresServer, binaries_18

SESSIONS = [f"session-{number}" for number in range(6)]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
def server() -> Generator[PostgresServer, None, None]:
    """A server that the test may break."""
    server = PostgresServer(binaries_18(), max_connections=20).make().start()
    yield server
    server.remove()


async def asked(client: httpx2.AsyncClient, agent: str, session: str = "one") -> httpx2.Response:
    """An answer of an agent."""
    return await client.post(
        f"/agents/{agent}/chat", json={"message": "a question", "session_id": session}
    )


@asynccontextmanager
async def talking(ledger: Ledger, client: httpx2.AsyncClient) -> AsyncGenerator[None, None]:
    """Clients that talk while the block goes on."""
    stop = asyncio.Event()
    talks = [asyncio.create_task(ledger.talk(client, session, stop)) for session in SESSIONS]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*talks)


async def broken(
    ledger: Ledger, server: PostgresServer, service: ServiceProcess, times: int
) -> None:
    """Talks while the server is killed and started again."""

    async def kills() -> None:
        for _ in range(times):
            await asyncio.sleep(0.4)
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(0.1)
            await asyncio.to_thread(server.start)
            await service.until("/memory", lambda status: status == 200)
        await asyncio.sleep(0.4)

    await under_load(ledger, service.client, SESSIONS, kills)


async def test_nothing_is_lost_when_the_database_is_killed(
    tmp_path: Path, server: PostgresServer
) -> None:
    ledger = Ledger(1)
    async with ServiceProcess(tmp_path, DATABASE_URL=server.url(), DATABASE_TIMEOUT="2") as service:
        await broken(ledger, server, service, 4)
        assert sum(sent.acknowledged for sent in ledger.turns) > len(SESSIONS)
        assert {sent.status for sent in ledger.turns} <= {200, 503}
        assert await ledger.verify(service.client) == []


async def test_the_ledger_shows_the_loss_of_a_database_that_does_not_wait_for_its_disk(
    tmp_path: Path,
) -> None:
    late = {
        "synchronous_commit": "off",
        "wal_writer_delay": "10s",
        "wal_writer_flush_after": "1GB",
        "wal_buffers": "64MB",
    }
    careless = PostgresServer(binaries_18(), **late).make().start()
    ledger = Ledger(2)
    try:
        async with ServiceProcess(
            tmp_path, DATABASE_URL=careless.url(), DATABASE_TIMEOUT="2"
        ) as service:
            careless.sql("CHECKPOINT")  # so that it loses turns and not the tables
            await broken(ledger, careless, service, 3)
            assert any(
                "acknowledged and lost" in problem
                for problem in await ledger.verify(service.client)
            )
    finally:
        careless.remove()


async def test_a_frozen_database_holds_nobody_up(tmp_path: Path, server: PostgresServer) -> None:
    ledger = Ledger(3)
    async with (
        ServiceProcess(tmp_path, DATABASE_URL=server.url(), DATABASE_TIMEOUT="1") as service,
        talking(ledger, service.client),
    ):
        await asyncio.sleep(0.5)
        server.freeze()
        try:
            await service.until("/memory", lambda status: status == 503)
            began = time.monotonic()
            refused = await asked(service.client, "helper", "another")
            assert (refused.status_code, refused.json()["error"]["code"]) == (
                503,
                "memory_unavailable",
            )
            assert int(refused.headers["retry-after"]) >= 1
            assert (await service.client.get("/health?detailed=true")).json()["database"][
                "state"
            ] == "down"
            assert (await asked(service.client, "plain")).status_code == 200
            without = await asked(service.client, "lenient")
            assert (without.status_code, without.headers["x-memory"]) == (200, "unavailable")
            assert time.monotonic() - began < 5
        finally:
            server.thaw()
        await service.until("/memory", lambda status: status == 200)
        assert (await asked(service.client, "helper", "another")).status_code == 200
    async with ServiceProcess(tmp_path, DATABASE_URL=server.url()) as service:
        assert await ledger.verify(service.client) == []


async def test_a_database_that_is_absent_at_start_is_found_when_it_comes(
    tmp_path: Path, server: PostgresServer
) -> None:
    server.stop()
    service = ServiceProcess(
        tmp_path, DATABASE_URL=server.url(), DATABASE_TIMEOUT="2", ALLOW_UNAUTHENTICATED="true"
    )
    await service.start(path="/health")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(service.client.aclose)
        try:
            assert await service.status("/memory") == 503
            assert await service.status("/health/ready") == 200, (
                "agents without a memory can be served"
            )
            assert (await asked(service.client, "helper")).status_code == 503
            assert (await asked(service.client, "plain")).status_code == 200
            assert (await service.client.get("/agents/helper")).json()["available"] is False
            await asyncio.to_thread(server.start)
            await service.until("/memory", lambda status: status == 200)
            assert (await asked(service.client, "helper")).status_code == 200
        finally:
            await service.kill()


async def test_more_streams_than_connections_are_all_answered(
    tmp_path: Path, server: PostgresServer
) -> None:
    ledger = Ledger(4)
    async with ServiceProcess(
        tmp_path, DATABASE_URL=server.url(), DATABASE_POOL_SIZE="2"
    ) as service:
        turns = await asyncio.gather(
            *(ledger.turn(service.client, f"many-{number}", ()) for number in range(60))
        )
        assert all(turn.acknowledged for turn in turns)
        held = server.sql(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ai-agent-service'"
        )
        assert int(held) <= 2
        assert await ledger.verify(service.client) == []


async def test_a_server_without_a_free_connection_is_told_as_503(
    tmp_path: Path, server: PostgresServer
) -> None:
    async with ServiceProcess(tmp_path, DATABASE_URL=server.url(), DATABASE_TIMEOUT="2") as service:
        assert (await asked(service.client, "helper")).status_code == 200
        ends = (
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name ="
            " 'ai-agent-service'"
        )
        others: list[asyncpg.Connection] = []

        async def take_free_connections() -> None:
            with contextlib.suppress(asyncpg.TooManyConnectionsError):
                while len(others) <= 20:
                    others.append(await asyncpg.connect(server.url()))

        statuses = set()
        try:
            await take_free_connections()
            while 503 not in statuses:  # the service may be the first to connect again
                await others[0].execute(ends)
                await take_free_connections()
                assert len(others) <= 20
                statuses.add((await asked(service.client, "helper")).status_code)
            assert statuses <= {200, 503}
        finally:
            for other in others:
                await other.close()
        await service.until("/memory", lambda status: status == 200)
        assert (await asked(service.client, "helper")).status_code == 200


@pytest.mark.parametrize("history", ["client", "server"])
async def test_a_turn_whose_commit_nobody_confirms_is_stored_once(
    tmp_path: Path, server: PostgresServer, history: str
) -> None:
    """The synchronous standby is away: commits are durable here, and wait for it for ever."""
    settings = {"DATABASE_URL": server.url(), "DATABASE_TIMEOUT": "1"}
    async with ServiceProcess(tmp_path, **settings) as service:

        async def ask(text: str) -> httpx2.Response:
            body = {"model": "helper", "messages": [{"role": "user", "content": text}]}
            headers = {"X-Session-Id": "one", "X-Session-History": history}
            return await service.client.post("/v1/chat/completions", json=body, headers=headers)

        def set_standby(name: str) -> None:
            server.sql(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
            server.sql("SELECT pg_reload_conf()")

        set_standby("away")
        await until(lambda: server.sql("SHOW synchronous_standby_names") == "away")
        answer = await ask("Hello")
        assert answer.status_code == 503
        assert "Send the same again: it is stored once." in answer.json()["error"]["message"]
        assert answer.headers["retry-after"]
        # With the server's history the turn first takes its session, which was not confirmed.
        stored = "1" if history == "client" else "0"
        assert server.sql("SELECT count(*) FROM nodes") == stored
        set_standby("")

        async def is_answered() -> bool:
            return (await ask("Hello")).status_code == 200

        await until(is_answered)
        assert server.sql("SELECT role, count(*) FROM nodes GROUP BY 1 ORDER BY 1") == (
            "assistant|1\nuser|1"
        )


async def test_a_start_while_commits_hang_is_alive_and_becomes_ready(
    tmp_path: Path, server: PostgresServer
) -> None:
    server.sql("ALTER SYSTEM SET synchronous_standby_names = 'away'")
    server.sql("SELECT pg_reload_conf()")
    await until(lambda: server.sql("SHOW synchronous_standby_names") == "away")
    service = ServiceProcess(tmp_path, DATABASE_URL=server.url())
    async with AsyncExitStack() as opened:
        opened.push_async_exit(service.__aexit__)
        began = time.monotonic()
        await service.start(path="/health/live")
        assert time.monotonic() - began < 20  # far less where the machine is not busy
        ready = await service.client.get("/health/ready")
        assert ready.status_code == 503
        assert ready.json()["problems"] == ["The database is being prepared."]
        answer = await asked(service.client, "helper")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        server.sql("ALTER SYSTEM RESET synchronous_standby_names")
        server.sql("SELECT pg_reload_conf()")
        await service.until("/health/ready", lambda status: status == 200)
        assert (await asked(service.client, "helper")).status_code == 200
