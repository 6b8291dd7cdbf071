"""The tables are made and changed: once, by one process, and never backwards."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

import ai_agent_service.storage.migrate
from ai_agent_service.server.application import create_app
from ai_agent_service.storage.engine import DatabaseEngine
from ai_agent_service.storage.migrate import (
    HEAD_REVISION,
    NewerSchemaError,
    fetch_revision,
    upgrade,
)
from ai_agent_service.storage.postgres import PostgresEngine
from ai_agent_service.storage.sqlite import SqliteEngine
from ai_agent_service.storage.tables import metadata
from ai_agent_service.storage.url import parse_database_url
from tests.support.clients import asking, read_error
from tests.support.events import until
from tests.support.fake_provider import Script, says
from tests.support.postgres import DatabaseUnderTest
from tests.support.service import AGENT, configuration, open_client

MIGRATIONS = Path(ai_agent_service.storage.migrate.__file__).parent / "migrations"


@asynccontextmanager
async def opened(database: DatabaseUnderTest) -> AsyncGenerator[DatabaseEngine, None]:
    """An engine of the database."""
    address = parse_database_url(database.url)
    engine: DatabaseEngine
    engine = (
        SqliteEngine(address, timeout=10)
        if address.kind == "sqlite"
        else PostgresEngine(address, pool_size=2, timeout=10)
    )
    try:
        yield engine
    finally:
        await engine.close()


async def upgrade_beyond(engine: DatabaseEngine) -> None:
    """Give the database tables of a version that the service does not know."""
    await upgrade(engine)
    await engine.run(
        lambda connection: connection.execute(
            text("UPDATE alembic_version SET version_num = '9999'")
        ),
        write=True,
    )


def tables(connection: Connection) -> set[str]:
    """The names of the tables that there are."""
    return set(inspect(connection).get_table_names())


def test_the_newest_migration_is_the_one_that_is_told_here() -> None:
    config = Config()
    config.set_main_option("script_location", MIGRATIONS.as_posix())
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD_REVISION]


async def test_the_tables_are_made_from_nothing(database: DatabaseUnderTest) -> None:
    async with opened(database) as engine:
        assert await fetch_revision(engine) is None
        assert await upgrade(engine) is None
        assert await fetch_revision(engine) == HEAD_REVISION
        assert await engine.run(tables, write=False) == {*metadata.tables, "alembic_version"}


async def test_the_migrations_make_the_tables_that_the_service_takes_them_for(
    database: DatabaseUnderTest,
) -> None:
    def differences(connection: Connection) -> list[object]:
        found: list[object] = compare_metadata(
            MigrationContext.configure(connection, opts={"compare_server_default": True}), metadata
        )
        return found

    async with opened(database) as engine:
        await upgrade(engine)
        assert await engine.run(differences, write=False) == []


async def test_an_upgrade_of_what_is_up_to_date_changes_nothing(
    database: DatabaseUnderTest,
) -> None:
    async with opened(database) as engine:
        await upgrade(engine)
        await engine.run(
            lambda connection: connection.execute(text("INSERT INTO secrets VALUES ('kept', 'x')")),
            write=True,
        )
        assert await upgrade(engine) == HEAD_REVISION
        kept = await engine.run(
            lambda connection: connection.execute(text("SELECT value FROM secrets")).scalar(),
            write=False,
        )
    assert kept == "x"


async def test_processes_that_start_together_make_the_tables_once(
    database: DatabaseUnderTest,
) -> None:
    async with opened(database) as one, opened(database) as two, opened(database) as three:
        before = await asyncio.gather(*(upgrade(engine) for engine in (one, two, three)))
        assert sorted(before, key=str) == [HEAD_REVISION, HEAD_REVISION, None]
        assert await fetch_revision(one) == HEAD_REVISION


async def test_tables_of_a_newer_version_are_left_alone(database: DatabaseUnderTest) -> None:
    async with opened(database) as engine:
        await upgrade_beyond(engine)
        with pytest.raises(
            NewerSchemaError, match=r"'9999'.*does not know: .*older.*; use a newer one"
        ):
            await upgrade(engine)
        assert await fetch_revision(engine) == "9999"


async def test_a_migration_that_fails_leaves_nothing_behind(database: DatabaseUnderTest) -> None:
    async with opened(database) as engine:
        # A table of the same name, which the migration comes to after others.
        await engine.run(
            lambda connection: connection.execute(text("CREATE TABLE summaries (mine INTEGER)")),
            write=True,
        )
        with pytest.raises(Exception, match="already exists"):
            await upgrade(engine)
        assert await engine.run(tables, write=False) == {"summaries"}


# In the service

HELPER = {**AGENT, "resources": ["memory"]}


async def test_a_service_that_may_not_migrate_says_what_to_run(
    tmp_path: Path, database: DatabaseUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {
        **database.settings,
        "database_migrate": False,
        "allow_unauthenticated": True,
    }
    configured = configuration(tmp_path, Script(says("Hi")), agents=[HELPER], **settings)
    async with open_client(create_app(configured)) as client, opened(database) as engine:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/health/ready")).status_code == 503
        health = (await client.get("/health?detailed=true")).json()
        assert health["status"] == "unavailable"
        assert (
            health["database"]["error"]
            == f"its tables have the revision none, not {HEAD_REVISION}; run: ai-agent-service db"
            " upgrade"
        )
        refused = read_error(
            await client.post("/v1/chat/completions", json=asking(metadata={"session_id": "s"})),
            503,
        )
        assert refused["code"] == "memory_unavailable"
        assert "run: ai-agent-service db upgrade" in str(
            [record.__dict__ for record in caplog.records]
        )
        await upgrade(engine)

        async def is_ready() -> bool:
            return (await client.get("/health/ready")).status_code == 200

        await until(is_ready)
        assert (
            await client.post("/v1/chat/completions", json=asking(metadata={"session_id": "s"}))
        ).status_code == 200


@pytest.mark.parametrize("migrate", [True, False])
async def test_a_service_that_is_older_than_its_tables_says_so(
    tmp_path: Path, database: DatabaseUnderTest, migrate: bool
) -> None:
    async with opened(database) as engine:
        await upgrade_beyond(engine)
    settings: dict[str, Any] = {
        **database.settings,
        "database_migrate": migrate,
        "allow_unauthenticated": True,
    }
    configured = configuration(tmp_path, Script(says("Hi")), agents=[HELPER], **settings)
    async with open_client(create_app(configured)) as client:
        assert (await client.get("/health/ready")).status_code == 503
        error = (await client.get("/health?detailed=true")).json()["database"]["error"]
    assert "'9999'" in error
    assert "use a newer one" in error
