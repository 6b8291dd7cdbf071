"""The database as the service sees it: deadlines, faults and recovery, on each kind of database."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import Connection, exc, text

from ai_agent_service.core.errors import MemoryUnavailableError
from ai_agent_service.storage.clock import read_database_time
from ai_agent_service.storage.database import Database, DatabaseError
from ai_agent_service.storage.engine import DatabaseEngine, ping
from tests.support.events import until, wait_until
from tests.support.postgres import (
    PASSWORD,
    QUOTED,
    DatabaseUnderTest,
    PostgresServer,
    binaries_18,
    free_port,
)
from tests.support.storage import make_engine, until_usable

POSTGRES = pytest.mark.parametrize("database", ["postgres18"], indirect=True)
SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@asynccontextmanager
async def opened(
    url: str, *, replica: str | None = None, timeout: float = 5, pool_size: int = 2
) -> AsyncGenerator[Database, None]:
    """The database at an address, with one table, `kept`."""

    async def prepare(engine: DatabaseEngine) -> None:
        await engine.run(
            lambda connection: connection.execute(
                text("CREATE TABLE IF NOT EXISTS kept (value INTEGER UNIQUE)")
            ),
            write=True,
        )

    database = Database(
        make_engine(url, timeout=timeout, pool_size=pool_size),
        None if replica is None else make_engine(replica, timeout=timeout, read_only=True),
        timeout=timeout,
        prepare=prepare,
    )
    await database.open()
    try:
        yield database
    finally:
        async with asyncio.timeout(30):
            await database.close()


def add(value: int) -> Callable[[Connection], None]:
    """Work that stores a value."""

    def work(connection: Connection) -> None:
        connection.execute(text("INSERT INTO kept VALUES (:value)"), {"value": value})

    return work


def put(value: int) -> Callable[[Connection], None]:
    """As `add`, and it may be done again."""

    def work(connection: Connection) -> None:
        connection.execute(
            text("INSERT INTO kept VALUES (:value) ON CONFLICT DO NOTHING"), {"value": value}
        )

    return work


def values(connection: Connection) -> list[int]:
    """Work that reads the values."""
    return list(connection.execute(text("SELECT value FROM kept ORDER BY value")).scalars())


def sleeping(seconds: float) -> Callable[[Connection], None]:
    """Work that takes its time."""

    def work(connection: Connection) -> None:
        if connection.dialect.name == "sqlite":
            time.sleep(seconds)
        else:
            connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})

    return work


# Files


@pytest.mark.parametrize("was_there", [False, True])
async def test_only_the_owner_may_read_the_files_of_a_database(
    tmp_path: Path, was_there: bool
) -> None:
    tmp_path.chmod(0o755)
    if was_there:
        with contextlib.closing(sqlite3.connect(tmp_path / "x.db")) as there:
            there.execute("CREATE TABLE old (value)")
        (tmp_path / "x.db").chmod(0o644)
    async with opened(f"sqlite:///{tmp_path / 'x.db'}") as found:
        await found.write(add(1))
        files = list(tmp_path.iterdir())
        assert {file.name for file in files} == {"x.db", "x.db-wal", "x.db-shm"}
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


async def test_a_damaged_file_that_still_answers_is_logged_once_for_each_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(connection: Connection) -> None:
        raise exc.DatabaseError("SELECT", {}, sqlite3.DatabaseError("malformed"))

    def said() -> list[str]:
        names = [record.message for record in caplog.records]
        return [name for name in names if name.startswith("database.")]

    monkeypatch.setattr("ai_agent_service.storage.database.PING_SECONDS", 0.01)
    async with opened(f"sqlite:///{tmp_path / 'x.db'}") as found:
        for _ in range(5):
            with pytest.raises(MemoryUnavailableError):
                await found.read(fail)
            await until(lambda: found.problem is None)
        expected = ["database.lost", "database.back", "database.keeps_failing"]
        assert said() == expected
        monkeypatch.setattr("ai_agent_service.storage.database.STABLE_SECONDS", 0.05)
        with pytest.raises(MemoryUnavailableError):
            await found.read(fail)
        await until(lambda: said() == [*expected, "database.back"])


# Transactions


async def test_what_is_written_can_be_read(database: DatabaseUnderTest) -> None:
    async with opened(database.url) as found:
        await found.write(add(1))
        assert await found.read(values) == [1]


async def test_a_transaction_that_raises_is_undone(database: DatabaseUnderTest) -> None:
    def work(connection: Connection) -> None:
        add(1)(connection)
        raise ZeroDivisionError

    async with opened(database.url) as found:
        with pytest.raises(ZeroDivisionError):
            await found.write(work)
        assert await found.read(values) == []
        assert found.problem is None


async def test_a_fault_of_ours_is_raised_and_the_database_is_not_blamed(
    database: DatabaseUnderTest,
) -> None:
    async with opened(database.url) as found:
        await found.write(add(1))
        with pytest.raises(exc.IntegrityError):
            await found.write(add(1))
        assert found.problem is None
        await found.write(add(2))
        assert await found.read(values) == [1, 2]


async def test_values_that_the_driver_does_not_take_are_our_fault_too(
    database: DatabaseUnderTest,
) -> None:
    async with opened(database.url) as found:
        with pytest.raises(exc.StatementError):
            await found.write(
                lambda connection: connection.execute(
                    text("INSERT INTO kept VALUES (:value)"), {"value": object()}
                )
            )
        assert found.problem is None
        assert await found.read(values) == []


async def test_one_of_many_transactions_at_once_that_fails_is_undone_alone(
    database: DatabaseUnderTest,
) -> None:
    async with opened(database.url) as found:
        await found.write(add(7))
        results = await asyncio.gather(
            *(found.write(add(value)) for value in range(20)), return_exceptions=True
        )
        assert [place for place, result in enumerate(results) if result is not None] == [7]
        assert isinstance(results[7], exc.IntegrityError)
        assert await found.read(values) == list(range(20))


async def test_the_clock_is_the_databases_with_its_zone(database: DatabaseUnderTest) -> None:
    async with opened(database.url) as found:
        moment = await found.read(read_database_time)
    assert moment.tzinfo is not None
    assert abs(moment.timestamp() - time.time()) < 60


# Deadlines


async def test_a_transaction_past_its_time_is_left_and_the_next_one_works(
    database: DatabaseUnderTest,
) -> None:
    async with opened(database.url, timeout=0.5) as found:
        began = time.monotonic()
        with pytest.raises(MemoryUnavailableError) as raised:
            await found.write(sleeping(3))
        assert time.monotonic() - began < 2.5
        assert raised.value.retry_after
        await found.write(put(1), wait=20)
        assert found.problem is None
        assert await found.read(values) == [1]


async def test_a_transaction_may_have_more_time_than_others(database: DatabaseUnderTest) -> None:
    async with opened(database.url, timeout=0.5) as found:
        await found.write(sleeping(1), timeout=10)
        assert found.problem is None


@POSTGRES
async def test_what_is_left_behind_does_not_go_on_in_the_server(
    database: DatabaseUnderTest,
) -> None:
    async with opened(database.url, timeout=0.5) as found:
        with pytest.raises(MemoryUnavailableError):
            await found.write(sleeping(30))
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(%' AND state ="
            " 'active' AND pid <> pg_backend_pid()"
        )
        await asyncio.to_thread(wait_until, lambda: database.server.sql(query) == "0")


async def test_a_caller_that_leaves_does_not_hold_its_connection(
    database: DatabaseUnderTest,
) -> None:
    async with opened(database.url, pool_size=1) as found:
        leaving = asyncio.create_task(found.write(sleeping(0.5)))
        await asyncio.sleep(0.1)
        leaving.cancel()
        await asyncio.wait((leaving,))
        assert leaving.cancelled()
        await found.write(add(1))
        assert found.problem is None


@SQLITE
@pytest.mark.parametrize("others", [[], [2, 3]], ids=["alone", "together"])
async def test_what_was_left_before_it_began_is_not_done(
    database: DatabaseUnderTest, others: list[int]
) -> None:
    async with opened(database.url) as found:
        busy = asyncio.create_task(found.write(sleeping(0.5)))
        await asyncio.sleep(0.1)
        waiting = [asyncio.create_task(found.write(add(value))) for value in (1, *others)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.wait((busy, *waiting))
        assert await found.read(values) == others


@POSTGRES
async def test_a_full_pool_is_told_quickly_and_the_database_is_not_taken_for_lost(
    database: DatabaseUnderTest,
) -> None:
    async with opened(database.url, timeout=1, pool_size=1) as found:
        holding = asyncio.create_task(found.write(sleeping(4), timeout=20))
        await asyncio.sleep(0.2)
        began = time.monotonic()
        with pytest.raises(MemoryUnavailableError):
            await found.write(add(1))
        assert time.monotonic() - began < 3
        assert found.problem is None
        await holding
        await found.write(add(1))


@POSTGRES
async def test_a_transaction_that_lost_against_another_is_tried_again(
    database: DatabaseUnderTest,
) -> None:
    tried: list[int] = []

    def crosswise(first: int, second: int) -> Callable[[Connection], None]:
        def work(connection: Connection) -> None:
            tried.append(first)
            for value in (first, second):
                connection.execute(
                    text("UPDATE kept SET value = value WHERE value = :value"), {"value": value}
                )
                connection.execute(text("SELECT pg_sleep(0.3)"))

        return work

    async with opened(database.url, timeout=10) as found:
        await asyncio.gather(found.write(add(1)), found.write(add(2)))
        await asyncio.gather(found.write(crosswise(1, 2)), found.write(crosswise(2, 1)))
        assert found.problem is None
    assert len(tried) == 3


@SQLITE
async def test_a_file_that_another_process_writes_is_waited_for(
    database: DatabaseUnderTest,
) -> None:
    async with opened(database.url, timeout=1) as found:
        with contextlib.closing(
            sqlite3.connect(database.url.removeprefix("sqlite:///"), isolation_level=None)
        ) as other:
            other.execute("BEGIN IMMEDIATE")
            assert await found.read(values) == []
            with pytest.raises(MemoryUnavailableError):
                await found.write(add(1))
            other.execute("COMMIT")
        await found.write(put(2), wait=20)
        assert 2 in await found.read(values)


@SQLITE
async def test_many_writers_of_a_file_leave_its_readers_alone(database: DatabaseUnderTest) -> None:
    async with opened(database.url) as found:
        writing = asyncio.create_task(found.write(sleeping(1)))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        assert await found.read(values) == []
        assert time.monotonic() - began < 0.7
        await writing


# Absent, lost, back


@pytest.fixture
def server() -> Generator[PostgresServer, None, None]:
    """A server that the test may break."""
    server = PostgresServer(binaries_18()).make()
    yield server
    server.remove()


async def test_a_server_that_is_absent_at_start_is_found_when_it_comes(
    server: PostgresServer,
) -> None:
    async with opened(server.url(), timeout=2) as found:
        assert found.problem is not None
        began = time.monotonic()
        with pytest.raises(MemoryUnavailableError):
            await found.read(values)
        assert time.monotonic() - began < 1
        waiting = asyncio.create_task(found.write(put(1), wait=30))
        await asyncio.to_thread(server.start)
        await waiting
        assert found.problem is None
        assert await found.read(values) == [1]


async def test_a_server_that_was_lost_is_used_again_when_it_is_back(server: PostgresServer) -> None:
    await asyncio.to_thread(server.start)
    async with opened(server.url(), timeout=2) as found:
        await found.write(add(1))
        assert await found.check() is None
        await asyncio.to_thread(server.kill)
        with pytest.raises(MemoryUnavailableError):
            await found.write(add(2))
        assert await found.check() is not None
        await asyncio.to_thread(server.start)
        await until_usable(found)
        await found.write(add(3))
        assert await found.read(values) == [1, 3]


async def test_a_restart_that_nobody_noticed_fails_no_transaction(server: PostgresServer) -> None:
    await asyncio.to_thread(server.start)
    async with opened(server.url(), timeout=5) as found:
        await asyncio.gather(found.write(add(1)), found.write(add(2)))
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
        await asyncio.gather(found.write(add(3)), found.write(add(4)))
        assert await found.read(values) == [1, 2, 3, 4]


@SQLITE
async def test_a_file_that_cannot_be_opened_is_used_once_it_can(
    database: DatabaseUnderTest,
) -> None:
    path = Path(database.url.removeprefix("sqlite:///"))
    path.mkdir()
    async with opened(database.url) as found:
        assert found.problem is not None
        assert "unable to open database file" in found.problem
        with pytest.raises(MemoryUnavailableError):
            await found.read(values)
        path.rmdir()
        await until_usable(found)
        await found.write(add(1))


@POSTGRES
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((QUOTED, "wrong-secret"), "password authentication failed"),
        (("agent_user:", "nobody:"), "password authentication failed"),
        (("/test_", "/absent_"), "does not exist"),
    ],
    ids=["password", "user", "database"],
)
async def test_what_is_wrong_with_an_address_is_told_without_its_password(
    database: DatabaseUnderTest, change: tuple[str, str], words: str
) -> None:
    async with opened(database.url.replace(*change)) as found:
        assert found.problem is not None
        assert words in found.problem
        for secret in (PASSWORD, QUOTED, "wrong-secret"):
            assert secret not in found.problem


async def test_a_fault_in_preparing_keeps_the_database_from_being_used(
    database: DatabaseUnderTest,
) -> None:
    broken = ["its key is missing"]

    async def prepare(_: DatabaseEngine) -> None:
        if broken:
            raise DatabaseError(broken[0])

    found = Database(make_engine(database.url), timeout=5, prepare=prepare)
    await found.open()
    try:
        assert found.problem == "its key is missing"
        with pytest.raises(MemoryUnavailableError):
            await found.read(read_database_time)
        broken.clear()
        await until_usable(found)
        await found.read(ping)
    finally:
        await found.close()


async def test_a_database_that_is_not_there_can_be_closed_at_once() -> None:
    began = time.monotonic()
    async with opened(f"postgresql://u:p@127.0.0.1:{free_port()}/d"):
        pass
    assert time.monotonic() - began < 10


# A replica

REPLICATED = pytest.mark.parametrize("database", ["replicated"], indirect=True)


@REPLICATED
async def test_the_replica_is_read_and_told_of_when_it_is_lost(database: DatabaseUnderTest) -> None:
    assert database.replica_url is not None
    async with opened(database.url, replica=database.replica_url) as found:
        await found.write(add(1))
        database.replica.caught_up_with(database.server)
        assert await found.read_replica(values) == [1]
        assert found.replica_problem is None
        with pytest.raises(MemoryUnavailableError):
            await found.read_replica(sleeping(60))
        assert found.replica_problem is not None
        assert await found.read(values) == [1]
        assert found.problem is None
        async with asyncio.timeout(20):
            while found.replica_problem is not None:
                with contextlib.suppress(MemoryUnavailableError):
                    await found.read_replica(values)
                await asyncio.sleep(0.1)


@REPLICATED
async def test_a_primary_that_takes_no_writes_is_not_taken_for_one(
    database: DatabaseUnderTest,
) -> None:
    assert database.replica_url is not None
    connection = await asyncpg.connect(database.url)
    await connection.execute("CREATE TABLE kept (value INTEGER UNIQUE)")
    await connection.close()
    async with opened(database.replica_url, timeout=2) as found:
        assert found.problem is not None
        with pytest.raises(MemoryUnavailableError):
            await found.write(add(1))


async def test_a_primary_that_hangs_does_not_keep_its_promoted_replica_from_being_found(
    server: PostgresServer,
) -> None:
    await asyncio.to_thread(server.start)
    replica = await asyncio.to_thread(server.replica)
    both = server.url().replace(f":{server.port}/", f":{server.port},127.0.0.1:{replica.port}/")
    try:
        async with opened(both, timeout=1, pool_size=10) as found:
            # Several connections, each of which would be waited for.
            await asyncio.gather(*(found.write(add(value)) for value in range(10)))
            await asyncio.to_thread(replica.caught_up_with, server)
            server.freeze()
            with pytest.raises(MemoryUnavailableError):
                await found.write(put(10))
            await asyncio.to_thread(replica.promote)
            began = time.monotonic()
            await found.write(put(11), wait=20)
            assert time.monotonic() - began < 6
            assert {*range(10), 11} <= set(await found.read(values))
    finally:
        server.thaw()
        replica.remove()


async def test_a_new_sqlite_file_that_another_process_makes_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("CREATE TABLE other (value INTEGER)")
        async with asyncio.TaskGroup() as group:
            opening = group.create_task(_open_and_read(f"sqlite:///{path}"))
            await asyncio.sleep(0.3)  # it waits meanwhile
            other.execute("COMMIT")
        assert opening.result() is None


async def _open_and_read(url: str) -> str | None:
    """What keeps a database from being used."""
    async with opened(url) as found:
        return found.problem
