"""Admits runs within the limits of their key and of the user behind it, counted in PostgreSQL for
all replicas together.

An admission is one transaction and its end another. Each locks the levels of its subjects, in one
order for all, so that none waits for one that waits for it. What it reads it reads after that, in a
statement of its own: only that one sees what those did that it waited for.
"""

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Self

import msgspec
from sqlalchemy import Connection

from ai_agent_service.core.errors import MemoryUnavailableError, RateLimitError
from ai_agent_service.core.tasks import Tasks
from ai_agent_service.limits.limiter import RUN_GRACE, Admission, InProcessLimiter, Limiter
from ai_agent_service.limits.rate_limit import (
    AdmissionRequest,
    Level,
    build_headers,
    decide,
    rebase_level,
    settle_level,
)
from ai_agent_service.storage.database import Database
from ai_agent_service.storage.engine import Work

logger = logging.getLogger(__name__)

MAX_TRANSACTIONS = 4
"""Transactions at once: those of one busy key wait for each other, and must not take all
connections for that."""

RETRY_SECONDS = 1.0
"""How long the database is left alone after it failed."""

CLEANUP_SECONDS = 600.0
CLEANUP_BATCH = 500
"""Rows of each table that are deleted in one transaction."""

MAX_RESERVED_TOKENS = 2**31 - 1
"""What the column of tokens holds."""

# It does not wait for the disk: the runs of one key take turns under this lock, and a level that is
# lost with the server does no harm.
_LOCK = """
INSERT INTO limit_levels (subject, requests_until, tokens_until)
SELECT subject, 0, 0 FROM unnest($1::text[]) AS subject ORDER BY subject
ON CONFLICT (subject) DO UPDATE SET requests_until = limit_levels.requests_until
RETURNING subject, requests_until, tokens_until,
    extract(epoch FROM clock_timestamp())::float8 AS now,
    set_config('synchronous_commit', 'off', true)
"""
_RUNS = """
SELECT subject,
    count(*) FILTER (WHERE until > $2 AND until <= $4 AND run_id <> $3) AS others,
    bool_or(run_id = $3) AS admitted
FROM limit_runs WHERE subject = ANY($1::text[]) GROUP BY subject
"""
_BEGIN_RUN = """
WITH asked AS (
    SELECT * FROM unnest($1::text[], $2::float8[], $3::float8[], $4::int[])
        AS asked (subject, requests_until, tokens_until, tokens)
), begun AS (
    INSERT INTO limit_runs (subject, run_id, until, tokens)
    SELECT subject, $5, $6, tokens FROM asked
)
UPDATE limit_levels SET requests_until = asked.requests_until, tokens_until = asked.tokens_until
FROM asked WHERE limit_levels.subject = asked.subject
"""
_END_RUN = (
    "DELETE FROM limit_runs WHERE run_id = $1 AND subject = ANY($2::text[]) RETURNING subject,"
    " tokens"
)
_SETTLE = """
UPDATE limit_levels SET tokens_until = after.tokens_until
FROM unnest($1::text[], $2::float8[]) AS after (subject, tokens_until)
WHERE limit_levels.subject = after.subject
"""
# A row that is locked is in use, and what waits for nobody is part of no deadlock.
_FORGET_RUNS = """
WITH stale AS (
    SELECT subject, run_id FROM limit_runs
    WHERE until < extract(epoch FROM clock_timestamp())::float8
    LIMIT $1 FOR UPDATE SKIP LOCKED
)
DELETE FROM limit_runs USING stale
WHERE limit_runs.subject = stale.subject AND limit_runs.run_id = stale.run_id
"""
_FORGET_LEVELS = """
WITH stale AS (
    SELECT subject FROM limit_levels
    WHERE greatest(requests_until, tokens_until) < extract(epoch FROM clock_timestamp())::float8
    LIMIT $1 FOR UPDATE SKIP LOCKED
)
DELETE FROM limit_levels USING stale WHERE limit_levels.subject = stale.subject
"""


class SharedLimiter(Limiter):
    """Limits of all replicas on one PostgreSQL, by its clock. While it is away each process counts
    by itself, from nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._here = InProcessLimiter()
        self._tasks = Tasks(grace=2.0)
        self._at_once = asyncio.Semaphore(MAX_TRANSACTIONS)
        self._cleaning: asyncio.Task[None] | None = None
        self._alone = False
        self._again_at = 0.0

    async def __aenter__(self) -> Self:
        self._cleaning = asyncio.create_task(self._run_cleanup())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Waits for what is being counted, for a moment."""
        if self._cleaning is not None:
            self._cleaning.cancel()
            await asyncio.wait((self._cleaning,))
        await self._tasks.finish()

    async def admit_request(self, ask: AdmissionRequest) -> Admission:
        """Decides by what is counted in the database, or here while it is away."""
        # In a task of its own, as it would not be known of a transaction that is broken off whether
        # the run was admitted.
        deciding = self._tasks.start(self._decide(ask))
        try:
            decided = await asyncio.shield(deciding)
        except asyncio.CancelledError:
            self._tasks.run(_undo_admission(deciding))
            raise
        if isinstance(decided, RateLimitError):
            raise decided
        return decided

    def end(self, ask: AdmissionRequest, tokens: int | None, until: float) -> asyncio.Task[None]:
        """Counts a run as ended, once the database is there; `until` is the reading of
        `time.monotonic()` at which it does not matter."""
        return self._tasks.start(self._settle(ask, tokens, until))

    async def clean_up(self) -> int:
        """Deletes what is as if it had never been asked; gives how many rows. Several replicas may
        do so at once."""
        total = 0
        while True:
            counts = await self._database.write(_delete_stale)
            total += sum(counts)
            if max(counts) < CLEANUP_BATCH:
                return total

    async def _decide(self, ask: AdmissionRequest) -> Admission | RateLimitError:
        until = time.monotonic() + ask.seconds + RUN_GRACE
        try:
            async with self._at_once:
                if self._database.problem is None and time.monotonic() >= self._again_at:
                    try:
                        headers = await self._database.write(partial(_begin_run, ask))
                    except MemoryUnavailableError:
                        self._again_at = time.monotonic() + RETRY_SECONDS
                        # It may have been admitted all the same, which nobody will know of.
                        self._tasks.run(self._settle_later(partial(_end_run, ask, None), until))
                    else:
                        self._set_alone(alone=False)
                        return _SharedAdmission(self, ask, headers, until)
            self._set_alone(alone=True)
            return await self._here.admit_request(ask)
        except RateLimitError as refusal:
            return refusal

    async def _settle(self, ask: AdmissionRequest, tokens: int | None, until: float) -> None:
        work = partial(_end_run, ask, tokens)
        try:
            async with self._at_once:
                await self._database.write(work)
        except MemoryUnavailableError:
            logger.warning("limits.settled_later", extra={"run_id": ask.run_id})
            self._tasks.run(self._settle_later(work, until))

    async def _settle_later(self, work: Work[None], until: float) -> None:
        try:
            await self._database.write(work, wait=until - time.monotonic())
        except MemoryUnavailableError:
            logger.debug("limits.not_settled")

    def _set_alone(self, *, alone: bool) -> None:
        if alone and not self._alone:
            logger.warning(
                "limits.not_shared",
                extra={"reason": self._database.problem or "the database did not answer in time"},
            )
        elif self._alone and not alone:
            logger.info("limits.shared_again")
        self._alone = alone

    async def _run_cleanup(self) -> None:
        while True:
            # no secret
            await asyncio.sleep(CLEANUP_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311
            try:
                await self.clean_up()
            except MemoryUnavailableError:
                logger.debug("limits.cleanup_passed")
            except Exception:
                logger.exception("limits.cleanup_failed")


def open_limiter(database: Database | None) -> Limiter:
    """Limits that all replicas on a PostgreSQL share; those of this process on SQLite and without a
    database."""
    return (
        SharedLimiter(database)
        if database is not None and database.kind == "postgresql"
        else InProcessLimiter()
    )


class _SharedAdmission(Admission):
    def __init__(
        self, limits: SharedLimiter, ask: AdmissionRequest, headers: Mapping[str, str], until: float
    ) -> None:
        self._limits = limits
        self._ask = ask
        self._until = until
        self._ending: asyncio.Task[None] | None = None
        self.headers = headers

    async def settle(self, tokens: int | None) -> None:
        """Waits until it is counted, or left for when the database is back."""
        if self._ending is None:
            self._ending = self._limits.end(self._ask, tokens, self._until)
        await asyncio.wait((self._ending,))


async def _undo_admission(deciding: "asyncio.Task[Admission | RateLimitError]") -> None:
    """Gives back what was reserved for a run whose caller has left before it could begin."""
    await asyncio.wait((deciding,))
    if not deciding.cancelled() and deciding.exception() is None:
        decided = deciding.result()
        if isinstance(decided, Admission):
            await decided.settle(0)


def _begin_run(ask: AdmissionRequest, connection: Connection) -> Mapping[str, str]:
    """Admits a run; gives its headers. Done again after it was committed it changes nothing. Raises
    RateLimitError."""
    names = [subject.name for subject in ask.subjects]
    levels, now = _lock_levels(connection, names)
    # A run that may take longer was left behind by a process that died before the clock was set
    # back.
    latest = now + 2 * ask.seconds + RUN_GRACE
    under_way = {
        row.subject: row
        for row in connection.exec_driver_sql(_RUNS, (names, now, ask.run_id, latest))
    }
    found = [
        (
            msgspec.structs.replace(levels[name], running=under_way[name].others)
            if name in under_way
            else levels[name]
        )
        for name in names
    ]
    if any(row.admitted for row in under_way.values()):
        return build_headers(ask.subjects, found, now)
    after = decide(ask, found, now)
    values: tuple[list[Any], ...] = (
        names,
        [level.requests_until for level in after],
        [level.tokens_until for level in after],
        [min(subject.count_reserved(ask.tokens), MAX_RESERVED_TOKENS) for subject in ask.subjects],
    )
    connection.exec_driver_sql(
        _BEGIN_RUN, (*values, ask.run_id, now + ask.seconds + RUN_GRACE)
    ).close()
    return build_headers(ask.subjects, after, now)


def _end_run(ask: AdmissionRequest, tokens: int | None, connection: Connection) -> None:
    """Ends a run and replaces what was reserved for it, where it is there; what is not was ended
    before."""
    names = [subject.name for subject in ask.subjects]
    limited = {
        subject.name: subject for subject in ask.subjects if subject.limits.tokens is not None
    }
    if tokens is None or not limited:
        connection.exec_driver_sql(_END_RUN, (ask.run_id, names)).close()
        return
    levels, now = _lock_levels(connection, list(limited))
    rows = connection.exec_driver_sql(_END_RUN, (ask.run_id, names)).all()
    after = {
        row.subject: (
            settle_level(
                levels[row.subject], limited[row.subject], reserved=row.tokens, used=tokens, now=now
            ).tokens_until
        )
        for row in rows
        if row.subject in limited
    }
    if after:
        connection.exec_driver_sql(_SETTLE, (list(after), list(after.values()))).close()


def _lock_levels(connection: Connection, names: list[str]) -> tuple[dict[str, Level], float]:
    """The levels of these subjects, which nobody else changes until the transaction ends, and the
    time once that is so."""
    rows = connection.exec_driver_sql(_LOCK, (names,)).all()
    now = max(row.now for row in rows)
    return {
        row.subject: rebase_level(Level(row.requests_until, row.tokens_until, 0), now)
        for row in rows
    }, now


def _delete_stale(connection: Connection) -> tuple[int, int]:
    """Deletes a batch of each table; gives how many."""
    return (
        connection.exec_driver_sql(_FORGET_RUNS, (CLEANUP_BATCH,)).rowcount,
        connection.exec_driver_sql(_FORGET_LEVELS, (CLEANUP_BATCH,)).rowcount,
    )
