"""The outermost layer: gives each request its id and makes an answer of what nobody else caught."""

import asyncio
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import error_response, internal_error
from app.api.stopping import Stopping, stopped
from app.core.errors import CrossSiteRequest
from app.observability.request_id import accepted_or_new, current_request_id

logger = logging.getLogger(__name__)


class Edge:
    """ASGI middleware: `x-request-id` in and out, HEAD as GET without a body, no POST from other sites' pages, a 500 in OpenAI's shape for
    a fault of ours, a 503 for what cannot be answered any more. Each request counts as under way, so that what it may use stays open."""

    def __init__(self, app: ASGIApp, stopping: Stopping) -> None:
        self.app = app
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = accepted_or_new(given.decode("latin-1"))
        scope.setdefault("state", {})["request_id"] = request_id
        current_request_id.set(request_id)
        header = (b"x-request-id", request_id.encode())
        started = False
        is_head = scope["method"] == "HEAD"
        if is_head:
            scope = {**scope, "method": "GET"}

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), header]
            elif is_head:
                message["body"] = b""
            await send(message)

        period = scope["app"].state.service.period
        period.begin()
        try:
            if scope["method"] == "POST" and (b"sec-fetch-site", b"cross-site") in scope["headers"]:
                refused = CrossSiteRequest("Requests from web pages of other sites are not taken.")
                await error_response(refused)(scope, receive, send_with_id)
            elif self._stopping.refuses(scope["path"]):
                await error_response(stopped())(scope, receive, send_with_id)
            else:
                await self.app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            if started or not self._stopping.is_closed:
                raise
            await error_response(stopped())(scope, receive, send_with_id)  # only the server cancels requests, once their time is up
        except Exception:
            logger.exception("request.failed", extra={"path": scope["path"]})
            if started:
                raise
            await error_response(internal_error(request_id))(scope, receive, send_with_id)
        finally:
            period.end()
