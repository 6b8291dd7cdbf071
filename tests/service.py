"""Builds the real service over a temporary folder, for tests of the API, and a real server for tests of clients."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI

from app.config.settings import Settings
from app.plugins import Plugins, load_plugins
from app.service import Configuration, load_configuration
from app.tools.base import Tool
from tests.scripted import Script

AGENT: dict[str, Any] = {
    "agent_id": "helper",
    "system_prompt": "You help.",
    "provider": "scripted",
    "allowed_regular_tools": ["calculate", "get_current_datetime"],
}


def configuration(
    folder: Path, script: Script | None = None, *, agents: Sequence[dict[str, Any]] = (AGENT,), tools: Sequence[Tool] = (), **settings: Any
) -> Configuration:
    """A configuration read from files in `folder`, with `script` as the provider `scripted` and `tools` besides the built-in ones."""
    (folder / "prompts").mkdir(exist_ok=True)
    (folder / "agent_config.json").write_text(json.dumps(list(agents)), encoding="utf-8")
    plugins: Plugins = load_plugins()
    plugins.providers["scripted"] = script or Script([])
    plugins.tools.update({tool.spec.name: tool for tool in tools})
    defaults: dict[str, Any] = {
        "agent_config_file": folder / "agent_config.json",
        "mcp_config_file": folder / "mcp.json",
        "prompts_dir": folder / "prompts",
        "default_provider": "demo",
    }
    return load_configuration(Settings(**{**defaults, **settings}), plugins)


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncGenerator[httpx2.AsyncClient, None]:
    """A client of `app` in this process, its lifespan entered. The transport gives a response only once it is complete."""
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
            yield client


class _Server(uvicorn.Server):
    """uvicorn, telling when it is ready."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts, and tells."""
        await super().startup(sockets)
        self.ready.set()


@contextmanager
def running(app: FastAPI) -> Generator[str, None, None]:
    """`app` on a real server at a free port of 127.0.0.1, in a thread; gives its address, such as `http://127.0.0.1:40123`."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(100)
    server = _Server(uvicorn.Config(app, lifespan="on", log_config=None, access_log=False, timeout_graceful_shutdown=2))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
    thread.start()
    assert server.ready.wait(20), "the server did not start"
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"


def chunks_of(body: str) -> list[dict[str, Any]]:
    """The JSON objects of a server-sent event stream that ends with `[DONE]`."""
    events = [line.removeprefix("data: ") for line in body.split("\n") if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]
