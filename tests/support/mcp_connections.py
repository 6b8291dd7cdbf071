"""MCP servers opened as the service opens them, for tests with real ones."""

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, Field

from ai_agent_service.config.read_servers import read_servers
from ai_agent_service.config.server_definition import ServerDefinition
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.messages import ToolCall, ToolResult
from ai_agent_service.mcp.connection import Connection
from ai_agent_service.mcp.supervisor import McpServers, open_servers
from ai_agent_service.tools.base import ToolOutput
from ai_agent_service.tools.toolset import Toolset
from tests.support.events import until
from tests.support.mcp_rogue_http import HttpRogue


def context(seconds: float = 30.0) -> RunContext:
    """Build the context of a run that may take `seconds`."""
    return RunContext(run_id="r", agent_id="a", deadline=time.monotonic() + seconds)


@asynccontextmanager
async def opened(
    *definitions: ServerDefinition, connect_seconds: float = 20.0
) -> AsyncGenerator[McpServers, None]:
    """Open the servers, without waiting for their connections."""
    wanted = {definition.server_label for definition in definitions}
    async with open_servers(
        definitions, os.environ, wanted=wanted, connect_seconds=connect_seconds, tools_seconds=3600
    ) as servers:
        yield servers


@asynccontextmanager
async def connected(definition: ServerDefinition) -> AsyncGenerator[Connection, None]:
    """Open the server and wait until it is connected."""
    async with opened(definition) as servers:
        connection = servers[definition.server_label]
        await until(lambda: connection.state != "starting", 40)
        assert connection.state == "ready", connection.error
        yield connection


async def run(
    connection: Connection, name: str, around: RunContext | None = None, **arguments: object
) -> ToolOutput:
    """Run the tool that its server calls `name`."""
    [tool] = [tool for tool in connection.tools if tool.remote.name == name]
    async with asyncio.timeout(30):
        return await tool.run(arguments, around or context())


async def call(connection: Connection, name: str, text: str = "") -> str:
    """Run a tool of mcp_rogue_stdio.py or its like on `text`; return its text."""
    return (await run(connection, name, text=text)).content


SECRET = "canary-77aa31"


async def executed(
    connection: Connection, name: str, arguments: str, timeout: float = 20
) -> ToolResult:
    """Return what the loop gets from the tool that models know by `name`."""
    return await Toolset(connection.tools, default_timeout=timeout).execute(
        ToolCall("c", name, arguments), context()
    )


def with_secret(
    folder: Path, rogue: HttpRogue, monkeypatch: pytest.MonkeyPatch
) -> ServerDefinition:
    """Define the server with a key in its address and one in a header."""
    entry = {
        "server_label": "rogue",
        "server_url": f"http://127.0.0.1:{rogue.port}/mcp?key=${{KEY}}",
        "header": {"Authorization": "Bearer ${KEY}"},
    }
    (folder / "mcp.json").write_text(json.dumps([entry]), encoding="utf-8")
    servers, faults = read_servers(folder / "mcp.json", {"KEY": SECRET})
    assert faults == []
    return servers.definitions[0]


class Name(BaseModel):
    """Form that a server asks a user to fill in."""

    name: Annotated[str, Field(description="Your name")]
