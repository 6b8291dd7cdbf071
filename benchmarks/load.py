"""The load generator: chat completions over bare keep-alive connections, each answer read to its
end and checked."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import asynccontextmanager

from benchmarks.upstream import PACED_PIECES, PLAIN_PIECES, WORD

ANSWER_SECONDS = 60.0
PIECES = {"plain": PLAIN_PIECES, "paced": PACED_PIECES, "tool": PLAIN_PIECES, "open": PLAIN_PIECES}
PIECES |= {"mcp-stdio": PLAIN_PIECES, "mcp-http": PLAIN_PIECES, "remembering": PLAIN_PIECES}
"""How many pieces of text the answer of each model has."""


class IncompleteAnswer(Exception):
    """An answer that is not all of what the upstream says; the figures of its run mean nothing."""


class Connection:
    """One keep-alive connection to a server; takes one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, model: str, request: bytes | None = None) -> float:
        """Has `model` answer, and gives the seconds it took; raises IncompleteAnswer."""
        started = time.perf_counter()
        async with asyncio.timeout(ANSWER_SECONDS):
            async for _ in self.pieces(model, request):
                pass
        return time.perf_counter() - started

    async def pieces(self, model: str, request: bytes | None = None) -> AsyncGenerator[bytes, None]:
        """The answer of `model` as it comes, in the pieces of its HTTP chunks; raises
        IncompleteAnswer."""
        self._writer.write(request or _request(model, QUESTION))
        body = b""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200 "):
                raise IncompleteAnswer(f"{model}: {head.splitlines()[0].decode()}")
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                piece = await self._reader.readexactly(size + 2)
                body += piece[:-2]
                yield piece
            await self._reader.readexactly(2)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise IncompleteAnswer(f"{model}: the connection broke off") from error
        if not body.endswith(b"data: [DONE]\n\n") or body.count(WORD) != PIECES[model]:
            raise IncompleteAnswer(
                f"{model}: {body.count(WORD)} of {PIECES[model]} pieces, ending with"
                f" {body[-200:]!r}"
            )

    async def get(self, path: str) -> bool:
        """Whether a GET is answered 200; its body is not read, so this is the connection's last
        request."""
        self._writer.write(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
        return (await self._reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200 ")

    def close(self) -> None:
        """Closes it."""
        self._writer.close()


@asynccontextmanager
async def connections(port: int, count: int) -> AsyncGenerator[list[Connection], None]:
    """`count` connections to `port`."""
    found: list[Connection] = []
    try:
        for _ in range(count):
            found.append(Connection(*await asyncio.open_connection("127.0.0.1", port)))
        yield found
    finally:
        for connection in found:
            connection.close()


async def turns(port: int, model: str, *, count: int, concurrency: int) -> None:
    """Takes `count` turns, `concurrency` of them at any time."""
    left = iter(range(count))
    async with connections(port, concurrency) as opened, asyncio.TaskGroup() as group:
        for connection in opened:
            group.create_task(_share(connection, model, left))


async def _share(connection: Connection, model: str, left: Iterator[int]) -> None:
    for _ in left:
        await connection.ask(model)


class Conversation:
    """A session of a client with the model `remembering`, which each turn makes longer by a
    question and its answer.

    It begins with `before` messages, an even number, that the service is told with the first turn.
    """

    def __init__(self, before: int) -> None:
        self.session = uuid.uuid4().hex
        """Its id."""
        self._number = 0
        self._said = bytearray()
        for _ in range(before // 2):
            self._add(self._question(), _message("assistant", EARLIER_ANSWER))

    async def turn(self, connection: Connection, *, is_whole: bool = True) -> float:
        """Asks the next question: with all that was said before, or alone, for the service to know
        the rest itself; gives the seconds it took."""
        question = self._question()
        headers = f"x-session-id: {self.session}\r\n"
        if is_whole:
            request = _request("remembering", bytes(self._said) + question, headers)
        else:
            request = _request("remembering", question, headers + "x-session-history: server\r\n")
        seconds = await connection.ask("remembering", request)
        self._add(question, _ANSWER)
        return seconds

    def _question(self) -> bytes:
        self._number += 1
        return _message("user", f"{EARLIER_QUESTION} ({self._number})")

    def _add(self, question: bytes, answer: bytes) -> None:
        self._said += question + b"," + answer + b","


async def conversations(
    port: int,
    sessions: Iterable[Conversation],
    *,
    turns: int,
    concurrency: int,
    is_whole: bool = True,
) -> None:
    """Takes `turns` turns in each of the sessions, one after the other, in `concurrency` sessions
    at any time."""
    left = iter(sessions)
    async with connections(port, concurrency) as opened, asyncio.TaskGroup() as group:
        for connection in opened:
            group.create_task(_share_of_sessions(connection, left, turns, is_whole))


async def _share_of_sessions(
    connection: Connection, left: Iterator[Conversation], turns: int, is_whole: bool
) -> None:
    for session in left:
        for _ in range(turns):
            await session.turn(connection, is_whole=is_whole)


async def get(port: int, path: str) -> bool:
    """Whether a GET is answered 200."""
    try:
        async with connections(port, 1) as (connection,):
            return await connection.get(path)
    except (OSError, asyncio.IncompleteReadError):
        return False


async def is_healthy_in_detail(port: int) -> bool:
    """Whether the server at `port` and all its parts are healthy."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            b"GET /health?detailed=true HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
        )
        body = (await reader.read()).partition(b"\r\n\r\n")[2]
        return bool(json.loads(body)["status"] == "healthy")
    finally:
        writer.close()


def _message(role: str, content: str) -> bytes:
    return json.dumps({"role": role, "content": content}).encode()


def _request(model: str, messages: bytes, headers: str = "") -> bytes:
    """A streamed request with these messages, which are JSON with commas between them."""
    body = b'{"model": "%b", "messages": [%b], "stream": true}' % (model.encode(), messages)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n{headers}content-type:"
        " application/json\r\n"
    )
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


QUESTION = _message("user", "What is six times seven? Say it in a few words, and say how you know.")
EARLIER_QUESTION = "How is that done, and what does it come to if the number is larger than before?"
EARLIER_ANSWER = (
    "It is done in steps. First the larger part is taken and set aside, then what is left is looked"
    " at again in the same way, and so on until nothing is left that could be taken. What was set"
    " aside is put together at the end. With a larger number there are more steps, but each of them"
    " costs as much as before, so that the whole grows with the number of digits and not with the"
    " number itself."
)
_ANSWER = _message("assistant", WORD.decode() * PLAIN_PIECES)
