"""MCP servers opened as the service opens them, for tests against real ones."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from ai_agent_service.config.server_definition import ServerDefinition
from ai_agent_service.core.context import RunContext
from ai_agent_service.mcp.connection import Connection
from ai_agent_service.mcp.supervisor import McpServers, open_servers
from ai_agent_service.tools.base import ToolOutput
from tests.support.events import until


def context(seconds: float = 30.0) -> RunContext:
    """The circumstances of a run that may take `seconds`."""
    return RunContext(run_id="r", agent_id="a", deadline=time.monotonic() + seconds)


@asynccontextmanager
async def opened(
    *definitions: ServerDefinition, connect_seconds: float = 20.0
) -> AsyncGenerator[McpServers, None]:
    """The servers, being connected to."""
    wanted = {definition.server_label for definition in definitions}
    async with open_servers(
        definitions, os.environ, wanted=wanted, connect_seconds=connect_seconds, tools_seconds=3600
    ) as servers:
        yield servers


@asynccontextmanager
async def connected(definition: ServerDefinition) -> AsyncGenerator[Connection, None]:
    """The server, connected to."""
    async with opened(definition) as servers:
        connection = servers[definition.server_label]
        await until(lambda: connection.state != "starting", 40)
        assert connection.state == "ready", connection.error
        yield connection


async def run(
    connection: Connection, name: str, around: RunContext | None = None, **arguments: object
) -> ToolOutput:
    """Runs the tool that its server calls `name`."""
    [tool] = [tool for tool in connection.tools if tool.remote.name == name]
    async with asyncio.timeout(30):
        return await tool.run(arguments, around or context())


async def call(connection: Connection, name: str, text: str = "") -> str:
    """Runs a tool of mcp_rogue_stdio.py or its like on `text`, and gives its text."""
    return (await run(connection, name, text=text)).content
