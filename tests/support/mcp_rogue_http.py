"""MCP server over streamable HTTP that implements the protocol itself, so that it can break it."""

import asyncio
import json
import re
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from ai_agent_service.config.server_definition import ServerDefinition


class HttpRogue:
    """Server at one port that can be stopped and started again; it knows the sessions of this
    start.

    The answer to a call is its text, or `result`, raw JSON, or `error`; `as_event` sends answers as
    server-sent events. `refuses` is a status for every request, `redirects_to` an address,
    `cuts_off` the event after which the answer to a call breaks off, `forgotten` the refusal of
    unknown sessions. `answer` is the status and the body of the answer to a call, with ID for its
    id, and `content_type` the type. `raw` writes the whole response to a call.
    """

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.calls: list[str] = []
        self.arguments: list[str] = []
        self.heads: list[str] = []
        self.silent = False
        self.result = ""
        self.as_event = False
        self.refuses = ""
        self.redirects_to = ""
        self.cuts_off = ""
        self.raw: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None
        self.error: dict[str, Any] | None = None
        self.forgotten = ("404 Not Found", "")
        self.answer: tuple[str, str] | None = None
        self.content_type = "application/json"
        self.on_call: Callable[[str], Awaitable[None]] | None = None
        self.tools: list[dict[str, Any]] = [
            {"name": name, "inputSchema": {"type": "object", "properties": {}}}
            for name in ("echo", "later")
        ]
        self._server: asyncio.Server | None = None
        self._sessions: set[str] = set()
        self.connections: set[asyncio.StreamWriter] = set()

    @property
    def definition(self) -> ServerDefinition:
        """Its entry in mcp.json."""
        return ServerDefinition(
            server_label="rogue", server_url=f"http://127.0.0.1:{self.port}/mcp"
        )

    async def start(self) -> None:
        """Listen, without the sessions of an earlier start."""
        self.forget_sessions()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    def forget_sessions(self) -> None:
        """Forget all sessions."""
        self._sessions = set()

    def stop_listening(self) -> None:
        """Accept no new connection, and drop those that are idle or wait for an answer."""
        assert self._server is not None
        self._server.close()
        for writer in self.connections:
            writer.transport.abort()

    async def stop(self) -> None:
        """Close everything."""
        assert self._server is not None
        self._server.close()
        for writer in self.connections:
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.heads.append(head)
                length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length[1]) if length else 0)
                if self.silent:
                    await asyncio.sleep(600)
                if self.raw is not None and '"tools/call"' in body.decode():
                    await self.raw(writer)
                    break
                if self.cuts_off and '"tools/call"' in body.decode():
                    self.calls.append(self.cuts_off)
                    writer.write(
                        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
                        + self.cuts_off.encode()
                    )
                    await writer.drain()
                    break
                status, headers, answer = await self._answered(head, body.decode())
                kind = "text/event-stream" if self.as_event and answer else self.content_type
                text = (
                    f"event: message\ndata: {answer}\n\n" if self.as_event and answer else answer
                ).encode()
                lines = [
                    f"HTTP/1.1 {status}",
                    f"content-type: {kind}",
                    f"content-length: {len(text)}",
                    *headers,
                ]
                writer.write("\r\n".join((*lines, "", "")).encode() + text)
        self.connections.discard(writer)
        writer.close()

    async def _answered(self, head: str, body: str) -> tuple[str, list[str], str]:
        """Return the status, the headers and the body of the answer to a request."""
        request: dict[str, Any] = json.loads(body) if body else {}
        session = re.search(r"mcp-session-id: (\w+)", head, re.IGNORECASE)
        method = request.get("method", "")
        if self.redirects_to:
            return "307 Temporary Redirect", [f"location: {self.redirects_to}"], ""
        if self.refuses:
            return self.refuses, [], json.dumps({"error": head})
        if not head.startswith("POST"):
            return "405 Method Not Allowed", [], ""
        if method == "server/discover":
            return (
                "200 OK",
                [],
                self._json(request, error={"code": -32601, "message": "Method not found"}),
            )
        if method == "initialize":
            name = f"session{time.monotonic_ns()}"
            self._sessions.add(name)
            info = {"name": "rogue", "version": "1"}
            result = {
                "protocolVersion": "2025-06-18",
                "capabilities": {"tools": {}},
                "serverInfo": info,
            }
            return "200 OK", [f"mcp-session-id: {name}"], self._json(request, result=result)
        if session is None or session[1] not in self._sessions:
            body = self.forgotten[1].replace("ID", json.dumps(request.get("id")))
            return self.forgotten[0], [], body
        if "id" not in request:
            return "202 Accepted", [], ""
        if method == "tools/list":
            return "200 OK", [], self._json(request, result={"tools": self.tools})
        if method == "tools/call":
            text = await self._called(request, body)
            status, text = self.answer or ("200 OK", text)
            return status, [], text.replace("ID", json.dumps(request["id"]))
        return "200 OK", [], self._json(request, result={})

    async def _called(self, request: dict[str, Any], body: str) -> str:
        text = str(request["params"]["arguments"].get("text", ""))
        self.calls.append(text)
        self.arguments.append(body)
        if self.on_call is not None:
            await self.on_call(text)
        if request["params"]["name"] == "later":
            await asyncio.sleep(max(0.0, 0.2 - 0.01 * int(text)))
        if self.error is not None:
            return self._json(request, error=self.error)
        if self.result:
            return f'{{"jsonrpc": "2.0", "id": {request["id"]}, "result": {self.result}}}'
        return self._json(request, result={"content": [{"type": "text", "text": text}]})

    @staticmethod
    def _json(request: dict[str, Any], **answer: object) -> str:
        return json.dumps({"jsonrpc": "2.0", "id": request["id"], **answer})
