"""Opens the database that the settings name."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from ai_agent_service.config.settings import Settings
from ai_agent_service.storage.database import Database, DatabaseError
from ai_agent_service.storage.encryption import Cipher, parse_keys
from ai_agent_service.storage.engine import DatabaseEngine
from ai_agent_service.storage.migrate import HEAD, NewerSchema, revision_of, upgrade
from ai_agent_service.storage.postgres import PostgresEngine
from ai_agent_service.storage.sqlite import SqliteEngine
from ai_agent_service.storage.url import Address, parse_address


def address_of(settings: Settings) -> Address:
    """Where the settings say that the database is; raises ValueError."""
    if settings.database_url is not None:
        return parse_address(settings.database_url.get_secret_value())
    composed = settings.postgres_address
    return parse_address(composed) if composed else Address("sqlite", (settings.data_dir / "ai-agent-service.db").as_posix())


def cipher_of(settings: Settings) -> Cipher:
    """The cipher of MEMORY_ENCRYPTION_KEYS; raises ValueError."""
    keys = settings.memory_encryption_keys
    return Cipher(parse_keys(keys.get_secret_value()) if keys is not None else ())


def engine_of(address: Address, settings: Settings, *, read_only: bool = False) -> DatabaseEngine:
    """The engine for an address; the folder of an SQLite file is made if it is not there."""
    if address.kind == "sqlite":
        return SqliteEngine(address, timeout=settings.database_timeout)
    return PostgresEngine(address, pool_size=settings.database_pool_size, timeout=settings.database_timeout, read_only=read_only)


async def ready_tables(engine: DatabaseEngine, *, migrate: bool) -> None:
    """Has the tables be those of this version: makes and changes them if `migrate`, else raises DatabaseError or NewerSchema."""
    if migrate:
        await upgrade(engine)
    elif (found := await revision_of(engine)) is not None and found > HEAD:
        raise NewerSchema(found)
    elif found != HEAD:
        raise DatabaseError(f"its tables have the revision {found or 'none'}, not {HEAD}; run: ai-agent-service db upgrade")


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncGenerator[Database, None]:
    """The database, its tables made, for those who have no business with conversations; one that cannot be used is waited for."""
    address = address_of(settings)
    database = Database(
        engine_of(address, settings),
        timeout=settings.database_timeout,
        name=address.shown,
        prepare=lambda engine: ready_tables(engine, migrate=settings.database_migrate),
    )
    await database.open()
    try:
        yield database
    finally:
        await database.close()
