"""Stream an answer over HTTP: the part that does not depend on the wire format."""

from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Protocol

from ai_agent_service.providers.base import ModelEvent, ModelFinished, ModelRequest
from ai_agent_service.providers.http import HttpClient, drain
from ai_agent_service.providers.http_errors import HttpTarget


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


async def stream_answer(
    http: HttpClient,
    target: HttpTarget,
    request: ModelRequest,
    encode: Callable[[ModelRequest], bytes],
    reader: Reader,
    answer: Assembler,
) -> AsyncGenerator[ModelEvent, None]:
    """Send `request` to `target` and yield the answer's events, as `Provider.stream` promises."""
    async with http.post(target, encode(request), deadline=request.deadline) as pieces:
        async for piece in pieces:
            for data in reader.feed(piece):
                for event in answer.take(data):
                    yield event
                if answer.done:
                    break
            if answer.done:
                await drain(pieces)
                break
    for data in () if answer.done else reader.close():
        for event in answer.take(data):
            yield event
    yield answer.finish()
