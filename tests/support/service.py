"""Builds the real service over a temporary folder, and a real server for tests of clients."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.config.settings import Settings
from ai_agent_service.runtime.configuration import Configuration, load_configuration
from ai_agent_service.runtime.plugin_loader import Plugins, load_plugins
from ai_agent_service.server.connections import ConnectionLimit
from ai_agent_service.server.http1 import SAFETY_HEADERS, BoundedProtocol
from ai_agent_service.tools.base import Tool
from tests.support.fake_provider import Script

AGENT: dict[str, Any] = {
    "agent_id": "helper",
    "system_prompt": "You help.",
    "provider": "scripted",
    "allowed_regular_tools": ["calculate", "get_current_datetime"],
}


def configuration(
    folder: Path,
    script: Script | None = None,
    *,
    agents: Sequence[dict[str, Any]] = (AGENT,),
    tools: Sequence[Tool] = (),
    agent_types: Sequence[type[BaseAgent]] = (),
    plugins: Plugins | None = None,
    **settings: Any,
) -> Configuration:
    """Load a configuration from files in `folder`.

    `script` is the provider `scripted`; `tools` and `agent_types` are added to `plugins`, by
    default the built-in ones.
    """
    (folder / "prompts").mkdir(exist_ok=True)
    (folder / "agent_config.json").write_text(json.dumps(list(agents)), encoding="utf-8")
    plugins = plugins or _copy_built_in_plugins()
    plugins.providers["scripted"] = script or Script([])
    plugins.tools.update({tool.spec.name: tool for tool in tools})
    plugins.agents.update({agent_type.type: agent_type for agent_type in agent_types})
    defaults: dict[str, Any] = {
        "agent_config_file": folder / "agent_config.json",
        "mcp_config_file": folder / "mcp.json",
        "prompts_dir": folder / "prompts",
        "data_dir": folder / "data",
        "default_provider": "demo",
        "allowed_hosts": ("service",),
    }
    return load_configuration(Settings(**{**defaults, **settings}), plugins)


def _copy_built_in_plugins() -> Plugins:
    """Return the built-in plug-ins in new dictionaries."""
    found = _load_built_in_plugins()
    return Plugins({**found.tools}, {**found.providers}, {**found.agents}, {**found.memories})


@cache
def _load_built_in_plugins() -> Plugins:
    """Load the built-in plug-ins once, because this searches all installed packages."""
    return load_plugins()[0]


@asynccontextmanager
async def open_client(app: FastAPI) -> AsyncGenerator[httpx2.AsyncClient, None]:
    """Enter the lifespan of `app` and open a client of it in this process.

    The transport returns a response only once it is complete.
    """
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
            yield client


def _is_ours(app: ASGIApp) -> bool:
    return isinstance(app, FastAPI) and hasattr(app.state, "connections")


class _Foreign:
    """An application that is not ours, with the state that the protocol needs."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.state = SimpleNamespace(connections=ConnectionLimit(100, (), exempts_loopback=True))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        await self._app(scope, receive, send)


class _Server(uvicorn.Server):
    """uvicorn at a free port of 127.0.0.1, which calls `ready` once it accepts requests."""

    def __init__(
        self,
        app: ASGIApp,
        ready: Callable[[], None],
        protocol: type[BoundedProtocol] = BoundedProtocol,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app if _is_ours(app) else _Foreign(app),
                lifespan="on",
                log_config=None,
                access_log=False,
                headers=SAFETY_HEADERS,
                timeout_graceful_shutdown=2,
                http=protocol,
                ws="none",
                proxy_headers=False,
            )
        )
        self._ready = ready
        # asyncio sends small pieces at once only where the protocol is named
        self.listening = socket.socket(proto=socket.IPPROTO_TCP)
        self.listening.bind(("127.0.0.1", 0))
        self.listening.listen(100)
        self.address = f"http://127.0.0.1:{self.listening.getsockname()[1]}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and call `ready`."""
        await super().startup(sockets)
        self._ready()


@contextmanager
def running(app: ASGIApp) -> Generator[str, None, None]:
    """Serve `app` in a thread, for clients that block; yield its address, such as
    `http://127.0.0.1:40123`."""
    ready = threading.Event()
    server = _Server(app, ready.set)
    thread = threading.Thread(
        target=lambda: asyncio.run(server.serve(sockets=[server.listening])), daemon=True
    )
    thread.start()
    assert ready.wait(20), "the server did not start"
    try:
        yield server.address
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"


@asynccontextmanager
async def serving(
    app: ASGIApp, protocol: type[BoundedProtocol] = BoundedProtocol
) -> AsyncGenerator[str, None]:
    """Serve `app` in this event loop, so that a test can share events with tools and scripts; yield
    its address."""
    ready = asyncio.Event()
    server = _Server(app, ready.set, protocol)
    task = asyncio.create_task(server.serve(sockets=[server.listening]))
    try:
        async with asyncio.timeout(20):
            await ready.wait()
        yield server.address
    finally:
        server.should_exit = True
        async with asyncio.timeout(20):
            await task


def parse_chunks(body: str) -> list[dict[str, Any]]:
    """Return the JSON objects of a server-sent event stream that ends with `[DONE]`."""
    events = [line.removeprefix("data: ") for line in body.split("\n") if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]
