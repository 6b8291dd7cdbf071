"""What a database tells of itself, for health."""

import msgspec
from sqlalchemy import Connection, text

from ai_agent_service.storage.engine import Work

_REVISION = "SELECT max(version_num) FROM alembic_version"
_POSITION = (
    "SELECT CASE WHEN pg_is_in_recovery() THEN NULL ELSE CAST(pg_current_wal_flush_lsn() AS"
    " text) END"
)
_LAG = """
    SELECT CASE WHEN NOT pg_is_in_recovery() THEN NULL
                WHEN pg_last_wal_replay_lsn() >= CAST(CAST(:position AS text) AS pg_lsn) THEN 0
                ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END
"""


class DatabaseState(msgspec.Struct, frozen=True):
    """The revision of the tables, and up to where a replica has to have read (None where it was not
    asked for, or there is no telling)."""

    revision: str | None
    position: str | None


def build_state_query(*, with_position: bool) -> Work[DatabaseState]:
    """Work that reads it."""

    def read_state(connection: Connection) -> DatabaseState:
        revision = connection.execute(text(_REVISION)).scalar()
        return DatabaseState(
            revision, connection.execute(text(_POSITION)).scalar() if with_position else None
        )

    return read_state


def build_lag_query(position: str) -> Work[float | None]:
    """Work that tells how many seconds a replica is behind that has not read up to `position`: so
    old is the last that it has read. None where it is no replica, or has read nothing since its
    start."""

    def read_lag(connection: Connection) -> float | None:
        seconds = connection.execute(text(_LAG), {"position": position}).scalar()
        return None if seconds is None else float(seconds)

    return read_lag
