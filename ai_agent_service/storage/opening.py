"""Opens the database that the settings name."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from ai_agent_service.config.settings import Settings
from ai_agent_service.storage.database import START_SECONDS, Database, DatabaseError
from ai_agent_service.storage.encryption import Cipher, parse_keys
from ai_agent_service.storage.engine import DatabaseEngine
from ai_agent_service.storage.migrate import (
    HEAD_REVISION,
    NewerSchemaError,
    fetch_revision,
    upgrade,
)
from ai_agent_service.storage.postgres import PostgresEngine
from ai_agent_service.storage.sqlite import SqliteEngine
from ai_agent_service.storage.url import DatabaseUrl, parse_database_url


def build_database_url(settings: Settings) -> DatabaseUrl:
    """Where the settings say that the database is; raises ValueError."""
    if settings.database_url is not None:
        return parse_database_url(settings.database_url.get_secret_value())
    composed = settings.postgres_url
    return (
        parse_database_url(composed)
        if composed
        else DatabaseUrl("sqlite", (settings.data_dir / "ai-agent-service.db").as_posix())
    )


def build_cipher(settings: Settings) -> Cipher:
    """The cipher of MEMORY_ENCRYPTION_KEYS; raises ValueError."""
    keys = settings.memory_encryption_keys
    return Cipher(parse_keys(keys.get_secret_value()) if keys is not None else ())


def build_engine(
    address: DatabaseUrl, settings: Settings, *, read_only: bool = False
) -> DatabaseEngine:
    """The engine for an address; the folder of an SQLite file is made if it is not there."""
    if address.kind == "sqlite":
        return SqliteEngine(address, timeout=settings.database_timeout)
    return PostgresEngine(
        address,
        pool_size=settings.database_pool_size,
        timeout=settings.database_timeout,
        read_only=read_only,
    )


async def prepare_tables(engine: DatabaseEngine, *, migrate: bool) -> None:
    """Has the tables be those of this version: makes and changes them if `migrate`, else raises
    DatabaseError or NewerSchemaError."""
    if migrate:
        await upgrade(engine)
    elif (found := await fetch_revision(engine)) is not None and found > HEAD_REVISION:
        raise NewerSchemaError(found)
    elif found != HEAD_REVISION:
        raise DatabaseError(
            f"its tables have the revision {found or 'none'}, not {HEAD_REVISION}; run:"
            " ai-agent-service db upgrade"
        )


@asynccontextmanager
async def open_database(
    settings: Settings, *, within: float = START_SECONDS
) -> AsyncGenerator[Database, None]:
    """The database, its tables made, for those who have no business with conversations; one that
    cannot be used `within` so many seconds is waited for in the background."""
    address = build_database_url(settings)
    database = Database(
        build_engine(address, settings),
        timeout=settings.database_timeout,
        name=address.redacted,
        prepare=lambda engine: prepare_tables(engine, migrate=settings.database_migrate),
    )
    await database.open(within=within)
    try:
        yield database
    finally:
        await database.close()
