"""All MCP servers: connected in the background, closed together."""

import asyncio
import importlib
import logging
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

from app.config.mcp import ServerDefinition
from app.mcp.base import OpenerFactory
from app.mcp.connection import Connection, ServerStatus

logger = logging.getLogger(__name__)


class McpServers:
    """The servers by label."""

    def __init__(self, connections: Iterable[Connection]) -> None:
        self._connections = {connection.label: connection for connection in connections}

    def __contains__(self, label: object) -> bool:
        return label in self._connections

    def __getitem__(self, label: str) -> Connection:
        return self._connections[label]

    @property
    def statuses(self) -> tuple[ServerStatus, ...]:
        """What is known of each server now, in the order of the file."""
        return tuple(connection.status for connection in self._connections.values())

    async def settled(self, seconds: float) -> None:
        """Returns once each server's first start has come to an end, or after `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for connection in self._connections.values():
                    await connection.settled()


@asynccontextmanager
async def open_servers(
    definitions: Iterable[ServerDefinition],
    environment: Mapping[str, str],
    *,
    wanted: Collection[str],
    connect_seconds: float,
    tools_seconds: float,
) -> AsyncGenerator[McpServers, None]:
    """The servers of `definitions`, those whose labels are `wanted` being connected to in the background.

    At the end, all that belongs to them is closed. `connect_seconds` is what a server may take to start and to answer, `tools_seconds`
    how long a list of its tools is used.
    """
    on: list[ServerDefinition] = []
    connections: list[Connection] = []
    for definition in definitions:
        label = definition.server_label
        off = definition.off or (definition.not_installed(environment) if label in wanted else "No agent uses it.")
        connections.append(Connection(definition, tools_seconds=tools_seconds, off=off))
        if off is None:
            on.append(definition)
        elif label in wanted:
            logger.warning("mcp.off", extra={"server": label, "reason": off})
    servers = McpServers(connections)
    if not on:
        yield servers
        return
    running = asyncio.create_task(_supervised(servers, on, environment, connect_seconds))
    try:
        yield servers
    finally:
        running.cancel()
        await asyncio.wait((running,))


async def _supervised(
    servers: McpServers, definitions: Iterable[ServerDefinition], environment: Mapping[str, str], connect_seconds: float
) -> None:
    """Keeps the connections up until cancelled."""
    try:
        opener_of = await asyncio.to_thread(_load)
        async with asyncio.TaskGroup() as group:
            for definition in definitions:
                opener = opener_of(definition, environment, connect_seconds=connect_seconds)
                group.create_task(servers[definition.server_label].supervise(opener))
    except Exception:
        # Nobody waits for this task: what breaks it is a fault of ours, and agents go on without these tools.
        logger.exception("mcp.broken")
        for definition in definitions:
            servers[definition.server_label].fail("the MCP client failed; the log of the service says how")


def _load() -> OpenerFactory:
    """What it takes to connect, which is imported only now: it takes a second, and nobody waits for it."""
    session: Any = importlib.import_module("app.mcp.session")
    session.quieten_libraries()
    return cast(OpenerFactory, session.opener_of)
