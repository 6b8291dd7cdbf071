"""Each part is killed and comes back, and health, metrics and log say so, without a secret."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.clients import CHAT, asking
from tests.support.fake_upstream import Upstream, says
from tests.support.mcp_rogue import ROGUE
from tests.support.postgres import PASSWORD, QUOTED, PostgresServer, binaries_18, free_port
from tests.support.processes import environment

pytestmark = pytest.mark.slow

KEY = "canary-of-API-KEYS-0123"
SECRETS = {
    "API_KEYS": KEY,
    "API_KEY_PEPPER": "canary-of-pepper-0123456789-0123456789",
    "OPENAI_API_KEY": "canary-of-openai-0123",
    "ROGUE_TOKEN": "canary-of-a-server-0123",
}
WORDS = "canary-of-a-question-0123"
CANARIES = (*SECRETS.values(), WORDS, PASSWORD, QUOTED)


class Watched:
    """A service in a process of its own, and all that it says."""

    def __init__(self, folder: Path, client: httpx2.AsyncClient) -> None:
        self.client = client
        self.said: list[str] = []
        self._log = folder / "log"

    async def ask(self) -> httpx2.Response:
        """A question to the agent, in a session."""
        response = await self.client.post(CHAT, json=asking(WORDS), headers={"X-Session-Id": "s"})
        self.said.append(
            f"{response.headers} {response.text if response.status_code != 200 else ''}"
        )
        return response

    async def health(self) -> dict[str, Any]:
        """The detailed health."""
        response = await self.client.get("/health", params={"detailed": "true"})
        self.said.append(response.text)
        body: dict[str, Any] = response.json()
        return body

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over the series that have these labels."""
        response = await self.client.get("/metrics")
        self.said.append(response.text)
        found = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", response.text, re.MULTILINE)
        return sum(
            float(value)
            for series, value in found
            if all(f'{label}="{wanted}"' in series for label, wanted in labels.items())
        )

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines of an event."""
        lines = [
            json.loads(line)
            for line in self._log.read_text(encoding="utf-8").splitlines()
            if line.startswith("{")
        ]
        return [line for line in lines if line["event"] == name]

    async def until(self, part: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The health, once `part` of it holds."""
        async with asyncio.timeout(40):
            # another process is asked
            while not part(health := await self.health()):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        return health

    async def until_told(self, name: str, count: int = 1) -> None:
        """Waits for log lines of an event."""
        async with asyncio.timeout(40):
            while len(self.events(name)) < count:  # noqa: ASYNC110 - another process writes them
                await asyncio.sleep(0.05)


@pytest.mark.timeout(240)
async def test_each_part_that_dies_and_comes_back_is_told_of_and_no_secret_is(
    tmp_path: Path,
) -> None:
    agent = {
        "agent_id": "helper",
        "system_prompt": "x",
        "provider": "openai",
        "model": "m",
        "resources": ["memory"],
        "allowed_mcp_servers": {"rogue": {}},
    }
    server = {
        "server_label": "rogue",
        "command": sys.executable,
        "args": [ROGUE, "behaves", str(tmp_path)],
        "env": {"ROGUE_SECRET": "${ROGUE_TOKEN}"},
    }
    (tmp_path / "agents.json").write_text(json.dumps([agent]), encoding="utf-8")
    (tmp_path / "mcp.json").write_text(json.dumps([server]), encoding="utf-8")
    port = free_port()
    async with AsyncExitStack() as opened:
        database = PostgresServer(binaries_18()).make()
        opened.callback(database.remove)
        await asyncio.to_thread(database.start)
        upstream = await opened.enter_async_context(AsyncExitStack())
        await upstream.enter_async_context(Upstream(says("Hello"), port=port))
        variables = environment(
            **SECRETS,
            AGENT_CONFIG_FILE="agents.json",
            DATABASE_URL=database.url(),
            DATABASE_TIMEOUT="1",
            OPENAI_BASE_URL=f"http://127.0.0.1:{port}/v1",
            PROVIDER_MAX_RETRIES="0",
            PROVIDER_BREAKER_FAILURES="2",
            PROVIDER_BREAKER_SECONDS="1",
            AUDIT_LOG_FILE="audit.jsonl",
            LOG_FORMAT="json",
        )
        log = opened.enter_context((tmp_path / "log").open("w", encoding="utf-8"))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "app.main", "--port", "0", cwd=tmp_path, env=variables, stderr=log
        )
        opened.callback(lambda: process.kill() if process.returncode is None else None)
        headers = {"Authorization": f"Bearer {KEY}"}
        client = await opened.enter_async_context(httpx2.AsyncClient(timeout=20, headers=headers))
        service = Watched(tmp_path, client)
        await service.until_told("service.ready")
        client.base_url = httpx2.URL(service.events("service.ready")[0]["url"])

        # All is well
        await service.until(lambda health: health["mcp_servers"]["rogue"]["state"] == "ready")
        assert (await service.ask()).status_code == 200
        health = await service.until(lambda health: health["status"] == "healthy")
        assert health["reasons"] == []
        assert await service.metric("aas_database_up", role="primary") == 1
        assert await service.metric("aas_mcp_server_up", server="rogue") == 1

        # The database
        await asyncio.to_thread(database.kill)
        assert (await service.ask()).status_code in (200, 503)
        health = await service.until(lambda health: health["database"]["state"] == "down")
        assert health["status"] in ("degraded", "unavailable")
        assert any("database" in reason for reason in health["reasons"])
        assert await service.metric("aas_database_up", role="primary") == 0
        await service.until_told("database.lost")
        await asyncio.to_thread(database.start)
        await service.until(lambda health: health["status"] == "healthy")
        assert await service.metric("aas_database_up", role="primary") == 1
        assert service.events("database.back")
        stored = await service.metric("aas_memory_messages_stored_total")
        assert (await service.ask()).status_code == 200
        assert await service.metric("aas_memory_messages_stored_total") > stored

        # The provider
        await upstream.aclose()
        assert [(await service.ask()).status_code for _ in range(2)] == [502, 502]
        refused = await service.ask()
        assert refused.json()["error"]["code"] in ("provider_circuit_open", "provider_unavailable")
        health = await service.until(lambda health: health["status"] == "degraded")
        assert any("openai" in reason for reason in health["reasons"])
        assert await service.metric("aas_provider_breaker_openings_total", provider="openai") >= 1
        assert (
            await service.metric(
                "aas_provider_errors_total", provider="openai", code="provider_unavailable"
            )
            >= 2
        )
        assert service.events("provider.breaker_opened")
        await upstream.enter_async_context(Upstream(says("Hello again"), port=port))
        async with asyncio.timeout(40):
            # another process is asked
            while (await service.ask()).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        await service.until(lambda health: health["status"] == "healthy")
        assert await service.metric("aas_provider_breaker_state", provider="openai") == 0
        assert service.events("provider.breaker_closed")

        # The MCP server
        (pid,) = [int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")]
        os.kill(pid, signal.SIGKILL)
        await service.until_told("mcp.down")
        await service.until_told("mcp.ready", 2)
        health = await service.until(lambda health: health["status"] == "healthy")
        assert health["mcp_servers"]["rogue"]["restarts"] >= 1
        assert await service.metric("aas_mcp_server_restarts_total", server="rogue") >= 1
        assert await service.metric("aas_mcp_server_up", server="rogue") == 1
        assert (await service.ask()).status_code == 200

        process.terminate()
        async with asyncio.timeout(40):
            assert await process.wait() == 0
    told = (tmp_path / "log").read_text(encoding="utf-8")
    service.said.append(told)
    for canary in CANARIES:
        assert canary not in "".join(service.said), f"{canary} was told"
    assert not [
        canary
        for canary in (*SECRETS.values(), WORDS)
        if canary in (tmp_path / "audit.jsonl").read_text(encoding="utf-8")
    ]
    lines = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    assert {"request"} <= {line["event"] for line in lines if line["logger"] == "access"}
