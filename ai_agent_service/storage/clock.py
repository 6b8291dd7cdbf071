"""The database's clock: the only one by which processes compare points in time.

Statements call it themselves, so that no process's clock is part of what they store or compare. On
SQLite it is the clock of the one host that the file is on.
"""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from ai_agent_service.storage.tables import UtcDateTime

logger = logging.getLogger(__name__)

MAX_SKEW = timedelta(hours=1)
"""How far the database's clock may be from this process's for both to be believed at once."""

MAX_DRIFT_SECONDS = 60.0
"""By how much more or less than the uptime the clock may advance from one look to the next."""

SETTLE_SECONDS = 3600.0
"""How long a clock that has jumped is watched before anything is deleted by it."""


class DatabaseNow(FunctionElement[datetime]):
    """The time at which the statement began; not that of its transaction, which may have waited."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(DatabaseNow)
def _compile_now(*_: Any, **__: Any) -> str:
    return "statement_timestamp()"


@compiles(DatabaseNow, "sqlite")
def _compile_sqlite_now(*_: Any, **__: Any) -> str:
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"  # as UtcDateTime stores it


def read_database_time(connection: Connection) -> datetime:
    """Return the time by the database's clock."""
    return connection.execute(select(DatabaseNow())).scalar_one()


def read_uptime() -> float:
    """Return seconds that never go back and count sleep of the machine where the system can."""
    boot_time: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot_time is None else time.clock_gettime(boot_time)


class ClockWatch:
    """Notices that the database's clock jumps, so that nothing is deleted because of a wrong time.

    The clock is settled unless it has jumped, or at first differed from this process's, within
    SETTLE_SECONDS of `clock`: of seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = read_uptime) -> None:
        self._clock = clock
        self._last: tuple[datetime, float] | None = None
        self._settles_at = 0.0

    @property
    def is_settled(self) -> bool:
        """Return whether the time of the last look can be relied on."""
        return self._last is not None and self._last[1] >= self._settles_at

    def observe(self, now: datetime) -> None:
        """Take note of the time by the database's clock."""
        last, at = self._last, self._clock()
        self._last = (now, at)
        if last is None:
            off = (now - datetime.now(UTC)).total_seconds()
            is_odd = abs(off) > MAX_SKEW.total_seconds()
        else:
            off = (now - last[0]).total_seconds() - (at - last[1])
            is_odd = abs(off) > MAX_DRIFT_SECONDS
        if is_odd:
            self._settles_at = at + SETTLE_SECONDS
            logger.warning(
                "database.clock_jumped" if last else "database.clock_differs",
                extra={"seconds": round(off), "cleanup_waits_seconds": SETTLE_SECONDS},
            )
