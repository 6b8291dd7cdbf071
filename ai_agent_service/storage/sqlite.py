"""Runs functions within transactions, on SQLite in threads and on PostgreSQL by asyncpg."""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol, TypeVar, cast
from weakref import WeakSet

import asyncpg
from sqlalchemy import Connection, Engine, create_engine, event, func, select, text
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from ai_agent_service.storage.url import Address

T = TypeVar("T")
Work = Callable[[Connection], T]
"""What is done within one transaction; it blocks, so it runs in a thread or in a greenlet of its own."""

MAX_SHARED = 64
"""Transactions of an SQLite file that share one commit at most."""

READERS = 2
"""Threads that read an SQLite file beside the one that writes."""

RECYCLE_SECONDS = 1800


class PoolUse(NamedTuple):
    """How many connections there may be, and how many are in use."""

    size: int
    in_use: int


class DatabaseEngine(Protocol):
    """One database server, or one file."""

    name: str

    @property
    def pool(self) -> PoolUse:
        """What is in use now."""
        ...

    def run(self, work: Work[T], *, write: bool, timeout: float | None = None) -> asyncio.Future[T]:
        """Begins to run `work` in a transaction that is committed when it returns and rolled back when it raises; gives what it comes to.

        A statement may take `timeout` seconds, by default the engine's own. What is cancelled is not begun any more, or undone; once
        begun on SQLite, it comes to its end.
        """
        ...

    async def close(self) -> None:
        """Closes every connection."""
        ...

    async def forget_connections(self) -> None:
        """Has later transactions use new connections."""
        ...


class SqliteEngine:
    """A file: one thread writes, others read beside it (WAL), so that no transaction blocks the event loop.

    A commit is on disk (synchronous=FULL); transactions that wait for the writer together share one. Other processes may write too;
    `timeout` is how many seconds one waits for them.
    """

    name = "sqlite"

    def __init__(self, address: Address, *, timeout: float) -> None:
        with contextlib.suppress(OSError):  # told when the file cannot be opened
            address.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # what is said in it is for nobody else
        self._engine = _sqlite_engine(address.path.as_posix(), timeout)
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="sqlite-writer", daemon=True)
        self._writer.start()
        self._readers = ThreadPoolExecutor(READERS, "sqlite-reader")

    @property
    def pool(self) -> PoolUse:
        """The connections of the threads."""
        return PoolUse(READERS + 1, cast(QueuePool, self._engine.pool).checkedout())

    def run(self, work: Work[T], *, write: bool, timeout: float | None = None) -> asyncio.Future[T]:
        """Runs `work` in the writer's thread or in one of the readers'."""
        loop = asyncio.get_running_loop()
        if not write:
            return loop.run_in_executor(self._readers, self._read, work)
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put(_Job(work, loop, future))
        return future

    async def close(self) -> None:
        """Ends the threads once they have done what they were given."""
        self._jobs.put(None)
        await asyncio.to_thread(self._writer.join)
        self._readers.shutdown(wait=False)
        self._engine.dispose()

    async def forget_connections(self) -> None:
        """Has later transactions open the file anew."""
        await asyncio.to_thread(self._engine.dispose)

    def _read(self, work: Work[T]) -> T:
        with self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            return work(connection)

    def _write(self) -> None:
        """Takes what waits and does it in one transaction, until it is given None."""
        while (job := self._jobs.get()) is not None:
            jobs = [job]
            ended = False
            while len(jobs) < MAX_SHARED and not self._jobs.empty():
                following = self._jobs.get()
                if following is None:
                    ended = True
                    break
                jobs.append(following)
            try:
                self._committed(jobs)
            except Exception as error:  # noqa: BLE001 - each of those who wait for it is told
                for each in jobs:
                    each.outcome = error
            _tell(jobs)
            if ended:
                return

    def _committed(self, jobs: "list[_Job]") -> None:
        """Does the jobs and commits; one of several that fails is undone alone, unless SQLite has undone the whole transaction."""
        with self._engine.connect() as connection, connection.begin():
            driver = connection.connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)
            # A transaction that begins by reading cannot wait for its turn to write: it would fail instead.
            driver.execute("BEGIN IMMEDIATE").close()
            for job in jobs:
                if job.future.cancelled():
                    continue  # it is past its deadline, and nobody waits for it
                if len(jobs) == 1:
                    job.result = job.work(connection)
                    continue
                driver.execute("SAVEPOINT job").close()
                try:
                    job.result = job.work(connection)
                except Exception as error:
                    if not driver.in_transaction:
                        raise
                    job.outcome = error
                    driver.execute("ROLLBACK TO job").close()
                driver.execute("RELEASE job").close()


class _Job:
    """Work that waits for the writer."""

    def __init__(self, work: Work[Any], loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any]) -> None:
        self.work = work
        self.loop = loop
        self.future = future
        self.result: Any = None
        self.outcome: Exception | None = None

    def settle(self) -> None:
        """Tells who waits what it came to."""
        if self.future.done():
            return
        if self.outcome is not None:
            self.future.set_exception(self.outcome)
        else:
            self.future.set_result(self.result)


def _tell(jobs: list[_Job]) -> None:
    def settle() -> None:
        for job in jobs:
            job.settle()

    with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody waits any more
        jobs[0].loop.call_soon_threadsafe(settle)


def _sqlite_engine(path: str, timeout: float) -> Engine:
    # Transactions are begun here and not by the driver, whose own way starts none for a read.
    engine = create_engine(
        f"sqlite:///{path}",
        connect_args={"check_same_thread": False, "timeout": timeout, "isolation_level": None},
        hide_parameters=True,
        pool_size=READERS + 1,
        max_overflow=0,
    )

    @event.listens_for(engine, "connect")
    def _opened(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON", "mmap_size=0", "cache_size=-16000"):
            connection.execute(f"PRAGMA {pragma}").close()

    return engine


class PostgresEngine:
    """A PostgreSQL server, directly or through pgbouncer in transaction mode, which is noticed by itself.

    `timeout` bounds a connection's opening, a wait for a free one and a statement, in seconds.
    """

    name = "postgresql"

    def __init__(self, address: Address, *, pool_size: int, timeout: float, read_only: bool = False) -> None:
        self._servers = _tried_alone(address)
        self._pool_size = pool_size
        self._timeout = timeout
        self._read_only = read_only
        self._engine: AsyncEngine | None = None
        self._opening = asyncio.Lock()
        self._pooled = False
        self._connections: WeakSet[Any] = WeakSet()

    @property
    def pool(self) -> PoolUse:
        """The connections to the server."""
        return PoolUse(self._pool_size, 0 if self._engine is None else cast(QueuePool, self._engine.pool).checkedout())

    def run(self, work: Work[T], *, write: bool, timeout: float | None = None) -> asyncio.Future[T]:
        """Runs `work` on a connection of the pool."""
        return asyncio.create_task(self._run(work, timeout))

    async def _run(self, work: Work[T], timeout: float | None) -> T:
        engine = self._engine or await self._opened()
        async with engine.connect() as connection, connection.begin():
            if self._pooled or timeout is not None:
                milliseconds = self._milliseconds if timeout is None else int(timeout * 1000)
                await connection.exec_driver_sql(f"SET LOCAL statement_timeout = {milliseconds}")
            return await connection.run_sync(work)

    async def close(self) -> None:
        """Closes the pool; what hangs is not waited for."""
        if self._engine is not None:
            await self._engine.dispose()

    async def forget_connections(self) -> None:
        """Leaves the pool's connections and starts a new pool, which may find another server."""
        engine, self._engine = self._engine, None
        if engine is not None:
            for connection in self._connections:
                # One whose server hangs could not be closed in order; one within a transaction has a deadline of its own.
                if not connection.is_closed() and not connection.is_in_transaction():
                    connection.terminate()
            await engine.dispose()

    async def _opened(self) -> AsyncEngine:
        async with self._opening:
            if self._engine is None:
                self._pooled = await self._is_pooled()
                self._engine = self._new_engine()
            return self._engine

    def _new_engine(self) -> AsyncEngine:
        # Behind a pooler the next statement may reach another server process, which knows no statement that was prepared before.
        unprepared: dict[str, Any] = {"prepared_statement_cache_size": 0, "prepared_statement_name_func": str}
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self._connect,
            hide_parameters=True,
            connect_args=unprepared if self._pooled else {},
            pool_size=self._pool_size,
            max_overflow=0,
            pool_timeout=self._timeout * 0.8,  # so that a full pool is told from a server that hangs
            pool_recycle=RECYCLE_SECONDS,
            pool_use_lifo=True,
        )
        event.listen(engine.sync_engine, "checkout", _refuse_closed)
        return engine

    async def _connect(self) -> Any:
        settings = {"application_name": "ai-agent-service"}
        if not self._pooled:
            settings["statement_timeout"] = str(self._milliseconds)
            settings["idle_in_transaction_session_timeout"] = str(self._milliseconds * 2)
        found, self._servers = await self._first_of_use(settings)
        self._connections.add(found)
        return found

    async def _first_of_use(self, settings: dict[str, str]) -> tuple[Any, list[Address]]:
        """A connection to the first server that can be used, and the servers in the order to try next time, that one first.

        asyncpg would try them too, but give all its time to one that does not answer.
        """
        problems: dict[str, Exception] = {}
        for server in self._servers:
            try:
                found = await asyncpg.connect(
                    server.location,
                    timeout=self._timeout / len(self._servers),
                    statement_cache_size=0,
                    server_settings=settings,
                    target_session_attrs=None if self._read_only or "target_session_attrs" in server.location else "read-write",
                )
            except (OSError, TimeoutError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched) as error:
                problems[server.hosts] = error
                continue
            return found, [server, *(other for other in self._servers if other is not server)]
        if len(problems) == 1:
            raise next(iter(problems.values()))
        raise ConnectionError("; ".join(f"{hosts}: {str(error) or type(error).__name__}" for hosts, error in problems.items()))

    async def _is_pooled(self) -> bool:
        """Whether a pooler stands between: it tells another process id than the server's own."""
        self._pooled = True  # so that nothing is asked for that a pooler refuses
        connection = await self._connect()
        try:
            pid = await connection.fetchval("SELECT pg_backend_pid()", timeout=self._timeout)
            return bool(pid != connection.get_server_pid())
        finally:
            await connection.close(timeout=self._timeout)

    @property
    def _milliseconds(self) -> int:
        return int(self._timeout * 1000)


def _tried_alone(address: Address) -> list[Address]:
    """The servers to try one after the other; all of them at once where the address has asyncpg choose among them."""
    return [address] if "target_session_attrs=prefer-standby" in address.location else list(address.servers)


def _refuse_closed(connection: Any, _: ConnectionPoolEntry, __: object) -> None:
    """Has the pool replace a connection that the server has closed, as after a restart."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def ping(connection: Connection) -> None:
    """Work that asks for nothing, to see that it is answered."""
    connection.execute(text("SELECT 1")).close()


def database_time(connection: Connection) -> datetime:
    """The database's own clock, which all replicas share."""
    now = connection.execute(select(func.now())).scalar_one()
    return now if now.tzinfo is not None else now.replace(tzinfo=UTC)
