"""Brings the tables to this version's form, one process at a time."""

import asyncio
import logging
from importlib import import_module
from pathlib import Path
from types import ModuleType

from sqlalchemy import Connection, inspect, text

from ai_agent_service.storage.engine import DatabaseEngine
from ai_agent_service.storage.tables import metadata

logger = logging.getLogger(__name__)

HEAD_REVISION = "0002"
"""The newest of migrations/versions, told here so that nothing need be loaded to see that there is
nothing to do."""

ADVISORY_LOCK = 0x61_61_73_5F_6D_69_67_72
"""The advisory lock of PostgreSQL under which tables are changed: `aas_migr` as a number."""


class NewerSchemaError(Exception):
    """The tables were made by a version of the service that this one does not know."""

    def __init__(self, revision: str) -> None:
        super().__init__(
            f"its tables have the revision {revision!r}, which this version (at {HEAD_REVISION!r})"
            " does not know: this program is older than the tables; use a newer one"
        )
        self.revision = revision


def read_revision(connection: Connection) -> str | None:
    """The revision of the tables; None where there are none."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(
        text("SELECT version_num FROM alembic_version")
    ).scalar()
    return revision


def find_own_tables(connection: Connection) -> list[str]:
    """The tables that have the names of ours, whoever made them."""
    return sorted(metadata.tables.keys() & set(inspect(connection).get_table_names()))


async def fetch_revision(engine: DatabaseEngine) -> str | None:
    """The revision of the database's tables; None where there are none."""
    return await engine.run(read_revision, write=False)


async def upgrade(engine: DatabaseEngine) -> str | None:
    """Makes or changes the tables where that is needed; gives the revision that was there before.
    Raises NewerSchemaError."""
    before = await fetch_revision(engine)
    if before == HEAD_REVISION:
        return before
    # Not once the transaction has begun, in which it would keep the other processes of a new SQLite
    # file from their turn.
    await asyncio.to_thread(_load_alembic)
    return await engine.run(_upgrade, write=True)


def _upgrade(connection: Connection) -> str | None:
    if connection.dialect.name == "postgresql":
        # Another process may take its time under the lock; a lock of the transaction also works
        # through a pooler.
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": ADVISORY_LOCK})
    before = read_revision(connection)
    if before == HEAD_REVISION:
        return before
    alembic = _load_alembic()
    config = alembic.config.Config()
    config.set_main_option("script_location", (Path(__file__).parent / "migrations").as_posix())
    config.set_main_option("path_separator", "os")
    known = {
        script.revision
        for script in alembic.script.ScriptDirectory.from_config(config).walk_revisions()
    }
    if before is not None and before not in known:
        raise NewerSchemaError(before)
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, "head")
    logger.info("database.migrated", extra={"before": before or "nothing", "after": HEAD_REVISION})
    return before


def _load_alembic() -> ModuleType:
    """Alembic, loaded: it takes a third of a second, which a start with nothing to migrate should
    not take."""
    for name in ("command", "config", "script"):
        import_module(f"alembic.{name}")
    return import_module("alembic")
