"""Reach MCP servers over streamable HTTP, and over the older HTTP with server-sent events."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Unpack

import httpx2
import msgspec
from fastmcp.client.transports import ClientTransport, SSETransport, StreamableHttpTransport
from fastmcp.client.transports.base import SessionKwargs, TransportOptions
from mcp import ClientSession

from ai_agent_service.config.server_definition import ServerDefinition, Transport
from ai_agent_service.mcp.bounded_body import bound_response
from ai_agent_service.mcp.client_session import LenientSession
from ai_agent_service.mcp.repaired_body import repair_response
from ai_agent_service.observability.request_id import current_request_id
from ai_agent_service.observability.tracing import build_trace_headers

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 86_400.0
"""How long the stream of a silent server is kept open."""


class RequestOutcome(msgspec.Struct):
    """The outcome of the HTTP requests of one call: the status of the last one if it is an error,
    and whether a request reached no server. `refused` is set with the first status.

    Once one `was_accepted`, a later failure, such as the library's attempt to resume an answer,
    does not mean that the call was not sent. `refusal` says why an answer was not read.
    """

    status: int | None = None
    was_not_sent: bool = False
    was_accepted: bool = False
    refused: asyncio.Event = msgspec.field(default_factory=asyncio.Event)
    refusal: str = ""

    def set_refusal(self, reason: str) -> None:
        """Note why an answer was not read."""
        self.refusal = reason


_current_outcome: ContextVar[RequestOutcome | None] = ContextVar("asked_now", default=None)


@contextmanager
def track_requests(outcome: RequestOutcome) -> Generator[None, None, None]:
    """Record the outcome of the HTTP requests that are made within."""
    token = _current_outcome.set(outcome)
    try:
        yield
    finally:
        _current_outcome.reset(token)


_OPTIONS = TransportOptions(session_class=LenientSession)


def build_http_transport(definition: ServerDefinition, transport: Transport) -> ClientTransport:
    """Return the client for the server of `definition` by `transport`, `http` or `sse`."""
    assert definition.server_url is not None
    create_client = partial(_create_http_client, max_bytes=definition.max_message_bytes)
    if transport == "sse":
        return _SseTransport(
            definition.server_url,
            headers=definition.header,
            sse_read_timeout=IDLE_SECONDS,
            httpx_client_factory=create_client,
        )
    return _HttpTransport(
        definition.server_url,
        headers=definition.header,
        httpx_client_factory=create_client,
        max_sse_event_size=definition.max_message_bytes,
    )


class _LenientTransport(ClientTransport):
    """Opens sessions of `LenientSession` over the transport of the other base class."""

    @asynccontextmanager
    async def connect_session(
        self,
        *,
        transport_options: TransportOptions | None = None,
        **session_kwargs: Unpack[SessionKwargs],
    ) -> AsyncGenerator[ClientSession, None]:
        """Yield a session; see fastmcp."""
        async with super().connect_session(transport_options=_OPTIONS, **session_kwargs) as session:
            yield session


class _HttpTransport(_LenientTransport, StreamableHttpTransport):
    """An address that speaks streamable HTTP."""


class _SseTransport(_LenientTransport, SSETransport):
    """An address that speaks the older HTTP with server-sent events."""


class _HttpClient(httpx2.AsyncClient):
    """Adds each call's request id and trace to its requests, and records their outcome, since the
    library reports a failure to all calls of a session. The library itself adds the trace to the
    message, where an MCP server looks for it."""

    def __init__(self, *, max_bytes: int, **options: Any) -> None:
        super().__init__(**options)
        self._max_bytes = max_bytes

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request; see httpx2."""
        request.headers.update(build_trace_headers())
        outcome = _current_outcome.get()
        # The session is shared; the requests of a call are sent in the context of its caller.
        if request_id := current_request_id.get():
            request.headers["X-Request-Id"] = request_id
        try:
            response = await super().send(request, **options)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout):
            if outcome is not None:
                outcome.was_not_sent = not outcome.was_accepted
            raise
        if outcome is not None and response.status_code >= 400:
            outcome.status = response.status_code
            outcome.refused.set()
        elif outcome is not None:
            outcome.status, outcome.was_accepted = None, True
        outcome = outcome or RequestOutcome()
        bound_response(response, self._max_bytes, outcome.set_refusal)
        repair_response(request, response)
        return response


def _create_http_client(
    headers: dict[str, str] | None = None,
    timeout: httpx2.Timeout | None = None,
    auth: httpx2.Auth | None = None,
    *,
    max_bytes: int,
    **_: Any,
) -> httpx2.AsyncClient:
    """Return a client without a time limit for answers: each call has its own, and a stream of
    notifications has none."""
    return _HttpClient(
        max_bytes=max_bytes,
        # A compressed body has no bound, and cannot be repaired.
        headers={"accept-encoding": "identity", **(headers or {})},
        auth=auth,
        timeout=httpx2.Timeout(CONNECT_SECONDS, read=None),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
    )
