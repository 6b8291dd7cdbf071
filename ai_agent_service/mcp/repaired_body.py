"""Repair the messages in the bodies of HTTP responses before the library reads them."""

from collections.abc import AsyncGenerator, AsyncIterable

import httpx2
import msgspec

from ai_agent_service.core.surrogates import has_lone_surrogate
from ai_agent_service.mcp.lenient import build_error, dump_json, parse_json, repair_messages

MAX_EVENT_BYTES = 64 * 1024 * 1024
"""Of one event: a result with its images."""

_JSON_TYPES = frozenset({"", "application/json", "text/json", "text/plain"})
_OCTETS = "application/octet-stream"
_ENDPOINT = b"endpoint"


class _Request(msgspec.Struct):
    """What is read of a request's body."""

    id: int | str | None = None


def repair_response(request: httpx2.Request, response: httpx2.Response) -> None:
    """Repair the messages in the body of `response` while it is read."""
    body = response.stream
    if not isinstance(body, httpx2.AsyncByteStream) or "content-encoding" in response.headers:
        return
    request_id = _find_request_id(request)
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        response.stream = _RepairedEvents(body, request_id)
    elif request_id is not None and (
        kind in _JSON_TYPES or kind == _OCTETS or kind.endswith("+json")
    ):
        response.headers["content-type"] = "application/json"
        response.stream = _RepairedJson(body, request_id, is_error=response.status_code >= 400)


def _find_request_id(request: httpx2.Request) -> int | str | None:
    """Return the id of the JSON-RPC request that `request` sends; None if it sends none."""
    if request.method != "POST":
        return None
    try:
        return msgspec.json.decode(request.content, type=_Request).id
    except (msgspec.DecodeError, UnicodeError, httpx2.RequestNotRead):
        return None


def _is_unchanged(messages: list[dict[str, object]], value: object, text: bytes) -> bool:
    """Return whether `text`, which is `value`, needs no repair; most large results do not."""
    return messages == [value] and not has_lone_surrogate(text)


def _is_answer(value: object) -> bool:
    """Return whether the body of an HTTP error is meant as a message of the protocol."""
    return isinstance(value, dict) and ("jsonrpc" in value or isinstance(value.get("error"), dict))


class _RepairedJson(httpx2.AsyncByteStream):
    """A body that is the answer to the request `request_id`."""

    def __init__(
        self, body: httpx2.AsyncByteStream, request_id: int | str, *, is_error: bool
    ) -> None:
        self._body = body
        self._request_id = request_id
        self._is_error = is_error

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        yield self._repair(b"".join([piece async for piece in self._body]))

    def _repair(self, body: bytes) -> bytes:
        try:
            value = parse_json(body)
            messages = repair_messages(value, self._request_id)
            if _is_unchanged(messages, value, body) or (self._is_error and not _is_answer(value)):
                return body
            for message in messages:
                if "method" not in message:
                    return dump_json(message).encode()
            problem = "the server's answer is not a message of the protocol"
        except RecursionError:
            problem = "the server's answer is nested too deeply"
        except ValueError:
            problem = f"the server's answer is {'not JSON' if body.strip() else 'empty'}"
        if self._is_error:  # its status says what is wrong
            return body
        return dump_json(build_error(self._request_id, problem)).encode()

    async def aclose(self) -> None:
        """Close it."""
        await self._body.aclose()


class _RepairedEvents(httpx2.AsyncByteStream):
    """A stream of events, in which answers are those to the request `request_id` if it is known."""

    def __init__(self, body: httpx2.AsyncByteStream, request_id: int | str | None) -> None:
        self._body = body
        self._request_id = request_id

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        event: list[bytes] = []
        held = 0
        async for line in _split_lines(self._body):
            event.append(line)
            held += len(line)
            if not line.strip(b"\r\n"):
                yield self._repair(event)
            elif held > MAX_EVENT_BYTES:  # the library refuses it
                yield b"".join(event)
            else:
                continue
            event, held = [], 0
        if event:
            yield self._repair([*event, b"\n\n"])

    def _repair(self, event: list[bytes]) -> bytes:
        """Return an event with its messages repaired, as one event for each; an event of the
        protocol that is not a message is left out."""
        name = b"message"
        data: list[bytes] = []
        others: list[bytes] = []
        for line in event:
            field, _, said = line.strip(b"\r\n").removeprefix(b"\xef\xbb\xbf").partition(b":")
            said = said.removeprefix(b" ")
            if field == b"event":
                name = said
            elif field == b"data":
                data.append(said)
            elif field:
                others.append(field + b": " + said + b"\n")
        if name == _ENDPOINT or not any(data):
            return b"".join(event)
        text = b"\n".join(data)
        try:
            value = parse_json(text)
            messages = repair_messages(value, self._request_id)
            if name == b"message" and _is_unchanged(messages, value, text):
                return b"".join(event)
            repaired = list(map(dump_json, messages))
        except (ValueError, RecursionError):
            repaired = []
        if not repaired and name != b"message":
            return b"".join(event)
        head = b"".join(others)
        if not repaired:
            return head + b"\n"
        return b"".join(
            head + b"event: message\ndata: " + message.encode() + b"\n\n" for message in repaired
        )

    async def aclose(self) -> None:
        """Close it."""
        await self._body.aclose()


async def _split_lines(body: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the lines of `body` with their ends. The last one may have none, as one that is too
    long, which comes in pieces."""
    open_line: list[bytes] = []
    held = 0
    async for piece in body:
        *lines, rest = piece.split(b"\n")
        for line in lines:
            yield b"".join((*open_line, line, b"\n"))
            open_line, held = [], 0
        open_line.append(rest)
        held += len(rest)
        if held > MAX_EVENT_BYTES:
            yield b"".join(open_line)
            open_line, held = [], 0
    if held:
        yield b"".join(open_line)
