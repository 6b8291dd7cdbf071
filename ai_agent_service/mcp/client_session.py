"""Define the session class of all transports, which reads leniently what servers send."""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack

from anyio import EndOfStream
from fastmcp.client.transports.base import SessionKwargs
from mcp import ClientSession
from mcp.shared.dispatcher import CallOptions
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher
from mcp.shared.message import SessionMessage
from mcp_types import CallToolResult, ErrorData, JSONRPCError, RequestId, jsonrpc_message_adapter
from pydantic import ValidationError

from ai_agent_service.mcp.lenient import dump_json, parse_json, repair_messages, repair_result

if TYPE_CHECKING:
    from mcp.shared._stream_protocols import ReadStream, WriteStream

logger = logging.getLogger(__name__)


class LenientSession(ClientSession):
    """A session in which one odd part of a message costs that part only."""

    def __init__(
        self,
        read_stream: "ReadStream[SessionMessage | Exception]",
        write_stream: "WriteStream[SessionMessage]",
        **options: Unpack[SessionKwargs],
    ) -> None:
        super().__init__(dispatcher=_LenientDispatcher(read_stream, write_stream), **options)

    async def validate_tool_result(self, name: str, result: CallToolResult) -> None:
        """Accept it: a model reads it, which is less particular than the tool's output schema."""


class _LenientDispatcher(JSONRPCDispatcher):
    """Repairs answers, and finds the request that an error without an id belongs to."""

    def __init__(
        self,
        read_stream: "ReadStream[SessionMessage | Exception]",
        write_stream: "WriteStream[SessionMessage]",
    ) -> None:
        super().__init__(_RepairedStream(read_stream, self._take_error), write_stream)
        self._asked: set[RequestId] = set()
        self._lost_errors: list[tuple[ErrorData, set[RequestId]]] = []
        self._notified = 0
        """Notifications that were sent and may still be refused."""

    async def send_raw_request(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        opts: CallOptions | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Send a request and return its repaired result; see the library."""
        opts = opts or {}
        request_id = opts.get("request_id")
        if request_id is None:
            request_id = self._allocate_id()
        notified = self._notified
        self._asked.add(request_id)
        try:
            raw = await super().send_raw_request(
                method, params, {**opts, "request_id": request_id}, **more
            )
            if self._notified == notified:  # the server has passed the notifications before it
                self._notified = 0
        finally:
            self._asked.discard(request_id)
            self._place_errors()
        return repair_result(method, raw)

    async def notify(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        opts: CallOptions | None = None,
        **more: Any,
    ) -> None:
        """Send a notification; see the library."""
        self._notified += 1
        await super().notify(method, params, opts, **more)

    def _take_error(self, error: ErrorData) -> None:
        """Take an error without an id: of a notification, else of a request in flight."""
        if self._notified:
            self._notified -= 1
            return
        self._lost_errors.append((error, set(self._asked)))
        self._place_errors()

    def _place_errors(self) -> None:
        """Fail the only request that an error can belong to; of several, wait for the others."""
        for entry in list(self._lost_errors):
            error, candidates = entry
            candidates &= self._asked
            if len(candidates) < 2:
                self._lost_errors.remove(entry)
                for request_id in candidates:
                    self._resolve_pending(request_id, error)


class _RepairedStream:
    """The messages of a server, of which invalid ones are repaired if possible."""

    def __init__(
        self,
        source: "ReadStream[SessionMessage | Exception]",
        take_error: Callable[[ErrorData], None],
    ) -> None:
        self._source = source
        self._take_error = take_error
        self._more: deque[SessionMessage] = deque()

    @property
    def last_context(self) -> Any:
        """The context in which the last message was received, of a stream that has one."""
        return getattr(self._source, "last_context", None)

    async def receive(self) -> SessionMessage | Exception:
        """Return the next message."""
        while True:
            item = self._more.popleft() if self._more else await self._source.receive()
            if isinstance(item, ValidationError):
                self._more.extend(repaired := _repair(item))
                if not repaired:
                    return item
                continue
            message = None if isinstance(item, Exception) else item.message
            if isinstance(message, JSONRPCError) and message.id is None:
                self._take_error(message.error)
                continue
            return item

    async def aclose(self) -> None:
        """Close it."""
        await self._source.aclose()

    def __aiter__(self) -> "_RepairedStream":
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> "_RepairedStream":
        await self._source.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return await self._source.__aexit__(kind, error, trace)


def _repair(error: ValidationError) -> list[SessionMessage]:
    """Return the messages that the library refused with `error`; none if they are not messages."""
    value = _find_message(error)
    if isinstance(value, str | bytes):
        try:
            value = parse_json(value)
        except ValueError:
            return []
    try:
        return [
            SessionMessage(jsonrpc_message_adapter.validate_json(dump_json(each), by_name=False))
            for each in repair_messages(value)
        ]
    except (ValidationError, ValueError, RecursionError):
        return []


def _find_message(error: ValidationError) -> object:
    """Return the whole message that the library refused, as text or as a JSON value."""
    for part in error.errors(include_url=False, include_context=False):
        # A whole message lacks something of at least one of the kinds that it may be of.
        if part["type"] in ("missing", "json_invalid", "model_type", "model_attributes_type"):
            return part["input"]
    return None
