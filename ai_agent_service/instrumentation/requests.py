"""Trace each request, by the conventions for HTTP; the outermost layer if traces are on."""

from http import HTTPStatus

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ai_agent_service.core.text import replace_unstorable
from ai_agent_service.observability.tracing import (
    AttributeValue,
    Span,
    SpanKind,
    Tracing,
    extract_context,
)

UNTRACED_PATHS = ("/health", "/metrics")
"""What probes and scrapers request all the time."""

METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}
)
MAX_TEXT = 256


class TracingMiddleware:
    """ASGI middleware: a span from each request's head to the end of its answer, the child of the
    span in the caller's headers."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self.app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http" or scope["path"].startswith(UNTRACED_PATHS):
            await self.app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        method = scope["method"] if scope["method"] in METHODS else "HTTP"
        parent = extract_context(headers.get(b"traceparent", ""), headers.get(b"tracestate", ""))
        attributes = _build_attributes(scope, headers)
        with self._tracing.open_span(
            method, attributes, kind=SpanKind.SERVER, parent=parent
        ) as span:

            async def send_and_trace(message: Message) -> None:
                if message["type"] == "http.response.start":
                    self._record_start(span, message)
                await send(message)

            try:
                await self.app(scope, receive, send_and_trace)
            finally:
                route = scope.get("route")
                if isinstance(route, Route):
                    span.update_name(f"{method} {route.path}")
                    span.set_attribute("http.route", route.path)

    def _record_start(self, span: Span, message: Message) -> None:
        status = message["status"]
        span.set_attribute("http.response.status_code", status)
        if status >= 500 or status == HTTPStatus.FAILED_DEPENDENCY:
            self._tracing.record_error(span, str(status))
        for name, value in message.get("headers", ()):
            if name == b"x-request-id":
                request_id = value.decode("latin-1")
                span.set_attribute("http.response.header.x-request-id", (request_id,))


def _build_attributes(scope: Scope, headers: dict[bytes, str]) -> dict[str, AttributeValue]:
    """Return the attributes of a span at its start, without the caller and the query, which may
    name users."""
    known = scope["method"] in METHODS
    attributes: dict[str, AttributeValue] = {
        "http.request.method": scope["method"] if known else "_OTHER",
        "url.scheme": scope["scheme"],
        "url.path": replace_unstorable(scope["path"][:MAX_TEXT]),
        "network.protocol.version": scope["http_version"],
    }
    if not known:
        attributes["http.request.method_original"] = replace_unstorable(scope["method"][:MAX_TEXT])
    if agent := headers.get(b"user-agent"):
        attributes["user_agent.original"] = agent[:MAX_TEXT]
    address, port = scope.get("server") or (None, None)
    if address is not None:
        attributes["server.address"] = address
    if port is not None:
        attributes["server.port"] = port
    return attributes
