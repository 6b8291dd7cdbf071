"""Stream an answer over HTTP: the part that does not depend on the wire format."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import Protocol

import msgspec

from ai_agent_service.core.bounds import MAX_WHOLE_ANSWER_BYTES
from ai_agent_service.core.errors import ServiceError
from ai_agent_service.providers.base import ModelEvent, ModelFinished, ModelRequest
from ai_agent_service.providers.http import HttpClient, drain
from ai_agent_service.providers.http_errors import HttpTarget, find_body_error

MAX_LINE_BYTES = 64 * 1024
_BLANK = b"\xef\xbb\xbf \t\r\n"


class Reader(Protocol):
    """Splits a stream of bytes that may be cut anywhere into the messages of the format."""

    def feed(self, piece: bytes) -> Iterable[bytes]:
        """Return the messages that `piece` completes."""
        ...

    def close(self) -> Iterable[bytes]:
        """Return a last message that the stream's end left without its delimiter."""
        ...


class Assembler(Protocol):
    """Turns the messages of one answer into events; `done` once the answer has ended."""

    done: bool

    def take(self, data: bytes) -> Iterable[ModelEvent]:
        """Return the events of a message; raises the UpstreamError that it means."""
        ...

    def finish(self) -> ModelFinished:
        """Return the last event; raises ProviderProtocolError if the answer is incomplete."""
        ...


def not_recovered(error: ServiceError) -> None:
    """Recover from no error."""


class Exchange(msgspec.Struct, frozen=True):
    """One HTTP request and how its answer is read.

    `recover` gets the error of an answer that has no event yet, and returns what to send in place
    of the request, or None."""

    target: HttpTarget
    encode: Callable[[], bytes]
    reader: Reader
    answer: Assembler
    recover: "Recover" = not_recovered


Recover = Callable[[ServiceError], Exchange | None]


async def stream_answer(
    http: HttpClient, request: ModelRequest, exchange: Exchange
) -> AsyncGenerator[ModelEvent, None]:
    """Send `exchange` for `request` and yield the answer's events, as `Provider.stream`
    promises."""
    sent: Exchange | None = exchange
    while sent is not None:
        reader, answer = sent.reader, sent.answer
        has_output = False
        try:
            async with http.post(sent.target, sent.encode(), deadline=request.deadline) as pieces:
                piece = await read_start(pieces, sent.target)
                while piece:
                    for data in reader.feed(piece):
                        for event in answer.take(data):
                            has_output = True
                            yield event
                        if answer.done:
                            break
                    if answer.done:
                        await drain(pieces)
                        break
                    piece = await anext(pieces, b"")
            for data in () if answer.done else reader.close():
                for event in answer.take(data):
                    has_output = True
                    yield event
            finished = answer.finish()
        except ServiceError as error:
            if has_output or (sent := sent.recover(error)) is None:
                raise
        else:
            yield finished
            return


async def read_start(pieces: AsyncIterator[bytes], target: HttpTarget) -> bytes:
    """Return the first bytes of an answer; raises the error that an answer means which is an error
    in JSON, a page, or empty.

    An answer that begins like JSON or a page is read up to the first line with complete JSON, else
    to its end.
    """
    body = bytearray()
    is_whole = False
    async for piece in pieces:
        body += piece
        if is_whole and len(body) <= MAX_WHOLE_ANSWER_BYTES:
            continue
        start = body.lstrip(_BLANK)
        if is_whole or (start and start[0] not in b"{[<"):
            return bytes(body)
        line, newline, _ = start.partition(b"\n")
        if newline and _is_json(line):
            if (error := find_body_error(bytes(line), target)) is not None:
                raise error
            return bytes(body)
        is_whole = bool(newline) or len(body) > MAX_LINE_BYTES
    if (error := find_body_error(bytes(body), target)) is not None:
        raise error
    return bytes(body)


def _is_json(text: bytes | bytearray) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
