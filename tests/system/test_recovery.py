"""The drills of docs/backup.md: what was backed up under load comes back elsewhere, and a promoted
replica takes over."""

import asyncio
import contextlib
import math
import os
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.events import until
from tests.support.ledger import Ledger, Sent, ServiceProcess
from tests.support.postgres import PostgresServer, binaries_18

USERS = ("ann", "bob", "cem")
SESSIONS = {f"{user}-{number}": user for user in USERS for number in range(2)}
PROGRAMS = f"{binaries_18()}{os.pathsep}{os.environ['PATH']}"
"""Where the commands find pg_dump and psql."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@contextlib.contextmanager
def server(**settings: object) -> Generator[PostgresServer, None, None]:
    """A new server, which the test may break."""
    made = PostgresServer(binaries_18(), **settings).make().start()
    try:
        yield made
    finally:
        made.remove()


@asynccontextmanager
async def talking(ledger: Ledger, service: ServiceProcess) -> AsyncGenerator[None, None]:
    """Two conversations of each user, which go on while the block does."""
    stop = asyncio.Event()
    talks = [
        asyncio.create_task(ledger.talk(service.client, session, stop, think=0.1, user=user))
        for session, user in SESSIONS.items()
    ]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*talks)


async def acknowledged(ledger: Ledger, *, turns: int) -> None:
    """Waits until so many more turns were acknowledged in each conversation."""
    since = time.time()

    async def met() -> bool:
        return all(
            sum(since < sent.at < math.inf for sent in ledger.turns if sent.session == each)
            >= turns
            for each in SESSIONS
        )

    await until(met, seconds=60)


async def succeeds(service: ServiceProcess, *arguments: str) -> str:
    """What a command says."""
    code, said = await service.command(*arguments)
    assert code == 0, said
    return said


async def goes_on(ledger: Ledger, service: ServiceProcess, since: float) -> None:
    """Has each conversation go on from its newest turn that was acknowledged before `since`."""
    for session, user in SESSIONS.items():
        last = max(
            (sent for sent in ledger.turns if sent.session == session and sent.at < since),
            key=lambda sent: sent.at,
        )
        sent = await ledger.turn(
            service.client, session, (*last.history, last.question, last.seen), user=user
        )
        assert sent.acknowledged


async def nobody_sees_others(service: ServiceProcess) -> None:
    """Each user is shown the own conversations and nothing of anybody else."""
    for user in USERS:
        shown = (await service.client.get("/memory", params={"user_id": user})).text
        assert [other for other in USERS if f"{other}-" in shown] == [user]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_all_that_was_acknowledged_before_a_backup_comes_back_elsewhere(
    tmp_path: Path, kind: str
) -> None:
    live, backups, elsewhere = (tmp_path / name for name in ("live", "backups", "elsewhere"))
    for folder in (live, backups, elsewhere):
        folder.mkdir()
    variables = {
        "MEMORY_ENCRYPTION_KEYS": secrets.token_hex(32),
        "PATH": PROGRAMS,
        "DATABASE_TIMEOUT": "2",
    }
    ledger = Ledger(7)
    with contextlib.ExitStack() as stack:
        there = (
            {"DATABASE_URL": stack.enter_context(server()).url()} if kind == "postgresql" else {}
        )
        async with ServiceProcess(live, **variables, **there) as service, talking(ledger, service):
            await acknowledged(ledger, turns=3)
            began = time.time()
            await succeeds(service, "backup", str(backups))
            await acknowledged(ledger, turns=2)
            await service.kill()
            stack.close()
            shutil.rmtree(live)
    destroyed = time.time()

    [made] = backups.iterdir()
    unpacked = await asyncio.create_subprocess_exec(
        "tar", "-xzf", str(made / "config-backup.tar.gz"), cwd=elsewhere
    )
    assert await unpacked.wait() == 0
    with contextlib.ExitStack() as stack:
        new = {"DATABASE_URL": stack.enter_context(server()).url()} if kind == "postgresql" else {}
        service = ServiceProcess(elsewhere, **variables, **new)
        [file] = made.glob("conversations.*")
        await succeeds(service, "db", "restore", str(file))
        assert "can be used" in await succeeds(service, "db", "check")

        def may_be_lost(sent: Sent) -> bool:
            return began < sent.at < destroyed or sent.at == math.inf

        async with service:
            assert await ledger.verify(service.client, may_be_lost) == []
            assert any("lost" in problem for problem in await ledger.verify(service.client)), (
                "the database was not destroyed"
            )
            await goes_on(ledger, service, began)
            assert await ledger.verify(service.client, may_be_lost) == []
            await nobody_sees_others(service)


async def test_a_promoted_replica_takes_over_with_all_that_was_acknowledged(tmp_path: Path) -> None:
    ledger = Ledger(8)
    with server() as primary, contextlib.ExitStack() as stack:
        replica = primary.replica()
        stack.callback(replica.remove)
        # Only a primary that waits for its replica loses nothing with its machine.
        primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.sql("SELECT pg_reload_conf()")
        credentials, _, _ = primary.url().rpartition("@")
        both = f"{credentials}@127.0.0.1:{primary.port},127.0.0.1:{replica.port}/postgres"
        async with ServiceProcess(
            tmp_path, DATABASE_URL=both, DATABASE_REPLICA_URL=replica.url(), DATABASE_TIMEOUT="2"
        ) as service:
            async with talking(ledger, service):
                await acknowledged(ledger, turns=2)
                code, refused = await service.command("db", "promote")
                assert (code, refused.partition(" takes writes. ")[0]) == (
                    1,
                    f"Error: 127.0.0.1:{primary.port}",
                )
                await asyncio.to_thread(primary.kill)
                said = await succeeds(service, "db", "promote")
                promoted = time.monotonic()
                assert said.splitlines() == [
                    (
                        f"127.0.0.1:{replica.port} is the primary now. Services whose DATABASE_URL"
                        " names it find it by themselves."
                    ),
                    (
                        f"127.0.0.1:{primary.port} did not answer. It must not take writes when it"
                        f" comes back: make it a replica of 127.0.0.1:{replica.port} first."
                    ),
                ]
                await service.until("/memory", lambda status: status == 200)
                assert time.monotonic() - promoted < 10
                await acknowledged(ledger, turns=2)
            assert await ledger.verify(service.client) == []
            await nobody_sees_others(service)
