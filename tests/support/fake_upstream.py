"""Provider's server that follows a script byte by byte, to play any fault of HTTP and TCP."""

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable, Generator, Iterable
from types import TracebackType
from typing import Any, Literal, Self

import msgspec

Action = bytes | float | asyncio.Event | Literal["close", "reset"]
"""Bytes are sent as they are, a float is slept (seconds), an Event waited for; `close` and `reset`
(RST) end the connection."""

DEADLINE = 5.0
"""Seconds after which a test that waits for something here fails."""


class Received(msgspec.Struct):
    """One request: `headers` by their names in lower case, `at` a reading of `time.monotonic()`."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class Upstream:
    """Server at a port of 127.0.0.1, by default a free one, open within `async with`.

    Each request gets the next of `answers`, the last one repeatedly. An answer is everything that
    is sent, status line included; `reply`, `events` and `lines` build common ones. It may be
    endless. A connection is kept for the next request unless the answer ends it.
    """

    def __init__(self, *answers: Iterable[Action], port: int = 0) -> None:
        self.answers = answers
        self._port = port
        self.requests: list[Received] = []
        self.connections = 0
        """How many were ever opened."""
        self.disconnects = 0
        """How many answers the client left before their end."""
        self.open: set[_Connection] = set()
        """The connections open now."""
        self.tasks: list[asyncio.Task[None]] = []
        """One for each connection there was."""
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self), "127.0.0.1", self._port, backlog=1000
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self.open:
            connection.transport.abort()
        await self.until(lambda: not self.open)
        for outcome in await asyncio.gather(*self.tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    @property
    def url(self) -> str:
        """Its address, such as `http://127.0.0.1:40123`."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def until(self, met: Callable[[], bool], *, timeout: float = DEADLINE) -> None:
        """Wait until `met()`, evaluated at each change here; raise TimeoutError after `timeout`
        seconds."""
        async with asyncio.timeout(timeout):
            while not met():
                self._changed.clear()
                await self._changed.wait()

    def changed(self) -> None:
        """Wake those that wait in `until`."""
        self._changed.set()


class _Connection(asyncio.Protocol):
    """Reads one request after the other and follows the script for each."""

    transport: asyncio.Transport

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._bytes = bytearray()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._answering = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._writable.set()
        self._upstream.connections += 1
        self._upstream.open.add(self)
        self._task = asyncio.create_task(self._serve())
        self._upstream.tasks.append(self._task)
        self._upstream.changed()

    def data_received(self, data: bytes) -> None:
        self._bytes += data
        self._arrived.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._upstream.open.discard(self)
        self._upstream.disconnects += self._answering
        self._task.cancel()
        self._upstream.changed()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def _serve(self) -> None:
        while True:
            request = await self._request()
            answers = self._upstream.answers
            answer = answers[min(len(self._upstream.requests), len(answers) - 1)]
            self._upstream.requests.append(request)
            self._answering = True
            self._upstream.changed()
            for action in answer:
                await self._act(action)
            self._answering = False

    async def _act(self, action: Action) -> None:
        match action:
            case bytes():
                self.transport.write(action)
                await asyncio.sleep(0)
                await self._writable.wait()
            case asyncio.Event():
                await action.wait()
            case "close" | "reset":
                self._answering = False
                if (
                    action == "reset"
                ):  # with a linger time of 0 the kernel sends RST in place of FIN
                    connection = self.transport.get_extra_info("socket")
                    connection.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                    self.transport.abort()
                self.transport.close()
                await asyncio.Event().wait()  # until connection_lost
            case float():
                await asyncio.sleep(action)

    async def _request(self) -> Received:
        head = (
            await self._until(
                lambda: self._bytes.find(b"\r\n\r\n") + 4 if b"\r\n\r\n" in self._bytes else 0
            )
        ).decode("latin-1")
        first, *fields = head.strip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (field.partition(":") for field in fields)
        }
        length = int(headers.get("content-length", "0"))
        body = (
            await self._until(lambda: length if len(self._bytes) >= length else 0)
            if length
            else b""
        )
        return Received(method, path, headers, body, time.monotonic())

    async def _until(self, complete: Callable[[], int]) -> bytes:
        """Take the first `complete()` bytes once it is not 0."""
        while not (size := complete()):
            self._arrived.clear()
            await self._arrived.wait()
        taken = bytes(self._bytes[:size])
        del self._bytes[:size]
        return taken


def reply(
    status: int = 200, body: object = b"", content_type: str = "application/json", **headers: str
) -> list[Action]:
    """Build a whole answer with its length.

    A `body` that is not bytes is sent as JSON, `retry_after="1"` as the header `retry-after: 1`.
    """
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    return [
        head(status, content_type, chunked=False, content_length=str(len(sent)), **headers) + sent
    ]


def head(
    status: int = 200,
    content_type: str = "text/event-stream",
    *,
    chunked: bool = True,
    **headers: str,
) -> bytes:
    """Build the status line and the headers, by default of a stream of `chunk`s that `END` ends."""
    fields = {"content-type": content_type, **({"transfer-encoding": "chunked"} if chunked else {})}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    return "\r\n".join(
        [
            f"HTTP/1.1 {status} Status",
            *(f"{name}: {value}" for name, value in fields.items()),
            "",
            "",
        ]
    ).encode()


def chunk(data: bytes) -> bytes:
    """Encode `data` as one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


END = b"0\r\n\r\n"
"""The end of a chunked body."""


def event(value: object) -> bytes:
    """Encode `value`, JSON, as one server-sent event in one chunk."""
    return chunk(b"data: " + json.dumps(value).encode() + b"\n\n")


DONE = chunk(b"data: [DONE]\n\n")
"""The last event of a stream of chat completion chunks."""


def delta(finish_reason: str | None = None, **fields: object) -> dict[str, Any]:
    """Build a chat completion chunk with `fields` in its delta."""
    return {
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": fields, "finish_reason": finish_reason}],
    }


def events(*values: object) -> list[Action]:
    """Build a whole stream of server-sent events: `values`, then `[DONE]`."""
    return [head(), *(event(value) for value in values), DONE, END]


def says(*pieces: str) -> list[Action]:
    """Build a whole stream of chat completion chunks with the text `pieces`."""
    usage = {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": len(pieces)}}
    return events(*(delta(content=piece) for piece in pieces), delta("stop"), usage)


def line(value: object) -> bytes:
    """Encode `value` as one line of JSON in one chunk."""
    return chunk(json.dumps(value).encode() + b"\n")


def lines(*values: object) -> list[Action]:
    """Build a whole stream of lines of JSON."""
    return [head(content_type="application/x-ndjson"), *(line(value) for value in values), END]


@contextlib.contextmanager
def deaf_port() -> Generator[int, None, None]:
    """Open a port of 127.0.0.1 that never accepts connections, because its queue is full."""
    with contextlib.ExitStack() as sockets:
        listening = sockets.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]
