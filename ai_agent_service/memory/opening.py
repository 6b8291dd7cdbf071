"""Open the memory of all agents: the database, its housekeeping, and each agent's memory."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from ai_agent_service.config.memory_definition import MemoryDefinition
from ai_agent_service.config.settings import Settings
from ai_agent_service.core.tasks import Tasks
from ai_agent_service.memory.conversations import SqlConversations
from ai_agent_service.memory.housekeeping import Housekeeping
from ai_agent_service.memory.processes import generate_process_id
from ai_agent_service.memory.sql_memory import SessionLocks, SqlMemory
from ai_agent_service.memory.store import Store
from ai_agent_service.memory.summaries import Compressor
from ai_agent_service.memory.tokens import TokenCounter
from ai_agent_service.providers.base import Provider
from ai_agent_service.storage.database import START_SECONDS, Database, DatabaseError
from ai_agent_service.storage.encryption import DecryptionError
from ai_agent_service.storage.engine import DatabaseEngine
from ai_agent_service.storage.opening import (
    build_cipher,
    build_database_url,
    build_engine,
    prepare_tables,
)
from ai_agent_service.storage.url import parse_database_url

logger = logging.getLogger(__name__)


class Summarizer(msgspec.Struct, frozen=True):
    """What makes an agent's summaries: `model_name` is the configured model, `model` returns the
    effective one."""

    provider: Provider
    model: Callable[[], Awaitable[str]]
    model_name: str | None
    settings: Mapping[str, Any]


class Memories:
    """The open database and what uses it."""

    def __init__(
        self, settings: Settings, store: Store, housekeeping: Housekeeping, tasks: Tasks
    ) -> None:
        self._settings = settings
        self._store = store
        self._locks = SessionLocks()
        store.is_held = self._locks.is_held
        self._counter = TokenCounter()
        self.tasks = tasks
        self.housekeeping = housekeeping
        self.database = store.database
        self.counts = store.counts
        self.conversations = SqlConversations(store)

    def build_memory(
        self, definition: MemoryDefinition, summarizer: Summarizer, is_live: Callable[[str], bool]
    ) -> SqlMemory:
        """Return the memory of an agent; `is_live` returns whether a run is in progress in this
        process."""
        self._store.is_live = is_live
        compression = definition.compression
        compressor = None
        if compression.enabled:
            compressor = Compressor(
                summarizer.provider,
                summarizer.model,
                self._counter,
                model_name=summarizer.model_name,
                threshold_tokens=compression.threshold_tokens
                or self._settings.memory_compression_token_threshold,
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


@asynccontextmanager
async def open_memories(
    settings: Settings, retention_of_agents: Mapping[str, float]
) -> AsyncGenerator[Memories, None]:
    """Yield the memory of all agents at once; the database is prepared in the background."""
    address, cipher = build_database_url(settings), build_cipher(settings)
    replica = settings.database_replica_url
    store: Store

    async def prepare(engine: DatabaseEngine) -> None:
        try:
            await prepare_tables(engine, migrate=settings.database_migrate)
            async with asyncio.timeout(START_SECONDS):
                await store.prepare(engine)
        except DecryptionError as error:
            raise DatabaseError(str(error)) from error

    database = Database(
        build_engine(address, settings),
        None
        if replica is None
        else build_engine(parse_database_url(replica.get_secret_value()), settings, read_only=True),
        timeout=settings.database_timeout,
        name=address.redacted,
        prepare=prepare,
    )
    store = Store(database, cipher, generate_process_id())
    housekeeping = Housekeeping(
        store,
        retention_days=settings.memory_retention_days,
        agent_retention_days=retention_of_agents,
        interval_hours=settings.memory_cleanup_interval_hours,
        run_seconds=settings.request_timeout + settings.shutdown_timeout + 60,
    )
    await database.open(within=0)
    try:
        async with Tasks() as tasks:
            keeping = asyncio.create_task(housekeeping.run())
            try:
                yield Memories(settings, store, housekeeping, tasks)
            finally:
                keeping.cancel()
                await asyncio.wait((keeping,))
        with suppress(Exception):
            await housekeeping.unregister_process()
    finally:
        await database.close()
