"""Bound uvicorn's HTTP/1.1: the size of a request's head, and the time to send a request."""

import asyncio
import logging
import sys
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from ai_agent_service.api.http.errors import encode_error
from ai_agent_service.core.bounds import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED
from ai_agent_service.core.errors import (
    HeadersTooLargeError,
    InvalidRequestError,
    ServiceError,
    TooManyConnectionsError,
)
from ai_agent_service.core.ids import generate_id
from ai_agent_service.observability.records import UNKNOWN_ROUTE, RequestReport
from ai_agent_service.observability.request_id import current_request_id
from ai_agent_service.server.connections import ConnectionLimit

logger = logging.getLogger(__name__)


LINGER_SECONDS = 5.0
"""How long a caller whose answer came early may go on sending; closing the connection earlier could
destroy the answer."""


SAFETY_HEADERS = [("X-Content-Type-Options", "nosniff")]
"""Headers of every answer, also of those that no application makes."""

CONNECTION_CLOSE = (b"connection", b"close")
"""A header of every answer during the shutdown."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which by itself accepts heads of any size, waits for them without a
    limit, and takes trailers for headers.

    One timer for each connection checks the times, so that a chunk of an answer costs nothing here.
    It relies on uvicorn's private names: run tests/server/test_http1.py with a new uvicorn.
    """

    HEAD_SECONDS = 30.0
    """How long a request's head may take, including the wait for the first byte of a connection."""

    BODY_SECONDS = 30.0
    """In each such span a body must bring `BODY_BYTES`, so that no pause is twice as long."""

    BODY_BYTES = 1024

    WRITE_SECONDS = 30.0
    """In each such span a caller must read something of an answer that waits for it."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.url = b""
        self._limit: ConnectionLimit = self.config.loaded_app.state.connections
        self._counted: str | None = None
        """What the connection counts for."""

        self._used_at = 0.0
        """When the connection opened or the last head of a request was complete."""

        self._head_since: float | None = None
        self._head_bytes = 0
        self._unread = 0
        """Bytes since the last end of a head or piece of a body."""

        self._body_bytes = 0
        self._data = b""
        """The bytes that were read last."""

        self._is_replaying = False
        """Whether the parser is fed again with the framing of a request."""

        self._refusal: ServiceError | None = None
        self._is_deaf = False
        """Whether further bytes are ignored."""

        self._running: RequestResponseCycle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: RequestResponseCycle | None = None
        """The request whose body was incomplete at the last check."""

        self._was_idle = False
        self._unsent = -1

    # as uvicorn declares it
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch the connection, unless its address has too many."""
        super().connection_made(transport)
        self._head_since = self._used_at = self.loop.time()
        self._counted = self._limit.take(self.client)
        if self._counted is None:
            self._is_deaf = True
            self._write_refusal(_build_too_many_error())
            self.transport.close()
            return
        most = self._limit.most_with_idle
        if most is not None and len(self.connections) > most:
            self._close_idlest()
        self._timer = self.loop.call_later(self.HEAD_SECONDS, self._watch)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the watch, and notify the request that is being answered; uvicorn notifies the latest
        one."""
        if self._timer is not None:
            self._timer.cancel()
        if self._counted is not None:
            self._limit.release(self._counted)
        self._mark_disconnected(self._running)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what the caller sent, unless it had its last answer."""
        if self._is_deaf:
            return
        self._unread += len(data)
        self._data = data
        super().data_received(data)
        if self._unread > MAX_HEAD_BYTES and not self._is_deaf:
            if self._head_since is not None:
                self._refusal = _build_too_large_error()
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """Begin to measure a head."""
        if self._is_replaying:
            return
        super().on_message_begin()
        self._head_bytes = 0
        self._head_since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        """Take a piece of the address."""
        if self._is_replaying:
            return
        self._measure(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. Trailers are ignored: uvicorn would add them to the headers while the
        request is answered."""
        if self._head_since is None or self._is_replaying:
            return
        self._measure(len(name) + len(value))
        if len(self.headers) == MAX_HEADERS:
            self._refuse_head()
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Take the end of a head."""
        if self._is_replaying:
            return
        self._head_since = None
        self._used_at = self.loop.time()
        self._unread = self._body_bytes = 0
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            self._refuse_head()
        if not self.cycle.keep_alive or CONNECTION_CLOSE in self.server_state.default_headers:
            self.cycle.transport = _LingeringTransport(self, self.cycle)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._unread = 0
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Take the end of a request, unless it asks for an upgrade and has a body, which the parser
        takes for another protocol's."""
        if self._is_replaying or (self.parser.should_upgrade() and self._find_framing_headers()):
            return
        self._unread = 0
        super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Continue in HTTP/1.1 where a caller offers another protocol, as Java's client offers h2c
        with each first request.

        The parser ends such a request at its head, and uvicorn drops the rest. A new parser that is
        fed with the framing of the body reads it as a body, not as the next request.
        """
        stopped = sys.exc_info()[1]
        rest = (
            self._data[stopped.args[0] :]
            if isinstance(stopped, httptools.HttpParserUpgrade)
            else b""
        )
        if framing := self._find_framing_headers():
            lines = [b"%b: %b\r\n" % header for header in framing]
            if not self.cycle.keep_alive:
                lines.append(b"connection: close\r\n")
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
            self._is_replaying = True
            try:
                self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(lines))
            finally:
                self._is_replaying = False
        if rest:
            self.data_received(rest)

    def _find_framing_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that frame the request's body; none without a body."""
        return [
            (name, value)
            for name, value in self.headers
            if name == b"transfer-encoding" or (name == b"content-length" and value.strip(b" 0"))
        ]

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be read, in OpenAI's shape, and end the connection."""
        self._is_deaf = True
        refusal = self._refusal or InvalidRequestError(
            "This is not HTTP that can be read.", code="invalid_http"
        )
        busy = self._running is not None and not self._running.response_complete
        is_answered = busy and (self._running is not self.cycle or self.cycle.response_started)
        self._mark_disconnected(self._running)
        if is_answered:
            self.transport.close()  # an answer in progress cannot become an error
            return
        self._write_refusal(refusal)
        self.linger()

    def _write_refusal(self, refusal: ServiceError) -> None:
        """Answer without the application, and report it."""
        request_id = generate_id("req_")
        self._report(refusal, request_id)
        body = encode_error(refusal)
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[refusal.status], lines, body))

    def _report(self, refusal: ServiceError, request_id: str) -> None:
        """Count the refused request and log it, as the application does with those that reach
        it."""
        # Before the address the parser would name a default method.
        method = self.parser.get_method().decode() if self.url else ""
        now = self.loop.time()
        seconds = now - (self._head_since or now)
        client = self.client[0] if self.client else ""
        report = RequestReport(
            method, UNKNOWN_ROUTE, refusal.status, seconds, seconds, client, refusal.code, None
        )
        token = current_request_id.set(request_id)
        try:
            self.config.loaded_app.state.report_request(report)
        finally:
            current_request_id.reset(token)

    def linger(self) -> None:
        """End the connection, but let a caller that is still sending read its answer."""
        self._is_deaf = True
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _measure(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_head()

    def _refuse_head(self) -> None:
        """Stop reading a head, which takes an error; uvicorn then calls `send_400_response`."""
        self._refusal = _build_too_large_error()
        raise self._refusal

    def _mark_disconnected(self, cycle: RequestResponseCycle | None) -> None:
        """Notify a request that its caller is gone."""
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def _watch(self) -> None:
        """Close the connection if its caller does not use it; else check again later."""
        now = self.loop.time()
        again = self.HEAD_SECONDS
        waiting: RequestResponseCycle | None = None
        is_idle = False
        if self.transport.is_closing():
            self._abort_if_stuck()
        elif self.flow.write_paused:
            again = self.WRITE_SECONDS
            self._abort_if_stuck()
        elif self._is_deaf:
            pass  # linger() closes it
        elif self._head_since is not None:
            if self._running is not None and not self._running.response_complete:
                self._head_since = now  # it belongs to the next request, which may wait
            again = max(self._head_since + self.HEAD_SECONDS - now, 0.0)
            if not again:
                self._close("the head of a request did not come")
        elif self.cycle.response_complete:
            # uvicorn's own timer watches an idle connection. A request stops that timer, and so do
            # the rest of an unread body and bytes without meaning.
            is_idle = self.timeout_keep_alive_task is None
            if is_idle and self._was_idle:
                self._close("what came after an answer was no request")
        elif self.cycle.more_body and not self.flow.read_paused:
            again = self.BODY_SECONDS
            waiting = self.cycle
            if waiting is self._waiting and self._body_bytes < self.BODY_BYTES:
                self._close("the body of a request did not come")
            self._body_bytes = 0
        if not (self.transport.is_closing() or self.flow.write_paused):
            self._unsent = -1
        self._waiting, self._was_idle = waiting, is_idle
        self._timer = self.loop.call_later(again or self.HEAD_SECONDS, self._watch)

    @property
    def _is_idle(self) -> bool:
        """Whether no request is being received or answered."""
        if self.transport.is_closing():
            return False
        is_answered = self._running is None or self._running.response_complete
        return is_answered and (self._is_deaf or self.cycle in (None, self._running))

    def _close_idlest(self) -> None:
        """Close the connection that has been idle the longest, so that a new one can be served
        although descriptors run short."""
        idle = (
            each
            for each in self.connections
            if isinstance(each, BoundedProtocol) and each is not self and each._is_idle
        )
        if idlest := min(idle, key=lambda each: each._used_at, default=None):
            idlest._close("descriptors run short")

    def _close(self, reason: str) -> None:
        logger.info("connection.closed", extra={"reason": reason})
        self.transport.close()

    def _abort_if_stuck(self) -> None:
        """Abort the connection if its caller has read nothing since the last check.

        Nothing is written to a connection meanwhile: it is closing, or its writers wait.
        """
        unsent = self.transport.get_write_buffer_size()
        if unsent == self._unsent:
            logger.info("connection.closed", extra={"reason": "the answer was not read"})
            self.transport.abort()
        self._unsent = unsent


class _LingeringTransport(asyncio.Transport):
    """The transport of a connection's last answer, which closes only when nothing more comes, or
    after a while."""

    def __init__(self, protocol: BoundedProtocol, cycle: RequestResponseCycle) -> None:
        super().__init__()
        self._protocol = protocol
        self._cycle = cycle
        # without a call in between
        self.write = protocol.transport.write  # type: ignore[method-assign]
        self.is_closing = protocol.transport.is_closing  # type: ignore[method-assign]  # as above

    def close(self) -> None:
        """Close the connection."""
        if self._cycle.more_body and self._cycle.response_complete:
            self._protocol.linger()
        else:
            self._protocol.transport.close()


def _build_too_many_error() -> TooManyConnectionsError:
    return TooManyConnectionsError(
        "Your address has too many connections to this service. Close some, and use those that are"
        " open for several requests."
    )


def _build_too_large_error() -> HeadersTooLargeError:
    return HeadersTooLargeError(
        f"The request line and the headers may have {MAX_HEAD_BYTES} bytes together, in"
        f" {MAX_HEADERS} headers at most."
    )
