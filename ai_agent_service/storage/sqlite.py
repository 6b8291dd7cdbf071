"""Runs functions within transactions, on SQLite in threads and on PostgreSQL by asyncpg."""

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from ai_agent_service.storage.engine import PoolUsage, T, Work
from ai_agent_service.storage.url import DatabaseUrl

MAX_BATCH = 64
"""Transactions of an SQLite file that share one commit at most."""

BUSY_SECONDS = 0.01
"""How soon a file that is locked is tried again."""

READER_THREADS = 2
"""Threads that read an SQLite file beside the one that writes."""


class SqliteEngine:
    """A file: one thread writes, others read beside it (WAL), so that no transaction blocks the
    event loop.

    A commit is on disk (synchronous=FULL); transactions that wait for the writer together share
    one. Other processes may write too; `timeout` is how many seconds one waits for them.
    """

    name = "sqlite"

    def __init__(self, address: DatabaseUrl, *, timeout: float) -> None:
        with contextlib.suppress(OSError):  # told when the file cannot be opened
            address.path.parent.mkdir(
                mode=0o700, parents=True, exist_ok=True
            )  # what is said in it is for nobody else
            _protect_files(address.path)
        self._engine = _create_sqlite_engine(address.path.as_posix(), timeout)
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="sqlite-writer", daemon=True)
        self._writer.start()
        self._readers = ThreadPoolExecutor(READER_THREADS, "sqlite-reader")

    @property
    def pool(self) -> PoolUsage:
        """The connections of the threads."""
        return PoolUsage(READER_THREADS + 1, cast(QueuePool, self._engine.pool).checkedout())

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
            while len(jobs) < MAX_BATCH and not self._jobs.empty():
                following = self._jobs.get()
                if following is None:
                    ended = True
                    break
                jobs.append(following)
            try:
                self._commit_jobs(jobs)
            except Exception as error:  # noqa: BLE001 - each of those who wait for it is told
                for each in jobs:
                    each.outcome = error
            _notify_waiters(jobs)
            if ended:
                return

    def _commit_jobs(self, jobs: "list[_Job]") -> None:
        """Does the jobs and commits; one of several that fails is undone alone, unless SQLite has
        undone the whole transaction."""
        with self._engine.connect() as connection, connection.begin():
            driver = connection.connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)
            # A transaction that begins by reading cannot wait for its turn to write: it would fail
            # instead.
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

    def __init__(
        self, work: Work[Any], loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any]
    ) -> None:
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


def _notify_waiters(jobs: list[_Job]) -> None:
    def settle() -> None:
        for job in jobs:
            job.settle()

    with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody waits any more
        jobs[0].loop.call_soon_threadsafe(settle)


def _protect_files(path: Path) -> None:
    """Create the database, and let only its owner read it and the files beside it; SQLite gives new
    ones its mode.

    An existing file is not opened: closing it would drop the locks that this process holds on it.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    for suffix in ("", "-wal", "-shm"):
        file = path.with_name(f"{path.name}{suffix}")
        with contextlib.suppress(FileNotFoundError):
            found = file.stat()
            if found.st_mode & 0o077 and found.st_uid == os.geteuid():
                file.chmod(0o600)


def _create_sqlite_engine(path: str, timeout: float) -> Engine:
    # Transactions are begun here and not by the driver, whose own way starts none for a read.
    engine = create_engine(
        f"sqlite:///{path}",
        connect_args={"check_same_thread": False, "timeout": timeout, "isolation_level": None},
        hide_parameters=True,
        pool_size=READER_THREADS + 1,
        max_overflow=0,
    )

    @event.listens_for(engine, "connect")
    def _set_pragmas(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
        _switch_to_wal(connection, timeout)
        for pragma in (
            "synchronous=FULL",
            "foreign_keys=ON",
            "secure_delete=ON",
            "mmap_size=0",
            "cache_size=-2000",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    return engine


def _switch_to_wal(connection: sqlite3.Connection, timeout: float) -> None:
    """Have the file use WAL; SQLite itself does not wait for another process that does the same
    with a new file."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(BUSY_SECONDS)
        else:
            return
