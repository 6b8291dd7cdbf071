"""Answers over HTTP that have no end, are compressed or too large: the call fails, the session
stays."""

import asyncio
import gzip
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import pytest

from ai_agent_service.config.server_definition import ServerDefinition
from ai_agent_service.core.errors import ToolError
from ai_agent_service.mcp.connection import Connection
from tests.support.mcp_connections import call, connected
from tests.support.mcp_rogue_http import HttpRogue

LIMIT = 256 * 1024
JSON, EVENTS = "application/json", "text/event-stream"


@asynccontextmanager
async def bounded(rogue: HttpRogue) -> AsyncGenerator[Connection, None]:
    """Connect to `rogue` with a small limit."""
    definition = ServerDefinition.model_validate(
        {**rogue.definition.model_dump(), "max_message_bytes": LIMIT}
    )
    async with connected(definition) as connection:
        yield connection
        assert connection.status.restarts == 0


async def fail(connection: Connection) -> str:
    """Return why a call fails."""
    with pytest.raises(ToolError) as error:
        await call(connection, "echo", "x")
    return str(error.value)


@pytest.mark.parametrize(
    ("kind", "piece"),
    [
        (JSON, b'{"jsonrpc": "2.0", "x": "' + b"x" * 9000),
        (JSON, b"[\n" * 3000),
        (EVENTS, b"data: " + b"x" * 9000),
        (EVENTS, b": comment\n\n" * 800),
        (EVENTS, b'id: 1\ndata: {"jsonrpc": "2.0", "method": "notifications/x"}\n\n' * 100),
    ],
)
async def test_an_answer_without_end_fails_the_call_alone(
    rogue: HttpRogue, kind: str, piece: bytes
) -> None:
    sent = 0

    async def write(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n\r\n".encode())
        with suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(piece)
                sent += len(piece)
                await writer.drain()

    async with bounded(rogue) as connection:
        rogue.raw = write
        assert "larger than 262144 bytes (max_message_bytes)" in await fail(connection)
        assert sent < 16 * 1024 * 1024
        rogue.raw = None
        assert await call(connection, "echo", "next") == "next"


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate"])
async def test_a_compressed_answer_is_refused_without_expanding_it(
    rogue: HttpRogue, encoding: str
) -> None:
    bomb = gzip.compress(b" " * 10_000_000)

    async def write(writer: asyncio.StreamWriter) -> None:
        head = f"content-type: {JSON}\r\ncontent-encoding: {encoding}\r\n"
        writer.write(f"HTTP/1.1 200 OK\r\n{head}content-length: {len(bomb)}\r\n\r\n".encode())
        writer.write(bomb)
        await writer.drain()

    async with bounded(rogue) as connection:
        rogue.raw = write
        assert f"it is compressed ({encoding})" in await fail(connection)
        rogue.raw = None
        assert await call(connection, "echo", "next") == "next"
    assert all("accept-encoding: identity" in head.lower() for head in rogue.heads)


async def test_an_answer_within_the_limit_is_read(rogue: HttpRogue) -> None:
    text = "x" * (LIMIT - 1000)
    rogue.result = json.dumps({"content": [{"type": "text", "text": text}]})
    async with bounded(rogue) as connection:
        for rogue.as_event in (False, True):
            assert await call(connection, "echo") == text


async def test_an_answer_of_too_many_values_fails_the_call_alone(rogue: HttpRogue) -> None:
    rogue.result = json.dumps({"content": [], "structuredContent": {"x": [1] * 300_000}})
    async with connected(rogue.definition) as connection:
        for rogue.as_event in (False, True):
            assert "more than 250,000 values" in await fail(connection)
        rogue.result = ""
        assert await call(connection, "echo", "next") == "next"
