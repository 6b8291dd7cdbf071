"""The scripted upstream: a bare HTTP/1.1 server on loopback that answers chat completions as the
request's model says."""

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from typing import Any, cast

import uvloop

WORD = b" word"
"""Every piece of text is this, so that a reader can count the pieces."""

PLAIN_PIECES = 3
PACED_PIECES = 100
PACE = 0.005
"""Seconds between the pieces of a paced answer."""

_START = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_EMPTY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
_END = b"0\r\n\r\n"


def _event(data: bytes) -> bytes:
    """One server-sent event in an HTTP chunk of its own, as providers send it."""
    return b"%x\r\ndata: %b\n\n\r\n" % (len(data) + 8, data)


def _chunk(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
    choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]
    head = {
        "id": "chatcmpl-Bq1x7Jc0sT5mVd2e",
        "object": "chat.completion.chunk",
        "created": 1795000000,
        "model": "scripted",
    }
    return _event(json.dumps({**head, "choices": choices, **more}, separators=(",", ":")).encode())


_USAGE = {"prompt_tokens": 24, "completion_tokens": 8, "total_tokens": 32}
_ROLE = _chunk({"role": "assistant", "content": ""})
_PIECE = _chunk({"content": WORD.decode()})
_STOP = _chunk({}, "stop", usage=_USAGE) + _event(b"[DONE]") + _END
_PLAIN = _START + _ROLE + _PIECE * PLAIN_PIECES + _STOP


def _calling(name: str, arguments: str) -> bytes:
    call = {
        "index": 0,
        "id": "call_1",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
    return (
        _START
        + _ROLE
        + _chunk({"tool_calls": [call]})
        + _chunk({}, "tool_calls", usage=_USAGE)
        + _event(b"[DONE]")
        + _END
    )


_TOOLS = {
    "tool": _calling("calculate", '{"expression":"6*7"}'),
    "mcp-stdio": _calling("stdio__multiply", '{"a":6,"b":7}'),
    "mcp-http": _calling("http__multiply", '{"a":6,"b":7}'),
}
TOOL_RESULT = "42"
"""What each of these calls has for a result."""


class Upstream(asyncio.Protocol):
    """One connection. The models:

    - `plain`: a short answer, at once.
    - `paced`: 100 pieces, 5 ms apart.
    - `tool`, `mcp-stdio`, `mcp-http`: a call of a tool, and once its result is there the short
    answer.
    - `open`: the first piece at once, the rest when somebody gets `/release`.
    """

    held: list[Callable[[], None]]
    transport: asyncio.Transport

    def __init__(self, held: list[Callable[[], None]]) -> None:
        self.held = held
        self._received = b""
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops an answer that is under way."""
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Answers once a request is complete."""
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < _content_length(head):
            return
        self._received = b""
        if head.startswith(b"GET /release "):
            while self.held:
                self.held.pop()()
        if head.startswith(b"POST "):
            self._answer(json.loads(body))
        else:
            self.transport.write(_EMPTY)

    def _answer(self, request: dict[str, Any]) -> None:
        model = request["model"]
        if model == "paced":
            self.transport.write(_START + _ROLE)
            self._due = time.monotonic()
            self._later(PACED_PIECES)
        elif model == "open":
            self.transport.write(_START + _ROLE + _PIECE)
            self.held.append(self._release)
        elif model in _TOOLS and request["messages"][-1]["role"] != "tool":
            self.transport.write(_TOOLS[model])
        elif model in _TOOLS and request["messages"][-1]["content"] != TOOL_RESULT:
            self.transport.write(
                _START + _END
            )  # no answer at all, so that nobody measures calls that fail
        else:
            self.transport.write(_PLAIN)

    def _later(self, left: int) -> None:
        """Sends the next piece after the pace; the schedule is absolute, so that a stream takes its
        half second."""
        self._due += PACE
        self._timer = asyncio.get_running_loop().call_later(
            max(0.0, self._due - time.monotonic()), self._piece, left - 1
        )

    def _piece(self, left: int) -> None:
        self.transport.write(_PIECE if left else _PIECE + _STOP)
        if left:
            self._later(left)

    def _release(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(_PIECE * (PLAIN_PIECES - 1) + _STOP)


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


async def serve(port: int) -> None:
    """Serves until the process is ended."""
    held: list[Callable[[], None]] = []
    server = await asyncio.get_running_loop().create_server(
        lambda: Upstream(held), "127.0.0.1", port, backlog=4096
    )
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))
