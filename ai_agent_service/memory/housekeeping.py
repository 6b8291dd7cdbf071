"""Maintain the database: register this process, end the runs of dead ones, delete what is too
old."""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from datetime import timedelta

from sqlalchemy import Connection, and_, delete, literal, or_, select, text, update

from ai_agent_service.core.errors import MemoryUnavailableError
from ai_agent_service.memory.base import ErasureCounts
from ai_agent_service.memory.processes import HEARTBEAT_SECONDS, ProcessWatch, has_exited
from ai_agent_service.memory.store import Store
from ai_agent_service.storage.clock import (
    MAX_SKEW,
    ClockWatch,
    DatabaseNow,
    read_database_time,
    read_uptime,
)
from ai_agent_service.storage.tables import nodes, processes, runs, sessions, summaries

logger = logging.getLogger(__name__)

BATCH_SECONDS = 600.0
BATCH = 200
"""Sessions deleted in one transaction."""

CLEANUP_LOCK = 0x61_61_73_5F_63_6C_65_61
"""The advisory lock of PostgreSQL for deleting old conversations: `aas_clea` as a number."""


class Housekeeping:
    """Runs beside the service.

    Sessions are kept for `retention_days` after their last use (None: for ever), unless
    `agent_retention_days` has another value for their agent. A run of this process that is older
    than `run_seconds` and not live cannot be running any more. `clock` is as for ClockWatch.
    """

    def __init__(
        self,
        store: Store,
        *,
        retention_days: float | None,
        agent_retention_days: Mapping[str, float],
        interval_hours: float,
        run_seconds: float,
        clock: Callable[[], float] = read_uptime,
    ) -> None:
        self._store = store
        self._retention = retention_days
        self.agent_retention_days = dict(agent_retention_days)
        self._interval = interval_hours * 3600
        self._run_seconds = run_seconds
        self._watch = ProcessWatch(clock)
        self._settling = ClockWatch(clock)
        self.erased = ErasureCounts()
        """What this process has deleted for its age."""
        self.ended_runs = 0
        """How many runs of dead processes this process has ended."""

    def set_agent_retention(self, agent_retention_days: Mapping[str, float]) -> None:
        """Change how long agents keep their sessions."""
        self.agent_retention_days = dict(agent_retention_days)

    async def run(self) -> None:
        """Maintain the database until cancelled; a failed step is retried the next time."""
        loop = asyncio.get_running_loop()
        # Replicas that start together do not clean up together.
        # no secret
        next_cleanup = loop.time() + random.uniform(0, min(60.0, self._interval))  # noqa: S311
        while True:
            try:
                await self.send_heartbeat()
                if loop.time() >= next_cleanup:
                    next_cleanup = loop.time() + self._interval
                    await self.clean_up()
            except MemoryUnavailableError:
                logger.debug("memory.keeper_passed")
            except Exception:
                logger.exception("memory.keeper_failed")
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def send_heartbeat(self) -> None:
        """Record that this process is alive, and end the runs of dead ones."""
        ended = await self._store.database.write(self._record_heartbeat)
        if ended:
            self.ended_runs += ended
            logger.warning("memory.runs_ended", extra={"runs": ended})

    async def unregister_process(self) -> None:
        """Record that this process ends."""

        def delete_process(connection: Connection) -> None:
            connection.execute(
                delete(processes).where(processes.c.process_id == self._store.process_id)
            )

        await self._store.database.write(delete_process)

    async def clean_up(self) -> ErasureCounts:
        """Delete what is too old, in batches; nothing while another replica does so."""
        total = ErasureCounts()
        while True:
            erased = await self._store.database.write(self._delete_batch, timeout=BATCH_SECONDS)
            total += erased
            self.erased += erased
            if erased.sessions < BATCH:
                break
        if total.sessions:
            logger.info(
                "memory.cleaned_up", extra={"sessions": total.sessions, "messages": total.messages}
            )
        return total

    def _record_heartbeat(self, connection: Connection) -> int:
        self._settling.observe(self._store.mark_alive(connection))
        rows = connection.execute(
            select(processes.c.process_id, processes.c.host, processes.c.seen_at)
        ).all()
        gone = self._watch.find_silent((row.process_id, row.seen_at) for row in rows)
        gone |= {
            row.process_id for row in rows if has_exited(row.host, row.process_id, self._store.host)
        }
        gone.discard(self._store.process_id)
        if gone:
            connection.execute(delete(processes).where(processes.c.process_id.in_(sorted(gone))))
        self._release_dead_sessions(connection)
        self._release_own_sessions(connection)
        return self._end_runs(connection)

    def _end_runs(self, connection: Connection) -> int:
        """End the runs of processes that are not known, and those that this process no longer
        takes though their time is over; return their number."""
        is_orphaned = runs.c.process_id.not_in(select(processes.c.process_id))
        since = read_database_time(connection) - timedelta(seconds=self._run_seconds)
        late = select(runs.c.run_id).where(
            runs.c.status == "running",
            runs.c.process_id == self._store.process_id,
            runs.c.started_at < since,
        )
        over = [
            run_id
            for run_id in connection.execute(late).scalars()
            if not self._store.is_live(run_id)
        ]
        return connection.execute(
            update(runs)
            .where(runs.c.status == "running", or_(is_orphaned, runs.c.run_id.in_(over)))
            .values(status="incomplete", error="process_gone", ended_at=DatabaseNow())
        ).rowcount

    @staticmethod
    def _release_dead_sessions(connection: Connection) -> None:
        """Release the sessions of processes that are not known."""
        # By name, since a session may be leased meanwhile by a process that was not known here.
        holders = select(sessions.c.lease_process).where(sessions.c.lease_process.is_not(None))
        leased = set(connection.execute(holders).scalars())
        living = set(connection.execute(select(processes.c.process_id)).scalars())
        if dead := leased - living:
            connection.execute(
                update(sessions)
                .where(sessions.c.lease_process.in_(sorted(dead)))
                .values(lease_process=None)
            )

    def _release_own_sessions(self, connection: Connection) -> None:
        """Release sessions that none of this process's turns has, as after a failure."""
        # A turn that takes one now waits for the lock, and is_held knows of one that has it.
        leased = (
            select(sessions.c.key)
            .where(sessions.c.lease_process == self._store.process_id)
            .with_for_update(skip_locked=True)
        )
        if free := [
            key for key in connection.execute(leased).scalars() if not self._store.is_held(key)
        ]:
            connection.execute(
                update(sessions).where(sessions.c.key.in_(free)).values(lease_process=None)
            )

    def _delete_batch(self, connection: Connection) -> ErasureCounts:
        # A lock of the transaction also works through a pooler, which may use another connection
        # for the next one.
        lock = text("SELECT pg_try_advisory_xact_lock(:lock)")
        if (
            connection.dialect.name == "postgresql"
            and not connection.execute(lock, {"lock": CLEANUP_LOCK}).scalar()
        ):
            return ErasureCounts()
        now = read_database_time(connection)
        self._settling.observe(now)
        if not self._settling.is_settled:
            return ErasureCounts()
        # What was used while the clock was ahead would be kept until it has caught up.
        connection.execute(
            update(sessions)
            .where(sessions.c.updated_at > now + MAX_SKEW)
            .values(updated_at=DatabaseNow())
        )
        of_agents = self.agent_retention_days  # once: another thread may replace it
        too_old = [
            and_(
                sessions.c.agent_id == agent_id, sessions.c.updated_at < now - timedelta(days=days)
            )
            for agent_id, days in of_agents.items()
        ]
        if self._retention is not None:
            others = (
                sessions.c.agent_id.not_in(list(of_agents)) if of_agents else literal(value=True)
            )
            too_old.append(
                and_(others, sessions.c.updated_at < now - timedelta(days=self._retention))
            )
        if not too_old:
            return ErasureCounts()
        # A session in use is locked, and one that was used since is not too old any more.
        oldest = (
            select(sessions.c.key)
            .where(or_(*too_old))
            .limit(BATCH)
            .with_for_update(skip_locked=True)
        )
        keys = list(connection.execute(oldest).scalars())
        if not keys:
            return ErasureCounts()
        counts = [
            connection.execute(delete(table).where(table.c.session_key.in_(keys))).rowcount
            for table in (nodes, runs, summaries)
        ]
        connection.execute(delete(sessions).where(sessions.c.key.in_(keys)))
        return ErasureCounts(len(keys), *counts)
