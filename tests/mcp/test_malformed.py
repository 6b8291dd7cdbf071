"""Servers that break the protocol over a real connection: what the model and the operator learn."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ai_agent_service.config.server_definition import ServerDefinition
from ai_agent_service.core.errors import ToolError
from tests.support.events import until
from tests.support.mcp_connections import call, connected, executed, opened
from tests.support.mcp_rogue import define_rogue
from tests.support.mcp_rogue_http import HttpRogue

pytestmark = pytest.mark.anyio

HEAD = '{"jsonrpc":"2.0","id":ID,'
WAIT = 15.0
"""Seconds that a call may take here; none of the answers is waited for so long."""


@pytest.fixture
async def rogue() -> AsyncGenerator[HttpRogue, None]:
    server = HttpRogue()
    await server.start()
    yield server
    await server.stop()


def answering(folder: Path, **answers: str) -> ServerDefinition:
    """Define a command that answers the methods as `answers` say."""
    texts = {name.replace("__", "/"): text for name, text in answers.items()}
    (folder / "answers.json").write_text(json.dumps(texts), encoding="utf-8")
    return define_rogue("well", folder)


ERRORS = [
    (HEAD + '"error":"disk full"}', "disk full"),
    (HEAD + '"error":{"code":-32603}}', "did not say why"),
    (HEAD + '"error":{"code":"E","message":"disk full"}}', "disk full"),
    (HEAD + '"error":{"code":1,"message":null,"data":"disk full"}}', "disk full"),
    ('{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"disk full"}}', "disk full"),
    ('{"jsonrpc":"2.0","error":{"code":-32700,"message":"disk full"}}', "disk full"),
    ('{"id":ID,"error":{"code":-1,"message":"disk full"}}', "disk full"),
    (HEAD[:-1] + "}", "neither a result nor an error"),
]


@pytest.mark.parametrize(("answer", "words"), ERRORS)
async def test_a_malformed_error_of_a_command_is_reported_at_once(
    tmp_path: Path, answer: str, words: str
) -> None:
    async with connected(answering(tmp_path, tools__call=answer)) as connection:
        result = await executed(connection, "rogue__echo", "{}", timeout=WAIT)
    assert (result.outcome, words in result.content) == ("error", True), result.content


@pytest.mark.parametrize("status", ["200 OK", "500 Oops", "400 Bad Request", "429 Too Many"])
@pytest.mark.parametrize("as_event", [False, True])
@pytest.mark.parametrize(("answer", "words"), ERRORS)
async def test_a_malformed_error_over_http_is_reported_at_once(
    rogue: HttpRogue, answer: str, words: str, status: str, as_event: bool
) -> None:
    async with connected(rogue.definition) as connection:
        rogue.as_event = as_event
        rogue.answer = (status, answer)
        result = await executed(connection, "rogue__echo", "{}", timeout=WAIT)
        assert result.outcome == "error"
        assert words in result.content or (as_event and status != "200 OK"), result.content
        rogue.answer = None
        assert await call(connection, "echo", "after") == "after"
        assert connection.status.restarts == 0


RESULTS = [
    (HEAD + '"result":"fine"}', "fine"),
    (HEAD + '"result":["fine"]}', "fine"),
    (HEAD + '"result":{"content":"fine"}}', "fine"),
    (HEAD + '"result":{"structuredContent":{"result":"fine"}}}', "fine"),
    ('{"id":"ID","result":{"content":[{"type":"text","text":"fine"}]}}', "fine"),
    ("[" + HEAD + '"result":{"content":[{"type":"text","text":"fine"}]}}]', "fine"),
    (HEAD + '"error":null,"result":{"content":[{"type":"text","text":"fine"}]}}', "fine"),
]


@pytest.mark.parametrize(("answer", "words"), RESULTS)
async def test_an_odd_result_of_a_command_is_read(tmp_path: Path, answer: str, words: str) -> None:
    async with connected(answering(tmp_path, tools__call=answer)) as connection:
        result = await executed(connection, "rogue__echo", "{}", timeout=WAIT)
    assert (result.outcome, words in result.content) == ("success", True), result.content


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/x+json", ""])
@pytest.mark.parametrize(("answer", "words"), RESULTS)
async def test_an_odd_result_over_http_is_read(
    rogue: HttpRogue, answer: str, words: str, kind: str
) -> None:
    async with connected(rogue.definition) as connection:
        rogue.answer, rogue.content_type = ("200 OK", answer), kind
        result = await executed(connection, "rogue__echo", "{}", timeout=WAIT)
    assert (result.outcome, words in result.content) == ("success", True), result.content


@pytest.mark.parametrize(
    ("body", "words"),
    [("", "empty"), ("<html>", "not JSON"), ('{"jsonrpc":', "not JSON"), ("3", "not a message")],
)
async def test_an_answer_that_is_no_message_is_reported_at_once(
    rogue: HttpRogue, body: str, words: str
) -> None:
    async with connected(rogue.definition) as connection:
        rogue.answer = ("200 OK", body)
        result = await executed(connection, "rogue__echo", "{}", timeout=WAIT)
    assert (result.outcome, words in result.content) == ("error", True), result.content


SESSION_ERRORS = [
    ("404 Not Found", ""),
    (
        "404 Not Found",
        '{"jsonrpc":"2.0","id":"server-error","error":{"code":-32600,"message":"x"}}',
    ),
    ("400 Bad Request", HEAD + '"error":{"code":-32000,"message":"No valid session ID"}}'),
    ("400 Bad Request", "no session"),
    ("200 OK", HEAD + '"error":{"code":-32002,"message":"Server not initialized"}}'),
    ("200 OK", HEAD + '"error":{"code":-32001,"message":"gone"}}'),
    ("200 OK", HEAD + '"error":{"code":-32602,"message":"Invalid request parameters"}}'),
    ("200 OK", HEAD + '"error":"Session not found"}'),
    ("200 OK", '{"error":"Session not found"}'),
    ("200 OK", HEAD + '"error":{"code":"-32600","message":"Invalid session"}}'),
    ("500 Oops", HEAD + '"error":{"code":-32000,"message":"Unknown Mcp-Session-Id"}}'),
]


@pytest.mark.parametrize(
    ("refusal", "as_event"),
    [
        *((refusal, False) for refusal in SESSION_ERRORS),
        *((refusal, True) for refusal in SESSION_ERRORS if refusal[0] != "500 Oops"),
    ],
)
async def test_a_session_that_the_server_forgot_is_renewed_and_the_call_made_once(
    rogue: HttpRogue, refusal: tuple[str, str], as_event: bool
) -> None:
    async with connected(rogue.definition) as connection:
        rogue.forgotten, rogue.as_event = refusal, as_event
        rogue.forget_sessions()
        assert await call(connection, "echo", "hi") == "hi"
        assert (rogue.calls, connection.status.restarts) == (["hi"], 1)


@pytest.mark.parametrize("words", ["Session not found", "Server not initialized", "expired"])
@pytest.mark.parametrize("code", [-32001, -32600, -32000])
async def test_a_tool_that_speaks_of_its_own_sessions_does_not_end_ours(
    rogue: HttpRogue, words: str, code: int
) -> None:
    async with connected(rogue.definition) as connection:
        rogue.error = {"code": code, "message": words}
        with pytest.raises(ToolError, match=words):
            await call(connection, "echo", "hi")
        assert (rogue.calls, connection.status.restarts) == (["hi"], 0)


class SseRogue:
    """A server of the older HTTP that takes no call: it refuses it with `status`."""

    def __init__(self, status: str) -> None:
        self.status = status
        self.streams: list[asyncio.StreamWriter] = []
        self.refused = 0
        self.connections: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests in the stream that was opened last."""
        self.connections.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                if head.startswith("GET"):
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
                    writer.write(b"event: endpoint\ndata: /messages\n\n")
                    self.streams.append(writer)
                    continue
                length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
                assert length is not None
                request = json.loads(await reader.readexactly(int(length[1])))
                status = "202 Accepted"
                if request["method"] == "tools/call":
                    status = self.status
                    self.refused += 1
                writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode())
                results = {"initialize": STARTED, "tools/list": {"tools": [{"name": "echo"}]}}
                if (result := results.get(request["method"])) is not None:
                    message = {"jsonrpc": "2.0", "id": request["id"], "result": result}
                    self.streams[-1].write(f"data: {json.dumps(message)}\n\n".encode())
        writer.close()

    async def close(self) -> None:
        """Close all connections."""
        for writer in self.connections:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


STARTED = {"protocolVersion": "2025-06-18", "serverInfo": {"name": "s", "version": "1"}}


@pytest.mark.parametrize(
    ("status", "calls", "words"),
    [("500 Oops", 1, "it is not known whether"), ("404 Not Found", 2, "is not available")],
)
async def test_a_call_that_an_older_server_does_not_take_is_reported_at_once(
    status: str, calls: int, words: str
) -> None:
    rogue = SseRogue(status)
    server = await asyncio.start_server(rogue.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    definition = ServerDefinition(
        server_label="rogue", server_url=f"http://127.0.0.1:{port}/sse", transport="sse"
    )
    async with connected(definition) as connection:
        result = await executed(connection, "rogue__echo", "{}", timeout=WAIT)
    server.close()
    await rogue.close()
    await server.wait_closed()
    assert (result.outcome, words in result.content) == ("error", True), result.content
    assert rogue.refused == calls


STARTS = [
    (HEAD + '"error":{"code":-32602,"message":"licence expired"}}', "licence expired"),
    (HEAD + '"error":"licence expired"}', "licence expired"),
    (HEAD + '"result":{"protocolVersion":"2024-10-07","capabilities":{}}}', "2024-10-07"),
]


@pytest.mark.parametrize(("answer", "words"), STARTS)
async def test_a_failed_handshake_is_named_and_not_called_an_exit(
    tmp_path: Path, answer: str, words: str
) -> None:
    async with opened(answering(tmp_path, initialize=answer)) as servers:
        await until(lambda: servers["rogue"].state == "down", 30)
        error = servers["rogue"].error or ""
    assert words in error
    assert "exited" not in error


@pytest.mark.parametrize(
    "result", ["{}", '{"protocolVersion":5,"capabilities":null,"serverInfo":"x"}', '"fine"']
)
async def test_a_handshake_that_says_nothing_is_enough(tmp_path: Path, result: str) -> None:
    definition = answering(tmp_path, initialize=HEAD + f'"result":{result}}}')
    async with connected(definition) as connection:
        assert await call(connection, "echo", "hi") == "hi"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("print('usage: serve DIR'); raise SystemExit(2)", "exited with code 2; it writes what"),
        ("import os; os.kill(os.getpid(), 11)", "was ended by SIGSEGV"),
        ("raise ValueError('no licence')", "ValueError: no licence"),
        (
            "import sys; sys.exit('Error: no key\\n    at main (a.js:1:2)\\n\\nNode.js v24.0.1')",
            "exited with code 1: Error: no key",
        ),
        ("import sys; sys.exit('no licence')", "exited with code 1: no licence"),
    ],
)
async def test_the_reason_of_a_failed_start_is_the_commands_own(program: str, words: str) -> None:
    entry: dict[str, Any] = {"command": sys.executable, "args": ["-c", program]}
    async with opened(ServerDefinition(server_label="rogue", **entry)) as servers:
        await until(lambda: servers["rogue"].state == "down", 30)
        error = servers["rogue"].error or ""
    assert words in error
    assert "Node.js" not in error


async def test_a_list_keeps_the_pages_before_one_that_fails(tmp_path: Path) -> None:
    listed = HEAD + '"result":{"tools":[{"name":"echo"},5,{"name":""}],"nextCursor":"next"}}'
    async with connected(answering(tmp_path, tools__list=listed)) as connection:
        assert connection.status.tools == ("echo",)
        assert connection.status.problems == ("an entry of its list has no name",)
