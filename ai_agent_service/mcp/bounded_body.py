"""Bound the body of an MCP server's HTTP response."""

from collections.abc import AsyncGenerator, Callable

import httpx2

from ai_agent_service.mcp.bounds import (
    MESSAGE_COST,
    MessageTooLargeError,
    Pace,
    check_message,
    describe_limit,
)


def bound_response(
    response: httpx2.Response, max_bytes: int, handle_refusal: Callable[[str], None]
) -> None:
    """Have the body of `response` refused beyond `max_bytes`, or if it is compressed: reading it
    raises, and `handle_refusal` gets the reason.

    A body of JSON, and the events that answer a request, have `max_bytes` together; a stream that
    the server may keep open has that for each line.
    """
    if isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = _BoundedBody(response, response.stream, max_bytes, handle_refusal)


class _BodyError(httpx2.StreamError, httpx2.SSEError):
    """A body is refused; the library fails the call that it answers, and not the session."""

    def __init__(self, problem: str) -> None:
        httpx2.SSEError.__init__(self, problem)


class _BoundedBody(httpx2.AsyncByteStream):
    """A body in whole lines of events, or else in one piece; see `bound_response`."""

    def __init__(
        self,
        response: httpx2.Response,
        body: httpx2.AsyncByteStream,
        max_bytes: int,
        handle_refusal: Callable[[str], None],
    ) -> None:
        self._body = body
        self._max_bytes = max_bytes
        self._handle_refusal = handle_refusal
        self._encoding = response.headers.get("content-encoding", "identity")
        self._has_events = response.headers.get("content-type", "").startswith("text/event-stream")
        self._has_total = not self._has_events or response.request.method == "POST"

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        try:
            if self._encoding != "identity":
                raise MessageTooLargeError(
                    f"it is compressed ({self._encoding[:20]}), which was not asked for"
                )
            async for piece in self._read():
                yield piece
        except MessageTooLargeError as error:
            problem = f"the server's answer was not read, since {error}"
            self._handle_refusal(problem)
            raise _BodyError(problem) from None

    async def _read(self) -> AsyncGenerator[bytes, None]:
        open_line: list[bytes] = []
        held = total = 0
        pace = Pace()
        async for piece in self._body:
            total += len(piece)
            held += len(piece)
            if held > self._max_bytes or (self._has_total and total > self._max_bytes):
                limit = describe_limit(self._max_bytes)
                raise MessageTooLargeError(f"it is larger than {limit} (max_message_bytes)")
            whole, newline, rest = piece.rpartition(b"\n")
            if not newline or not self._has_events:
                open_line.append(piece)
                continue
            lines = b"".join((*open_line, whole, newline))
            pace.charge(check_message(lines) + lines.count(b"\n") * MESSAGE_COST // 2)
            await pace.wait()
            yield lines
            open_line, held = [rest], len(rest)
        if held:
            body = b"".join(open_line)
            check_message(body)
            yield body

    async def aclose(self) -> None:
        """Close it."""
        await self._body.aclose()
