"""Requests that the end of the service cuts off."""

import asyncio
from types import SimpleNamespace

import httpx2
import pytest
from starlette.types import Receive, Scope, Send

from ai_agent_service.observability.access_log import AccessLog
from ai_agent_service.observability.metrics import Metrics
from ai_agent_service.runtime.drain import DrainTracker
from ai_agent_service.runtime.shutdown import ShutdownState
from ai_agent_service.server.middleware import RequestMiddleware
from tests.support.clients import read_error


class Waits:
    """An application that never answers."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.state = SimpleNamespace(service=SimpleNamespace(drain_tracker=DrainTracker()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.set()
        await asyncio.Event().wait()


def client_at(app: Waits, stopping: ShutdownState) -> httpx2.AsyncClient:
    """A client of `app` behind the edge."""
    edge = RequestMiddleware(app, stopping, Metrics(), AccessLog("secret"))

    async def framed(scope: Scope, receive: Receive, send: Send) -> None:
        await edge({**scope, "app": app}, receive, send)

    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=framed), base_url="http://service")


async def cut_off(stopping: ShutdownState, *, closed: bool) -> httpx2.Response:
    """What a request brings whose task is cancelled."""
    app = Waits()
    async with client_at(app, stopping) as client:
        request = asyncio.create_task(client.get("/memory"))
        async with asyncio.timeout(5):
            await app.asked.wait()
            stopping.is_closed = closed
            request.cancel()
            return await request


async def test_a_request_whose_time_is_up_at_the_end_is_told_so() -> None:
    response = await cut_off(ShutdownState(), closed=True)
    assert read_error(response, 503)["code"] == "shutting_down"
    assert response.headers["retry-after"] == "1"


async def test_a_request_that_is_cancelled_otherwise_stays_so() -> None:
    with pytest.raises(asyncio.CancelledError):
        await cut_off(ShutdownState(), closed=False)


async def test_once_the_service_is_closed_new_requests_are_refused() -> None:
    stopping = ShutdownState()
    stopping.is_closed = True
    async with client_at(Waits(), stopping) as client:
        refused = await client.get("/memory")
    assert read_error(refused, 503)["code"] == "shutting_down"
    assert refused.headers["retry-after"] == "1"
