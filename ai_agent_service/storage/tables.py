"""The tables: sessions, their trees of messages, runs, summaries, and the processes that take
turns."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.types import TypeDecorator

HASH_BYTES = 16
"""Length of the digests that sessions and messages are addressed by."""


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time with its zone; SQLite, which knows no zones, keeps it in UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """What is stored."""
        return (
            value.astimezone(UTC).replace(tzinfo=None)
            if value is not None and dialect.name == "sqlite"
            else value
        )

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """What was stored, with its zone."""
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _build_owner_columns() -> tuple[Column[Any], Column[Any]]:
    """Whose row it is; every query of a user's data names both."""
    return Column("tenant", Text, nullable=False), Column("user_id", Text, nullable=False)


def _build_session_key(*, is_primary: bool = False) -> Column[Any]:
    refers = ForeignKey("sessions.key", ondelete="CASCADE")
    kind = LargeBinary(HASH_BYTES)
    return Column("session_key", kind, refers, primary_key=is_primary, nullable=False)


sessions = Table(
    "sessions",
    metadata,
    Column("key", LargeBinary(HASH_BYTES), primary_key=True),
    *_build_owner_columns(),
    Column("agent_id", Text, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    # The path of the newest message, which a turn with the server's history goes on from.
    Column("head", LargeBinary(HASH_BYTES)),
    Column("summaries", Integer, nullable=False, server_default="0"),
    # The process that takes a turn with the server's history and has the session for itself, until
    # it releases it or is gone.
    Column("lease_process", Text),
    Column("lease_until", UtcDateTime),  # not used any more
    Index("ix_sessions_newest", "tenant", "user_id", "agent_id", "updated_at"),
    Index("ix_sessions_activity", "agent_id", "updated_at"),
)
"""A conversation; `key` is a digest of tenant, user, agent and session id, and alone keeps them
unique: with a second constraint, what inserts a session at once with another process could meet
that one first, which `ON CONFLICT (key)` does not cover."""

nodes = Table(
    "nodes",
    metadata,
    Column("path", LargeBinary(HASH_BYTES), primary_key=True),
    _build_session_key(),
    *_build_owner_columns(),
    Column("parent", LargeBinary(HASH_BYTES), nullable=False),
    Column("depth", Integer, nullable=False),
    Column("role", String(16), nullable=False),
    Column("origin", String(16), nullable=False),
    Column("status", String(16), nullable=False),
    Column("body", Text, nullable=False),
    Column("steps", Text),
    # Of an answer, the run that gave it; of a user's message, the newest run that was asked by it.
    Column("run_id", Text),
    Column("usage", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Index("ix_nodes_session", "session_key", "depth"),
)
"""A user's message or an assistant's answer, addressed by what it says and all that was said before
it.

`origin` is `ours | client`, `status` `complete | incomplete`; `body` and `steps` are JSON,
encrypted where keys are set.
"""

runs = Table(
    "runs",
    metadata,
    Column("run_id", Text, primary_key=True),
    _build_session_key(),
    *_build_owner_columns(),
    Column("question", LargeBinary(HASH_BYTES), nullable=False),
    Column("answer", LargeBinary(HASH_BYTES)),
    Column("status", String(16), nullable=False),
    Column("process_id", Text, nullable=False),
    Column("message_id", Text),
    Column("error", Text),
    Column("finish_reason", String(32)),
    Column("started_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    Index("ix_runs_session", "session_key", "message_id"),
)
Index(
    "ix_sessions_leased",
    sessions.c.lease_process,
    postgresql_where=sessions.c.lease_process.is_not(None),
    sqlite_where=sessions.c.lease_process.is_not(None),
)
Index(
    "ix_runs_running",
    runs.c.process_id,
    postgresql_where=runs.c.status == "running",
    sqlite_where=runs.c.status == "running",
)
"""A turn that was asked of an agent: `status` is `running | done | incomplete`; `message_id` is the
client's own id of the turn."""

summaries = Table(
    "summaries",
    metadata,
    _build_session_key(is_primary=True),
    Column("covers", LargeBinary(HASH_BYTES), primary_key=True),
    Column("settings", LargeBinary(HASH_BYTES), primary_key=True),
    *_build_owner_columns(),
    Column("depth", Integer, nullable=False),
    Column("body", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)
"""A summary of a path up to and with the message `covers`, made with the compression settings of
that digest."""

processes = Table(
    "processes",
    metadata,
    Column("process_id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
)
"""The service's processes; one whose `seen_at` stops changing is gone, and its runs with it."""

secrets = Table(
    "secrets",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)
"""Random values of this database: the key of the addresses, encrypted where keys are set."""

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", String(32), primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("name", Text, nullable=False),
    # What the key may do, as JSON: scopes, agents, client, limits.
    Column("rights", Text, nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
    # While a key is being rotated, the secret before it works too.
    Column("previous_digest", LargeBinary(32)),
    Column("previous_until", UtcDateTime),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Column("last_used_at", UtcDateTime),
    # When the key was made, rotated or revoked, by the database's clock: what is newer than what a
    # process knows, it reads.
    Column("changed_at", UtcDateTime, nullable=False),
    Index("ix_api_keys_changed_at", "changed_at"),
)
"""The keys that callers have; a secret is kept as its HMAC-SHA256."""

limit_levels = Table(
    "limit_levels",
    metadata,
    Column("subject", Text, primary_key=True),
    # Seconds since 1970 by the database's clock, at which all that was asked will have been earned
    # again; see limits/rate_limit.py.
    Column("requests_until", Double, nullable=False),
    Column("tokens_until", Double, nullable=False),
)
"""How much a key, or a user behind it, has used of what it may ask in a minute; only where it is
limited."""

limit_runs = Table(
    "limit_runs",
    metadata,
    Column("subject", Text, primary_key=True),
    Column("run_id", Text, primary_key=True),
    Column("until", Double, nullable=False),
    Column("tokens", Integer, nullable=False),
)
"""The runs under way of what is limited, `until` when at the latest, and how many tokens were
reserved for each."""

USER_TABLES = (sessions, nodes, runs, summaries)
"""The tables that hold what users said; their rows say whose they are."""
