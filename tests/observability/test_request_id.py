"""The request's id: on every line that a request causes, and on what is asked of others for it."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp.server.mcpserver import MCPServer
from starlette.types import ASGIApp, Receive, Scope, Send

from ai_agent_service.config.server_definition import ServerDefinition
from ai_agent_service.mcp.connection import Connection
from ai_agent_service.observability.request_id import current_request_id
from ai_agent_service.server.application import create_app
from ai_agent_service.tools import tool
from tests.support.clients import CHAT, asking
from tests.support.fake_provider import Script, calls, says
from tests.support.fake_upstream import Upstream
from tests.support.fake_upstream import lines as upstream_lines
from tests.support.fake_upstream import says as upstream_says
from tests.support.mcp_connections import connected, run
from tests.support.mcp_in_process import HandshakeOnly
from tests.support.service import AGENT, configuration, open_client, serving

logger = logging.getLogger("plugin")


@tool
async def asynchronous() -> str:
    """Logs."""
    logger.info("said")
    return "x"


@tool
def in_a_thread() -> str:
    """Logs."""
    logger.info("said")
    return "x"


class Ids(logging.Handler):
    """Notes the id that each line is told under."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Notes it."""
        self.found.append((record.getMessage(), current_request_id.get()))


@pytest.fixture
def ids(caplog: pytest.LogCaptureFixture) -> Any:
    """The ids of all lines."""
    handler = Ids()
    caplog.set_level(logging.DEBUG, "ai_agent_service")
    caplog.set_level(logging.DEBUG, "plugin")
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


async def test_every_line_of_a_request_has_its_id(tmp_path: Path, ids: Ids) -> None:
    script = Script(calls(("asynchronous", {}), ("in_a_thread", {})), says("Done."))
    agent = {
        **AGENT,
        "allowed_regular_tools": ["asynchronous", "in_a_thread"],
        "resources": ["memory"],
    }
    app = create_app(
        configuration(tmp_path, script, agents=[agent], tools=[asynchronous, in_a_thread])
    )
    async with open_client(app) as client:
        ids.found.clear()
        response = await client.post(
            CHAT, json=asking(), headers={"x-request-id": "req-a", "x-session-id": "s"}
        )
        assert response.status_code == 200
        found = list(ids.found)
    events = [event for event, _ in found if event != "said"]
    assert sum(event == "said" for event, _ in found) == 2
    assert {
        "memory.begun",
        "model.asked",
        "model.answered",
        "tool.started",
        "tool.ended",
        "memory.kept",
    } <= set(events)
    assert {request_id for _, request_id in found} == {"req-a"}


@pytest.mark.parametrize(
    ("provider", "setting", "path"),
    [("openai", "openai_base_url", "/v1"), ("ollama", "ollama_base_url", "")],
)
async def test_a_provider_is_told_the_id(
    tmp_path: Path, provider: str, setting: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    settings: dict[str, Any] = {}
    answer = (
        upstream_says("Hi")
        if provider == "openai"
        else upstream_lines({"message": {"content": "Hi"}, "done": True})
    )
    async with Upstream(answer) as upstream:
        agent = {**AGENT, "provider": provider, "model": "m"}
        settings[setting] = upstream.url + path
        app = create_app(configuration(tmp_path, agents=[agent], **settings))
        async with open_client(app) as client:
            response = await client.post(CHAT, json=asking(), headers={"x-request-id": "req-a"})
        assert response.status_code == 200, response.text
    assert [request.headers["x-client-request-id"] for request in upstream.requests] == ["req-a"]


class Headers:
    """`app`, and the ids that its POST requests came with."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.ids: list[str | None] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Notes and passes on."""
        if scope["type"] == "http" and scope["method"] == "POST":
            self.ids.append(
                next(
                    (value.decode() for name, value in scope["headers"] if name == b"x-request-id"),
                    None,
                )
            )
        await self._app(scope, receive, send)


@asynccontextmanager
async def connection_to(app: ASGIApp, path: str) -> AsyncGenerator[Connection, None]:
    async with (
        serving(app) as address,
        connected(ServerDefinition(server_label="server", server_url=address + path)) as connection,
    ):
        yield connection


APPS: dict[str, tuple[Callable[[MCPServer[Any]], ASGIApp], str]] = {
    "2026": (lambda server: server.streamable_http_app(), "/mcp"),
    "2025": (lambda server: HandshakeOnly(server.streamable_http_app()), "/mcp"),
    "sse": (lambda server: server.sse_app(), "/sse"),
}


@pytest.mark.parametrize("kind", APPS)
async def test_an_mcp_server_is_told_the_id_of_the_call_and_of_no_other_that_shares_the_session(
    kind: str,
) -> None:
    server: MCPServer[Any] = MCPServer("server")
    both = asyncio.Event()
    under_way = 0

    @server.tool()
    async def wait() -> str:
        nonlocal under_way
        under_way += 1
        if under_way == 2:
            both.set()
        await both.wait()
        return "x"

    made, path = APPS[kind]
    app = Headers(made(server))

    async def called(request_id: str) -> str:
        current_request_id.set(request_id)
        return (await run(connection, "wait")).content

    async with connection_to(app, path) as connection:
        app.ids.clear()
        results = await asyncio.gather(
            asyncio.create_task(called("req-a")), asyncio.create_task(called("req-b"))
        )
        assert set(results) == {"x"}
        asked = [request_id for request_id in app.ids if request_id is not None]
        assert sorted(asked) == ["req-a", "req-b"]
        assert app.ids.count(None) <= 1  # the library's own question for the list of tools
