"""MCP servers of the library in the test's own process, and the requests sent to them over HTTP."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ai_agent_service.config.server_definition import ServerDefinition
from ai_agent_service.mcp.connection import Connection
from tests.support.mcp_connections import connected
from tests.support.service import serving


class Request(msgspec.Struct, frozen=True):
    """A request over HTTP: its method, headers by their names in lower case, and JSON-RPC
    message."""

    method: str
    headers: dict[str, str]
    message: dict[str, Any]


class HandshakeOnly:
    """`app`, an MCP server at `/mcp`, without the protocol of 2026; `requests` are those
    received."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.requests: list[Request] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to `app`, unless it belongs to the newer protocol."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = await _body(receive)
        message: dict[str, Any] = json.loads(body) if body else {}
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        self.requests.append(Request(scope["method"], headers, message))
        if message.get("method") == "server/discover":
            await Response(status_code=404)(scope, receive, send)
            return
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def received() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, received, send)

    def asked(self, method: str) -> list[dict[str, Any]]:
        """Return the JSON-RPC messages of this method, in the order of their arrival."""
        return [
            request.message for request in self.requests if request.message.get("method") == method
        ]


async def _body(receive: Receive) -> bytes:
    pieces = []
    while (message := await receive())["type"] == "http.request":
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            break
    return b"".join(pieces)


@asynccontextmanager
async def connected_to(app: ASGIApp, **fields: Any) -> AsyncGenerator[Connection, None]:
    """Serve `app` over HTTP as the server `server` and connect to it; `fields` extend its
    definition."""
    async with serving(app) as address:
        definition = ServerDefinition(server_label="server", server_url=f"{address}/mcp", **fields)
        async with connected(definition) as connection:
            yield connection
