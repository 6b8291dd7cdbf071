"""PostgreSQL through asyncpg."""

import asyncio
from typing import Any, cast
from weakref import WeakSet

import asyncpg
from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from ai_agent_service.storage.engine import PoolUsage, T, Work
from ai_agent_service.storage.url import DatabaseUrl

RECYCLE_SECONDS = 1800


class PostgresEngine:
    """A PostgreSQL server, directly or through pgbouncer in transaction mode, which is noticed by
    itself.

    `timeout` bounds a connection's opening, a wait for a free one and a statement, in seconds.
    """

    name = "postgresql"

    def __init__(
        self, address: DatabaseUrl, *, pool_size: int, timeout: float, read_only: bool = False
    ) -> None:
        self._servers = _list_servers(address)
        self._pool_size = pool_size
        self._timeout = timeout
        self._read_only = read_only
        self._engine: AsyncEngine | None = None
        self._opening = asyncio.Lock()
        self._pooled = False
        self._connections: WeakSet[Any] = WeakSet()

    @property
    def pool(self) -> PoolUsage:
        """The connections to the server."""
        return PoolUsage(
            self._pool_size,
            0 if self._engine is None else cast(QueuePool, self._engine.pool).checkedout(),
        )

    def run(self, work: Work[T], *, write: bool, timeout: float | None = None) -> asyncio.Future[T]:
        """Runs `work` on a connection of the pool."""
        return asyncio.create_task(self._run(work, timeout))

    async def _run(self, work: Work[T], timeout: float | None) -> T:
        engine = self._engine or await self._open_engine()
        async with engine.connect() as connection, connection.begin():
            if self._pooled or timeout is not None:
                milliseconds = self._milliseconds if timeout is None else int(timeout * 1000)
                await connection.exec_driver_sql(f"SET LOCAL statement_timeout = {milliseconds}")
            return await connection.run_sync(work)

    async def close(self) -> None:
        """Closes the pool; what hangs is not waited for."""
        if self._engine is not None:
            await self._engine.dispose()

    async def forget_connections(self) -> None:
        """Leaves the pool's connections and starts a new pool, which may find another server."""
        engine, self._engine = self._engine, None
        if engine is not None:
            for connection in self._connections:
                # One whose server hangs could not be closed in order; one within a transaction has
                # a deadline of its own.
                if not connection.is_closed() and not connection.is_in_transaction():
                    connection.terminate()
            await engine.dispose()

    async def _open_engine(self) -> AsyncEngine:
        async with self._opening:
            if self._engine is None:
                self._pooled = await self._is_pooled()
                self._engine = self._create_engine()
            return self._engine

    def _create_engine(self) -> AsyncEngine:
        # Behind a pooler the next statement may reach another server process, which knows no
        # statement that was prepared before.
        unprepared: dict[str, Any] = {
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": str,
        }
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self._connect,
            hide_parameters=True,
            connect_args=unprepared if self._pooled else {},
            pool_size=self._pool_size,
            max_overflow=0,
            pool_timeout=self._timeout
            * 0.8,  # so that a full pool is told from a server that hangs
            pool_recycle=RECYCLE_SECONDS,
            pool_use_lifo=True,
        )
        event.listen(engine.sync_engine, "checkout", _reject_closed)
        return engine

    async def _connect(self) -> Any:
        settings = {"application_name": "ai-agent-service"}
        if not self._pooled:
            settings["statement_timeout"] = str(self._milliseconds)
            settings["idle_in_transaction_session_timeout"] = str(self._milliseconds * 2)
        found, self._servers = await self._connect_first_usable(settings)
        self._connections.add(found)
        return found

    async def _connect_first_usable(
        self, settings: dict[str, str]
    ) -> tuple[Any, list[DatabaseUrl]]:
        """A connection to the first server that can be used, and the servers in the order to try
        next time, that one first.

        asyncpg would try them too, but give all its time to one that does not answer.
        """
        problems: dict[str, Exception] = {}
        for server in self._servers:
            try:
                found = await asyncpg.connect(
                    server.location,
                    timeout=self._timeout / len(self._servers),
                    statement_cache_size=0,
                    server_settings=settings,
                    target_session_attrs=None
                    if self._read_only or "target_session_attrs" in server.location
                    else "read-write",
                )
            except (
                OSError,
                TimeoutError,
                asyncpg.CannotConnectNowError,
                asyncpg.TargetServerAttributeNotMatched,
            ) as error:
                problems[server.hosts] = error
                continue
            return found, [server, *(other for other in self._servers if other is not server)]
        if len(problems) == 1:
            raise next(iter(problems.values()))
        raise ConnectionError(
            "; ".join(
                f"{hosts}: {str(error) or type(error).__name__}"
                for hosts, error in problems.items()
            )
        )

    async def _is_pooled(self) -> bool:
        """Whether a pooler stands between: it tells another process id than the server's own."""
        self._pooled = True  # so that nothing is asked for that a pooler refuses
        connection = await self._connect()
        try:
            pid = await connection.fetchval("SELECT pg_backend_pid()", timeout=self._timeout)
            return bool(pid != connection.get_server_pid())
        finally:
            await connection.close(timeout=self._timeout)

    @property
    def _milliseconds(self) -> int:
        return int(self._timeout * 1000)


def _list_servers(address: DatabaseUrl) -> list[DatabaseUrl]:
    """The servers to try one after the other; all of them at once where the address has asyncpg
    choose among them."""
    return (
        [address]
        if "target_session_attrs=prefer-standby" in address.location
        else list(address.servers)
    )


def _reject_closed(connection: Any, _: ConnectionPoolEntry, __: object) -> None:
    """Has the pool replace a connection that the server has closed, as after a restart."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError
