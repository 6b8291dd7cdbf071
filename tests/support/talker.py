"""The service in its own process, with an agent that talks until it is stopped."""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx2

from tests.support.mcp_rogue import ROGUE

TALKER = """
import asyncio
from pathlib import Path
from ai_agent_service.core.events import TextDelta
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.base import ModelFinished
from ai_agent_service.providers.demo import Demo

class Talker(Demo):
    name = "talker"

    async def stream(self, request):
        last = request.messages[-1].text
        while last != "quick" and not (last.startswith("ends") and Path("end").exists()):
            yield TextDelta("word ")
            await asyncio.sleep(0.1)
        yield ModelFinished("stop", (), Usage(1, 1))
"""


def configured(folder: Path, **variables: str) -> dict[str, str]:
    """Write an agent `a` that talks until a file `end` exists, has a memory, and an MCP server;
    return the service's environment."""
    (folder / "talker.py").write_text(TALKER, encoding="utf-8")
    agent = {
        "agent_id": "a",
        "system_prompt": "x",
        "provider": "talker",
        "resources": ["memory"],
        "allowed_mcp_servers": {"rogue": {}},
    }
    (folder / "agents.json").write_text(json.dumps([agent]), encoding="utf-8")
    server = {
        "server_label": "rogue",
        "command": sys.executable,
        "args": [ROGUE, "behaves", str(folder)],
    }
    (folder / "mcp.json").write_text(json.dumps([server]), encoding="utf-8")
    return {
        "AGENT_CONFIG_FILE": "agents.json",
        "PLUGINS_DIR": str(folder),
        "ALLOW_UNAUTHENTICATED": "true",
        **variables,
    }


async def talk(client: httpx2.AsyncClient, question: str, begun: asyncio.Event) -> str:
    """Return everything that a stream sends, to its end."""
    body = {"model": "a", "messages": [{"role": "user", "content": question}], "stream": True}
    said = ""
    async with client.stream(
        "POST", "/v1/chat/completions", json=body, headers={"X-Session-Id": question}
    ) as response:
        assert response.status_code == 200
        async for piece in response.aiter_text():
            said += piece
            if "word" in said:
                begun.set()
    return said


@contextlib.asynccontextmanager
async def talking(
    url: str, *questions: str
) -> AsyncGenerator[tuple[httpx2.AsyncClient, list[asyncio.Task[str]]], None]:
    """Open a client and one stream for each question, and wait until all have begun."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx2.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        begun = [asyncio.Event() for _ in questions]
        streams = [
            asyncio.create_task(talk(client, *each)) for each in zip(questions, begun, strict=True)
        ]
        async with asyncio.timeout(60):
            await asyncio.gather(*(event.wait() for event in begun))
        yield client, streams


async def ended(process: "subprocess.Popen[str]", *, within: float) -> int:
    """Wait for the end of a process and return its exit code."""
    return await asyncio.to_thread(process.wait, within)
