"""Keep all MCP servers connected in the background; unchanged ones outlive a reload."""

import asyncio
import importlib
import logging
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Self, cast

from ai_agent_service.config.server_definition import ServerDefinition
from ai_agent_service.mcp.base import OpenerFactory
from ai_agent_service.mcp.connection import Connection, ServerStatus
from ai_agent_service.mcp.wording import add_known_secrets

logger = logging.getLogger(__name__)


class McpServers:
    """The servers of one configuration, by label."""

    def __init__(self, connections: Iterable[Connection] = ()) -> None:
        self._connections = {connection.label: connection for connection in connections}

    def __contains__(self, label: object) -> bool:
        return label in self._connections

    def __getitem__(self, label: str) -> Connection:
        return self._connections[label]

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._connections.values())

    @property
    def statuses(self) -> tuple[ServerStatus, ...]:
        """The state of each server, in the order of the file."""
        return tuple(connection.status for connection in self)

    async def wait_for_start(self, seconds: float) -> None:
        """Return once each server's first start has succeeded or failed, or after `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for connection in self:
                    await connection.wait_for_start()


class McpSupervisor:
    """Keeps connections up, each in its own task, and closes all that belongs to them at the end.

    A server has `connect_seconds` to start and to answer; a list of its tools is used for
    `tools_seconds`.
    """

    def __init__(self, *, connect_seconds: float, tools_seconds: float) -> None:
        self._connect_seconds = connect_seconds
        self._tools_seconds = tools_seconds
        self._tasks: dict[Connection, asyncio.Task[None]] = {}
        self._opener_factory: OpenerFactory | None = None
        self._loading = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop(list(self._tasks))

    def build_servers(
        self,
        definitions: Iterable[ServerDefinition],
        environment: Mapping[str, str],
        *,
        wanted: Collection[str],
        before: McpServers | None = None,
    ) -> McpServers:
        """Return the servers of `definitions`; `start` connects those whose labels are `wanted`.

        A connection of `before` with the same definition is kept.
        """
        return McpServers(
            [self._build_connection(each, environment, wanted, before) for each in definitions]
        )

    def start(self, servers: McpServers, environment: Mapping[str, str]) -> None:
        """Connect in the background those of `servers` that are on and not supervised yet."""
        for connection in servers:
            if connection.state != "off" and connection not in self._tasks:
                self._tasks[connection] = asyncio.create_task(
                    self._supervise(connection, environment, servers)
                )

    async def stop(self, connections: Collection[Connection]) -> None:
        """Close the connections that are supervised, and all that belongs to them. It may be called
        again if it was cancelled."""
        ending = {
            connection: task
            for connection in connections
            if (task := self._tasks.get(connection)) is not None
        }
        for task in ending.values():
            if not task.cancelling():  # a second time would interrupt the closing
                task.cancel()
        if ending:
            await asyncio.wait(ending.values())
        for connection in ending:
            self._tasks.pop(connection, None)
            connection.fail("it is not in use any more")

    def _build_connection(
        self,
        definition: ServerDefinition,
        environment: Mapping[str, str],
        wanted: Collection[str],
        before: McpServers | None,
    ) -> Connection:
        label = definition.server_label
        old = before[label] if before is not None and label in before else None
        if old is not None and old.definition != definition:
            old = None
        if old is not None and label in wanted and self._is_supervised(old):
            return old
        off = definition.off_reason or (
            definition.find_command_problem(environment) if label in wanted else "No agent uses it."
        )
        if old is not None and old.state == "off" and old.error == off:
            return old
        if off is not None and label in wanted:
            logger.info("mcp.off", extra={"server": label, "reason": off})
        return Connection(definition, tools_seconds=self._tools_seconds, off=off)

    def _is_supervised(self, connection: Connection) -> bool:
        return (task := self._tasks.get(connection)) is not None and not task.done()

    async def _supervise(
        self, connection: Connection, environment: Mapping[str, str], servers: McpServers
    ) -> None:
        """Keep the connection up until cancelled."""
        try:
            async with self._loading:
                if self._opener_factory is None:
                    self._opener_factory = await asyncio.to_thread(_load)
                build_opener = self._opener_factory
            seconds = self._connect_seconds
            others = (other.definition for other in servers)
            definition = add_known_secrets(connection.definition, environment, others)
            opener = build_opener(definition, environment, connect_seconds=seconds)
            await connection.supervise(opener)
        except Exception:
            # A fault of ours ends this task, and agents continue without these tools.
            logger.exception("mcp.broken", extra={"server": connection.label})
            connection.fail("the MCP client failed; the log of the service says how")


@asynccontextmanager
async def open_servers(
    definitions: Iterable[ServerDefinition],
    environment: Mapping[str, str],
    *,
    wanted: Collection[str],
    connect_seconds: float,
    tools_seconds: float,
) -> AsyncGenerator[McpServers, None]:
    """Yield the servers of `definitions`, and connect those whose labels are `wanted` in the
    background; see McpSupervisor."""
    async with McpSupervisor(
        connect_seconds=connect_seconds, tools_seconds=tools_seconds
    ) as supervisor:
        servers = supervisor.build_servers(definitions, environment, wanted=wanted)
        supervisor.start(servers, environment)
        yield servers


def _load() -> OpenerFactory:
    """Import what connects, in the background since that takes a second."""
    session: Any = importlib.import_module("ai_agent_service.mcp.session")
    session.quieten_libraries()
    return cast(OpenerFactory, session.build_opener)
