"""Statements that are compiled once give the same on each kind of database, and belong to the
transaction that they are run in."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import Connection, Dialect, bindparam, exc, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url

from ai_agent_service.storage.database import Database
from ai_agent_service.storage.engine import DatabaseEngine
from ai_agent_service.storage.prepared import PreparedStatement
from ai_agent_service.storage.tables import metadata, secrets, sessions
from tests.support.postgres import DatabaseUnderTest
from tests.support.storage import make_engine

NOW = datetime(2026, 11, 24, 12, 30, tzinfo=timezone(timedelta(hours=2)))


@pytest.fixture
async def opened(database: DatabaseUnderTest) -> AsyncGenerator[Database, None]:
    """A database with our tables."""

    async def prepare(engine: DatabaseEngine) -> None:
        await engine.run(metadata.create_all, write=True)

    found = Database(make_engine(database.url), timeout=5, prepare=prepare)
    await found.open()
    yield found
    await found.close()


@pytest.fixture
def dialect(database: DatabaseUnderTest) -> Dialect:
    """How the database wants its statements."""
    return make_url(
        "sqlite://" if database.kind == "sqlite" else "postgresql+asyncpg://"
    ).get_dialect()()


@pytest.fixture
def insert_secret(dialect: Dialect) -> PreparedStatement:
    """Stores a name with its value."""
    return PreparedStatement(insert(secrets), dialect, ("name", "value"))


def named(prefix: str) -> Callable[[Connection], list[str]]:
    """Work that gives the names that are stored."""
    wanted = (
        select(secrets.c.name).where(secrets.c.name.startswith(prefix)).order_by(secrets.c.name)
    )
    return lambda connection: list(connection.execute(wanted).scalars())


async def test_rows_and_how_many_changed_are_told(
    opened: Database, dialect: Dialect, insert_secret: PreparedStatement
) -> None:
    named_so = secrets.c.name.in_([bindparam("one"), bindparam("other")])
    found = PreparedStatement(
        select(secrets.c.name, secrets.c.value).where(named_so).order_by(secrets.c.name), dialect
    )
    changed = PreparedStatement(update(secrets).where(named_so).values(value="changed"), dialect)

    def work(
        connection: Connection,
    ) -> tuple[list[tuple[str, str]], int, int, list[tuple[str, str]]]:
        insert_secret.execute_many(
            connection, [{"name": name, "value": name.upper()} for name in "abc"]
        )
        wanted = {"one": "a", "other": "b", "beside": "not a parameter"}
        before = [(name, value) for name, value in found.fetch_rows(connection, wanted)]
        counts = (
            changed.execute(connection, wanted),
            changed.execute(connection, {"one": "x", "other": "y"}),
        )
        return (
            before,
            *counts,
            [
                (name, value)
                for name, value in found.fetch_rows(connection, {"one": "b", "other": "c"})
            ],
        )

    assert await opened.write(work) == (
        [("a", "A"), ("b", "B")],
        2,
        0,
        [("b", "changed"), ("c", "C")],
    )


async def test_what_an_upsert_returns_is_told(
    opened: Database, dialect: Dialect, database: DatabaseUnderTest
) -> None:
    upsert = (sqlite.insert if database.kind == "sqlite" else postgresql.insert)(sessions)
    row = {
        "key": b"k" * 16,
        "tenant": "t",
        "user_id": "u",
        "agent_id": "a",
        "session_id": "s",
        "created_at": NOW,
        "updated_at": NOW,
    }
    statement = upsert.on_conflict_do_update(
        index_elements=["key"], set_={"head": upsert.excluded.head, "summaries": 7}
    )
    returning = statement.returning(sessions.c.key, sessions.c.head, sessions.c.summaries)
    prepared = PreparedStatement(returning, dialect, (*row, "head"))

    def work(connection: Connection) -> list[list[object]]:
        return [
            [*found]
            for _ in range(2)
            for found in prepared.fetch_rows(connection, {**row, "head": None})
        ]

    assert await opened.write(work) == [[b"k" * 16, None, 0], [b"k" * 16, None, 7]]
    stored = await opened.read(
        lambda connection: connection.execute(select(sessions.c.created_at)).scalar_one()
    )
    assert stored == NOW.astimezone(UTC)


async def test_an_error_is_sqlalchemys_and_undoes_its_transaction_alone(
    opened: Database, insert_secret: PreparedStatement
) -> None:
    await opened.write(
        lambda connection: insert_secret.execute_many(connection, [{"name": "taken", "value": ""}])
    )

    def storing(name: str) -> Callable[[Connection], None]:
        def work(connection: Connection) -> None:
            insert_secret.execute(connection, {"name": f"before {name}", "value": ""})
            insert_secret.execute(connection, {"name": name, "value": "a secret"})

        return work

    results = await asyncio.gather(
        *(opened.write(storing(name)) for name in ("one", "taken", "other")), return_exceptions=True
    )
    assert isinstance(results[1], exc.IntegrityError)
    assert "a secret" not in str(results[1])
    assert (results[0], results[2], opened.problem) == (None, None, None)
    assert await opened.read(named("before")) == ["before one", "before other"]
    with pytest.raises(exc.IntegrityError):
        await opened.write(storing("taken"))
    assert await opened.read(named("before")) == ["before one", "before other"]


async def test_a_lacking_value_is_our_fault(
    opened: Database, insert_secret: PreparedStatement
) -> None:
    with pytest.raises(KeyError, match="value"):
        await opened.write(lambda connection: insert_secret.execute(connection, {"name": "x"}))
    assert opened.problem is None
