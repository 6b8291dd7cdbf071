"""Events of MCP servers over HTTP, repaired while they arrive."""

import json
from collections.abc import AsyncGenerator

import httpx2
import pytest

from ai_agent_service.mcp.repaired_body import repair_response

BODY = (
    rb'data: {"jsonrpc": "2.0", "id": 1, "result": {"a": "\ud800", "b": "\ud83d\ude00"}}'
    + b"\n\n: alive\n\ndata: ping\n\n"
    + b'id: 7\r\nevent: error\r\ndata: {"error":\r\ndata: "full"}\r\n\r\n'
    + b'event: endpoint\ndata: /x\n\ndata: {"id": 2, "result": {}}'
)
REPAIRED = (
    b'event: message\ndata: {"jsonrpc":"2.0","id":1,"result":{"a":"\\ufffd","b":"\\ud83d\\ude00"}}'
    b"\n\n: alive\n\n\n"
    b"id: 7\nevent: message\n"
    b'data: {"jsonrpc":"2.0","id":null,"error":{"code":-32603,"message":"full"}}\n\n'
    b"event: endpoint\ndata: /x\n\n"
    b'event: message\ndata: {"jsonrpc":"2.0","id":2,"result":{}}\n\n'
)


class Pieces(httpx2.AsyncByteStream):
    """A body that arrives in pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        for piece in self._pieces:
            yield piece


def repair(*pieces: bytes) -> httpx2.AsyncByteStream:
    """Return the repaired body of a stream of events."""
    response = httpx2.Response(
        200, headers={"content-type": "text/event-stream"}, stream=Pieces(*pieces)
    )
    repair_response(httpx2.Request("GET", "http://x"), response)
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    return response.stream


async def test_events_are_repaired_wherever_they_are_cut() -> None:
    cuts = [(BODY[:cut], BODY[cut:]) for cut in range(len(BODY) + 1)]
    for pieces in (*cuts, [bytes([byte]) for byte in BODY]):
        assert b"".join([piece async for piece in repair(*pieces)]) == REPAIRED


async def test_a_whole_event_is_passed_on_at_once() -> None:
    pieces = aiter(repair(b": 1\n\n: ", b"2\n\n"))
    assert await anext(pieces) == b": 1\n\n"
    assert await anext(pieces) == b": 2\n\n"


@pytest.mark.parametrize("depth", [400, 700, 950, 100_000])
@pytest.mark.parametrize("begin", [b"", b'{"id": 1, "result": ', b'{"id": 1, "error": '])
async def test_a_message_that_is_nested_too_deeply_costs_only_itself(
    begin: bytes, depth: int
) -> None:
    message = begin + b"[" * depth + b"]" * depth + (b"}" if begin else b"")
    events = b"data: " + message + b"\n\n" + b": after\n\n"
    assert b"".join([each async for each in repair(events)]).endswith(b": after\n\n")

    response = httpx2.Response(200, stream=Pieces(message))
    repair_response(httpx2.Request("POST", "http://x", json={"id": 7}), response)
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    answer = json.loads(b"".join([each async for each in response.stream]))
    assert answer["id"] == 7
