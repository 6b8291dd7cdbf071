"""Give each request its id, answer errors that nothing else caught, and report the request at its
end; the outermost layer."""

import asyncio
import logging
import time

from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ai_agent_service.api.http.errors import build_error_response, build_internal_error
from ai_agent_service.core.errors import CrossSiteRequestError, ServiceError
from ai_agent_service.observability.access_log import AccessLog
from ai_agent_service.observability.metrics import Metrics
from ai_agent_service.observability.records import UNKNOWN_ROUTE, RequestReport
from ai_agent_service.observability.request_id import current_request_id, select_request_id
from ai_agent_service.runtime.shutdown import ShutdownState, build_stopping_error

logger = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""The status in reports of a request whose caller left before the answer began; nginx's."""


class RequestMiddleware:
    """ASGI middleware: `x-request-id` in and out, HEAD as GET without a body, no POST from other
    sites' pages, a 500 in OpenAI's shape for a fault of ours, a 503 once the service is closed.

    It reports each request once to `metrics` and `access_log`, and counts it as in progress, so
    that what it may use stays open.
    """

    def __init__(
        self, app: ASGIApp, stopping: ShutdownState, metrics: Metrics, access_log: AccessLog
    ) -> None:
        self.app = app
        self._stopping = stopping
        self._metrics = metrics
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began_at = time.perf_counter()
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = select_request_id(given.decode("latin-1"))
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        current_request_id.set(request_id)
        header = (b"x-request-id", request_id.encode())
        status = 0
        answered_at = began_at
        method = scope["method"]
        is_head = method == "HEAD"
        if is_head:
            scope = {**scope, "method": "GET"}

        async def send_with_id(message: Message) -> None:
            nonlocal status, answered_at
            if message["type"] == "http.response.start":
                status = message["status"]
                answered_at = time.perf_counter()
                message["headers"] = [*message.get("headers", ()), header]
            elif is_head:
                message["body"] = b""
            await send(message)

        async def refuse(error: ServiceError) -> None:
            state["error"] = error.code
            await build_error_response(error)(scope, receive, send_with_id)

        self._stopping.requested_at = time.monotonic()
        period = scope["app"].state.service.drain_tracker
        period.begin()
        self._metrics.in_flight += 1
        try:
            if method == "POST" and (b"sec-fetch-site", b"cross-site") in scope["headers"]:
                problem = "Requests from web pages of other sites are not taken."
                await refuse(CrossSiteRequestError(problem))
            elif self._stopping.is_refused(scope["path"]):
                await refuse(build_stopping_error())
            else:
                await self.app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            # Only the server cancels requests, once their time is up.
            if status or not self._stopping.is_closed:
                raise
            await refuse(build_stopping_error())
        except Exception:
            logger.exception("request.failed", extra={"path": scope["path"]})
            failed = build_internal_error(request_id)
            if status:
                state["error"] = failed.code
                raise
            await refuse(failed)
        finally:
            period.end()
            self._metrics.in_flight -= 1
            first_byte = answered_at - began_at if status else None
            self._report(scope, method, status, time.perf_counter() - began_at, first_byte)

    def _report(
        self,
        scope: Scope,
        method: str,
        status: int,
        seconds: float,
        first_byte_seconds: float | None,
    ) -> None:
        """Report a request that has ended."""
        state, route, client = scope["state"], scope.get("route"), scope.get("client")
        run = state.get("run")
        error = state.get("error", "")
        if run is not None and not error and run.outcome not in ("answered", "left", "stopped"):
            error = run.outcome
        report = RequestReport(
            method,
            route.path_format if isinstance(route, APIRoute) else UNKNOWN_ROUTE,
            status or CLIENT_CLOSED_REQUEST,
            seconds,
            first_byte_seconds,
            client[0] if client else "",
            error,
            run,
        )
        self._metrics.count_request(report)
        self._access_log.write(report)
