"""The database as the service sees it: transactions with deadlines, a replica to read from, and
whether it can be used now."""

import asyncio
import logging
import math
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from sqlalchemy import exc

from ai_agent_service.core.errors import MemoryUnavailableError
from ai_agent_service.core.tasks import Tasks
from ai_agent_service.storage.engine import DatabaseEngine, Work, ping
from ai_agent_service.storage.migrate import NewerSchemaError

T = TypeVar("T")
logger = logging.getLogger(__name__)

RETRY_AFTER = 2.0
PING_SECONDS = 0.5
"""How often a database that went away is asked whether it is back."""

STABLE_SECONDS = 60.0
"""How long a database that keeps failing must be well before the log says that it is back."""

MAX_ATTEMPTS = 3
"""How often a transaction is tried that lost against another one, or whose pooled connection turned
out to be closed."""

BUSY_PAUSE = 0.05
FIRST_WAIT_SECONDS = 5.0
"""How long work waits for a database that is being prepared for the first time."""

START_SECONDS = 60.0
"""How long a database that is being prepared for the first time counts as starting."""

PREPARE_SECONDS = 3600.0
UNKNOWN_OUTCOME = (
    "The database did not confirm in time that this was stored, so it may be or not. Send the same"
    " again: it is stored once."
)
_TOO_MANY, _CANCELLED = "53300", "57014"
_LOST_RACE = ("40001", "40P01", "55P03")
_READ_ONLY = "25006"
_NOT_MIGRATED = ("42P01", "42703")
_UNAVAILABLE_CLASSES = ("08", "28", "3D", "53", "57", "58", "XX")
"""SQLSTATE classes that say that the server cannot be used now: connections, credentials, no such
database, resources, an operator's intervention, the system, an internal error. Source: PostgreSQL,
appendix A."""


class DatabaseError(Exception):
    """The database cannot be used now; the text says why, for the operator."""


class _DatabaseBusyError(DatabaseError):
    """There is no free connection, or others' transactions won again and again; the server itself
    is well."""


class DatabaseTimeoutError(DatabaseError):
    """The transaction is past its deadline; the server itself may be well."""


class Database:
    """A primary, and perhaps a replica.

    `timeout` bounds each transaction, in seconds. One that is past it is left behind to be undone:
    a server that hangs may hang there too. Once the primary is known to be away, callers are told
    so at once, and it is asked twice a second whether it is back. `name` is what logs call it.
    `prepare` is run when it answers first, and again after it was away, before anything else uses
    it: what comes back may be another one.
    """

    def __init__(
        self,
        primary: DatabaseEngine,
        replica: DatabaseEngine | None = None,
        *,
        timeout: float,
        name: str = "",
        prepare: Callable[[DatabaseEngine], Awaitable[None]] | None = None,
    ) -> None:
        self.primary = primary
        self.replica = replica
        self.timeout = timeout
        self._name = name or primary.name
        self._prepare = prepare
        self.problem: str | None = "it was not connected to yet"
        """What keeps the primary from being used, in words for the operator; None if nothing is
        known to."""
        self.replica_problem: str | None = None
        self._up = asyncio.Event()
        self._tried = asyncio.Event()
        self._lost = asyncio.Event()
        self._back_at = -math.inf
        self._keeps_failing = False
        """Whether it was lost again soon after it was back, as a damaged file is: it answers, and
        some work fails. Further losses are not logged then."""

        self._abandoned = Tasks(grace=timeout)
        self._watcher: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._replica_asked_again = 0.0

    @property
    def kind(self) -> str:
        """`sqlite` or `postgresql`."""
        return self.primary.name

    @property
    def is_starting(self) -> bool:
        """Whether the primary is being prepared for the first time, and that was not found to be
        impossible."""
        return not self._tried.is_set()

    async def open(self, *, within: float = START_SECONDS) -> None:
        """Prepare the primary in the background, and return once that has succeeded or failed, or
        after `within` seconds. One that cannot be used is watched from then on."""
        self.problem = "it is being prepared"
        self._watcher = asyncio.create_task(self._start())
        await self.wait_until_tried(within)

    async def wait_until_tried(self, within: float = START_SECONDS) -> None:
        """Return once the database is not starting any more, or after `within` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._tried.wait()

    async def write(self, work: Work[T], *, wait: float = 0.0, timeout: float | None = None) -> T:
        """The result of `work`, committed. If the database is away it is waited for, `wait` seconds
        at most; the transaction itself may take `timeout` seconds instead of the usual.

        `work` may be run several times, so it must come to the same if an earlier time was
        committed after all. Raises MemoryUnavailableError.
        """
        return await self._run(work, write=True, wait=wait, timeout=timeout)

    async def read(self, work: Work[T], *, timeout: float | None = None) -> T:
        """The result of `work`, which only reads, on the primary, within `timeout` seconds or the
        usual; raises MemoryUnavailableError."""
        return await self._run(work, write=False, wait=0.0, timeout=timeout)

    async def read_replica(self, work: Work[T], *, timeout: float | None = None) -> T:
        """The result of `work`, which only reads, on the replica, which may lag behind; raises
        MemoryUnavailableError if it cannot be used."""
        if self.replica is None or (
            self.replica_problem and time.monotonic() < self._replica_asked_again
        ):
            raise self._build_unavailable_error()
        try:
            found = await self._run_bounded(self.replica, work, write=False, timeout=timeout)
        except DatabaseError as error:
            if self.replica_problem is None:
                logger.warning("database.replica_lost", extra={"reason": str(error)})
            self.replica_problem = str(error)
            self._replica_asked_again = time.monotonic() + RETRY_AFTER
            raise self._build_unavailable_error() from None
        if self.replica_problem is not None:
            logger.info("database.replica_back")
            self.replica_problem = None
        return found

    async def ping(self, work: Work[T], *, timeout: float) -> T:
        """The result of `work`, which only reads, on the primary within `timeout` seconds; raises
        DatabaseError, which says why not.

        An answer that does not come has the primary asked once more in the background, as one that
        is late elsewhere.
        """
        if self.problem is not None:
            raise DatabaseError(self.problem)
        try:
            return await self._run_bounded(self.primary, work, write=False, timeout=timeout)
        except DatabaseError as error:
            if isinstance(error, DatabaseTimeoutError):
                self._recheck_primary(str(error))
            elif not isinstance(error, _DatabaseBusyError):
                self.mark_lost(str(error))
            raise

    async def check(self) -> str | None:
        """Asks the primary; what keeps it from being used, or None."""
        if self.problem is None:
            try:
                await self._run_bounded(self.primary, ping, write=False)
            except DatabaseError as error:
                self.mark_lost(str(error))
        return self.problem

    async def close(self) -> None:
        """Closes every connection; what hangs is not waited for longer than `timeout`."""
        for task in (self._watcher, self._asking):
            if task is not None:
                task.cancel()
        await self._abandoned.finish()
        for engine in (self.primary, self.replica):
            if engine is not None:
                closing = asyncio.create_task(engine.close())
                await asyncio.wait((closing,), timeout=self.timeout)
                if not closing.done():
                    closing.cancel()
                elif closing.exception() is not None:
                    logger.debug("database.close_failed", exc_info=closing.exception())

    def mark_lost(self, reason: str) -> None:
        """Takes the primary for unusable because of `reason` until it answers again."""
        if self.problem is None and not self._keeps_failing:
            self._keeps_failing = time.monotonic() - self._back_at < STABLE_SECONDS
            event = "database.keeps_failing" if self._keeps_failing else "database.lost"
            logger.error(event, extra={"database": self._name, "reason": reason})
        self.problem = reason
        self._up.clear()
        self._lost.set()
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch())

    async def _run(
        self, work: Work[T], *, write: bool, wait: float, timeout: float | None = None
    ) -> T:
        if self.is_starting:
            await self.wait_until_tried(FIRST_WAIT_SECONDS)
        deadline = time.monotonic() + wait
        while True:
            if self.problem is not None:
                await self._wait_until(deadline)
            try:
                return await self._run_bounded(self.primary, work, write=write, timeout=timeout)
            except DatabaseError as error:
                if isinstance(error, DatabaseTimeoutError):
                    self._recheck_primary(str(error))
                elif isinstance(error, _DatabaseBusyError):
                    logger.warning(
                        "database.busy", extra={"database": self._name, "reason": str(error)}
                    )
                else:
                    self.mark_lost(str(error))
                if time.monotonic() >= deadline:
                    if write and isinstance(error, DatabaseTimeoutError):
                        raise MemoryUnavailableError(
                            UNKNOWN_OUTCOME, retry_after=RETRY_AFTER
                        ) from None
                    raise self._build_unavailable_error() from None
                await asyncio.sleep(BUSY_PAUSE)

    def _recheck_primary(self, reason: str) -> None:
        """Asks the primary whether it is there, as one transaction may be late alone; takes it for
        lost if it does not say so."""

        async def ask() -> None:
            try:
                await self._run_bounded(self.primary, ping, write=False)
            except _DatabaseBusyError:
                return
            except DatabaseError:
                self.mark_lost(reason)

        logger.warning("database.late", extra={"database": self._name, "reason": reason})
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(ask())

    async def _wait_until(self, deadline: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await self._up.wait()
        except TimeoutError:
            raise self._build_unavailable_error() from None

    async def _run_bounded(
        self, engine: DatabaseEngine, work: Work[T], *, write: bool, timeout: float | None = None
    ) -> T:
        """The result of `work` within the timeout; raises DatabaseError."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            transaction = engine.run(work, write=write, timeout=timeout)
            try:
                done, _ = await asyncio.wait((transaction,), timeout=timeout or self.timeout)
            except asyncio.CancelledError:
                self._abandon(transaction)
                raise
            if not done:
                self._abandon(transaction)
                raise DatabaseTimeoutError(
                    f"it did not answer within {timeout or self.timeout:g} seconds"
                )
            try:
                return transaction.result()
            except exc.TimeoutError as error:
                raise _DatabaseBusyError("all its connections are in use") from error
            except Exception as error:
                if not _is_database_error(error):
                    raise
                again = await self._can_retry(engine, error)
                if not again or attempt == MAX_ATTEMPTS:
                    state = _get_sqlstate(error)
                    kind = (
                        _DatabaseBusyError
                        if state in (*_LOST_RACE, _TOO_MANY)
                        else DatabaseTimeoutError
                        if state == _CANCELLED
                        else DatabaseError
                    )
                    raise kind(_describe_error(error)) from error
        raise AssertionError("each attempt returns or raises")

    async def _can_retry(self, engine: DatabaseEngine, error: Exception) -> bool:
        """Whether the transaction that failed with `error` may be tried again at once; raises it if
        it is a fault of ours."""
        state = _get_sqlstate(error)
        if state == _READ_ONLY:
            await engine.forget_connections()
            return True
        if state in _LOST_RACE or (
            isinstance(error, exc.DBAPIError) and error.connection_invalidated
        ):
            return True
        if not isinstance(error, exc.SQLAlchemyError) or (
            isinstance(error, exc.DBAPIError) and error.statement is None
        ):
            return False  # raised while connecting
        if (
            state is not None
            and not state.startswith(_UNAVAILABLE_CLASSES)
            and state not in _NOT_MIGRATED
        ):
            raise error
        if isinstance(error, exc.IntegrityError) or (
            isinstance(error, exc.StatementError) and not isinstance(error, exc.DBAPIError)
        ):
            raise error
        if isinstance(error, exc.DBAPIError) and isinstance(
            error.orig, sqlite3.ProgrammingError | sqlite3.InterfaceError
        ):
            raise error
        return False

    def _abandon(self, transaction: "asyncio.Future[T]") -> None:
        async def cancel_transaction() -> None:
            transaction.cancel()
            await asyncio.wait((transaction,))
            if not transaction.cancelled():
                transaction.exception()

        self._abandoned.run(cancel_transaction())

    async def _start(self) -> None:
        """Prepare the primary for the first time; watch it if that fails."""
        asyncio.get_running_loop().call_later(START_SECONDS, self._tried.set)
        try:
            await self._make_ready()
        except DatabaseError as error:
            logger.error(  # noqa: TRY400 - the reason says all
                "database.lost", extra={"database": self._name, "reason": str(error)}
            )
            self.problem = str(error)
            self._tried.set()
            await self._watch()
        self._tried.set()

    async def _watch(self) -> None:
        """Asks the primary until it answers."""
        while True:
            await asyncio.sleep(PING_SECONDS)
            # Those that there are lead to a server that may be gone for good, and each would be
            # waited for.
            await self.primary.forget_connections()
            try:
                await self._make_ready()
            except DatabaseError as error:
                self.problem = str(error)
                continue
            if self._keeps_failing and await self._is_lost_again():
                continue
            self._keeps_failing, self._back_at = False, time.monotonic()
            logger.warning("database.back", extra={"database": self._name})
            return

    async def _is_lost_again(self) -> bool:
        """Return whether the primary is lost within STABLE_SECONDS."""
        self._lost.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(STABLE_SECONDS):
                await self._lost.wait()
        return self._lost.is_set()

    async def _make_ready(self) -> None:
        """Returns once the primary is found to be of use; raises DatabaseError."""
        try:
            await self._run_bounded(self.primary, ping, write=False)
            if self._prepare is not None:
                async with asyncio.timeout(PREPARE_SECONDS):
                    await self._prepare(self.primary)
        except DatabaseError:
            raise
        except Exception as error:
            if not _is_database_error(error) and not isinstance(error, NewerSchemaError):
                logger.exception("database.not_prepared")
            raise DatabaseError(_describe_error(error)) from error
        self.problem = None
        self._up.set()

    def _build_unavailable_error(self) -> MemoryUnavailableError:
        return MemoryUnavailableError(
            "The memory of conversations cannot be reached now. Try again in a moment.",
            retry_after=RETRY_AFTER,
        )


def _is_database_error(error: Exception) -> bool:
    """Whether the database or the way there raised it: while connecting, SQLAlchemy does not wrap
    what asyncpg raises."""
    return isinstance(error, exc.SQLAlchemyError | OSError | TimeoutError | sqlite3.Error) or type(
        error
    ).__module__.startswith("asyncpg")


def _get_sqlstate(error: BaseException) -> str | None:
    original = getattr(error, "orig", None) or error
    state = getattr(original, "sqlstate", None)
    return state if isinstance(state, str) else None


def _describe_error(error: BaseException) -> str:
    """What `error` says, in one line that names no password."""
    original = getattr(error, "orig", None) or error
    if isinstance(error, NewerSchemaError):
        return str(error)
    if _get_sqlstate(error) in _NOT_MIGRATED:
        return (
            f"its tables are not those of this version ({_format_first_line(original)}); run:"
            " ai-agent-service db upgrade"
        )
    return _format_first_line(original)


def _format_first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
