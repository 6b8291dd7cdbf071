"""Opens the memory of all agents: the database, what looks after it, and a memory for each agent that has one."""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from ai_agent_service.config.memory_definition import MemoryDefinition
from ai_agent_service.config.settings import Settings
from ai_agent_service.core.ids import new_id
from ai_agent_service.core.tasks import Tasks
from ai_agent_service.memory.conversations import SqlConversations
from ai_agent_service.memory.housekeeping import Keeper
from ai_agent_service.memory.sql_memory import SessionLocks, SqlMemory
from ai_agent_service.memory.store import Store
from ai_agent_service.memory.summaries import Compressor
from ai_agent_service.memory.tokens import TokenCounter
from ai_agent_service.providers.base import Provider
from ai_agent_service.storage.database import Database, DatabaseError
from ai_agent_service.storage.encryption import Cipher, Undecryptable, parse_keys
from ai_agent_service.storage.migrate import HEAD, NewerSchema, revision_of, upgrade
from ai_agent_service.storage.sqlite import DatabaseEngine, PostgresEngine, SqliteEngine
from ai_agent_service.storage.url import Address, parse_address

logger = logging.getLogger(__name__)


class Summarizer(msgspec.Struct, frozen=True):
    """What an agent's summaries are made with; `model_name` is what the configuration says, `model` gives the name that it comes to."""

    provider: Provider
    model: Callable[[], Awaitable[str]]
    model_name: str | None
    settings: Mapping[str, Any]


class Memories:
    """The opened database and all that works on it."""

    def __init__(self, settings: Settings, store: Store, keeper: Keeper, tasks: Tasks) -> None:
        self._settings = settings
        self._store = store
        self._locks = SessionLocks()
        self._counter = TokenCounter()
        self.tasks = tasks
        self.keeper = keeper
        self.database = store.database
        self.counts = store.counts
        self.conversations = SqlConversations(store)

    def of(self, definition: MemoryDefinition, summarizer: Summarizer, is_live: Callable[[str], bool]) -> SqlMemory:
        """The memory of an agent; `is_live` tells whether this process takes the run of an id now."""
        self._store.is_live = is_live
        compression = definition.compression
        compressor = None
        if compression.enabled:
            compressor = Compressor(
                summarizer.provider,
                summarizer.model,
                self._counter,
                model_name=summarizer.model_name,
                threshold_tokens=compression.threshold_tokens or self._settings.memory_compression_token_threshold,
                recent_messages=compression.recent_messages_to_keep,
                timeout=self._settings.request_timeout,
                prompt=compression.prompt,
                settings=summarizer.settings,
                counts=self.counts,
            )
        return SqlMemory(
            self._store,
            self._locks,
            self.tasks,
            required=definition.required,
            window=definition.history_messages,
            compressor=compressor,
        )


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


@asynccontextmanager
async def open_memories(settings: Settings, retention_of_agents: Mapping[str, float]) -> AsyncGenerator[Memories, None]:
    """The memory of all agents. A database that cannot be used at start is waited for in the background."""
    address, cipher = address_of(settings), cipher_of(settings)
    replica = settings.database_replica_url
    store: Store

    async def prepare(engine: DatabaseEngine) -> None:
        try:
            await ready_tables(engine, migrate=settings.database_migrate)
            await store.prepare(engine)
        except Undecryptable as error:
            raise DatabaseError(str(error)) from error

    database = Database(
        engine_of(address, settings),
        None if replica is None else engine_of(parse_address(replica.get_secret_value()), settings, read_only=True),
        timeout=settings.database_timeout,
        name=address.shown,
        prepare=prepare,
    )
    process_id = f"{socket.gethostname()}:{os.getpid()}:{new_id('')[:8]}"
    store = Store(database, cipher, process_id)
    keeper = Keeper(
        store,
        retention_days=settings.memory_retention_days,
        agent_retention_days=retention_of_agents,
        interval_hours=settings.memory_cleanup_interval_hours,
        run_seconds=settings.request_timeout + settings.shutdown_timeout + 60,
    )
    await database.open()
    try:
        async with Tasks() as tasks:
            keeping = asyncio.create_task(keeper.run())
            try:
                yield Memories(settings, store, keeper, tasks)
            finally:
                keeping.cancel()
                await asyncio.wait((keeping,))
        with suppress(Exception):
            await keeper.leave()
    finally:
        await database.close()
