"""Secrets never come out: the service is given one wherever it takes one, made to fail, and all
that it says is read."""

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.clients import CHAT, asking
from tests.support.events import until
from tests.support.fake_upstream import Action, Upstream, reply
from tests.support.processes import environment

KEY = "canary-of-API-KEYS-0123"
ENCRYPTION = base64.b64encode(b"canary of 32 bytes for a cipher!").decode()
SECRETS = {
    "OPENAI_API_KEY": "canary-of-openai-0123",
    "API_KEYS": KEY,
    "API_KEY_PEPPER": "canary-of-pepper-0123456789-0123456789",
    "OPEN_WEBUI_JWT_SECRET": "canary-of-webui-0123456789-0123456789",
    "OPENROUTER_API_KEY": "canary-of-openrouter-0123",
    "AZURE_OPENAI_API_KEY": "canary-of-azure-0123",
    "MEMORY_ENCRYPTION_KEYS": ENCRYPTION,
    "WIKI_TOKEN": "canary-of-a-server-0123",
    "OTEL_EXPORTER_OTLP_HEADERS": (
        "authorization=Basic%20canary-of-traces-0123,Bearer canary-of-traces-4567"
    ),
}
CANARIES = (
    *SECRETS.values(),
    "canary-of-the-database",
    "canary-of-a-caller",
    "canary-of-traces-0123",
    "canary-of-traces-4567",
)


ROUTES = ("/v1/models", "/agents", "/docs", "/openapi.json", "/absent")


def echoing(status: int) -> list[Action]:
    """An answer that repeats our key, as careless providers do."""
    told = {
        "error": {
            "message": (
                f"Incorrect API key provided: {SECRETS['OPENAI_API_KEY']} (Bearer"
                f" {SECRETS['OPENAI_API_KEY']})"
            )
        }
    }
    return reply(status, body=json.dumps(told).encode())


@asynccontextmanager
async def serving(folder: Path, upstream: Upstream, **variables: str) -> AsyncGenerator[str, None]:
    """The service in a process of its own, with all secrets and the most detailed log."""
    agents = [
        {
            "agent_id": "helper",
            "system_prompt": "x",
            "provider": "openai",
            "model": "m",
            "allowed_mcp_servers": {"wiki": {}},
        },
        {
            "agent_id": "memory",
            "system_prompt": "x",
            "provider": "openai",
            "model": "m",
            "resources": ["memory"],
        },
    ]
    servers = [
        {
            "server_label": "wiki",
            "server_url": f"{upstream.url}/mcp",
            "header": {"Authorization": "Bearer ${WIKI_TOKEN}"},
        }
    ]
    (folder / "agents.json").write_text(json.dumps(agents), encoding="utf-8")
    (folder / "mcp.json").write_text(json.dumps(servers), encoding="utf-8")
    told = environment(
        **SECRETS,
        **variables,
        AGENT_CONFIG_FILE="agents.json",
        OPENAI_BASE_URL=f"{upstream.url}/v1",
        PROVIDER_MAX_RETRIES="0",
        AUDIT_LOG_FILE="audit.jsonl",
        DATABASE_TIMEOUT="0.5",
        OTEL_EXPORTER_OTLP_ENDPOINT=upstream.url,
        OTEL_BSP_SCHEDULE_DELAY="100",
    )
    with (folder / "log").open("w", encoding="utf-8") as log:
        command = (sys.executable, "-m", "app.main", "--port", "0", "--debug")
        process = await asyncio.create_subprocess_exec(*command, cwd=folder, env=told, stderr=log)
    try:
        await until(lambda: "is ready: " in (folder / "log").read_text(encoding="utf-8"))
        yield (folder / "log").read_text(encoding="utf-8").split("is ready: ")[1].split()[0]
    finally:
        process.terminate()
        async with asyncio.timeout(20):
            await process.wait()


@pytest.mark.timeout(90)
@pytest.mark.parametrize("database", ["sqlite", "away"])
async def test_no_secret_comes_out_of_anything(tmp_path: Path, database: str) -> None:
    away = (
        {"DATABASE_URL": "postgresql://user:canary-of-the-database@127.0.0.1:1/d"}
        if database == "away"
        else {}
    )
    said: list[str] = []
    async with (
        Upstream(echoing(401)) as upstream,
        serving(tmp_path, upstream, **away) as url,
        httpx2.AsyncClient(base_url=url, timeout=20) as client,
    ):

        async def ask(method: str, path: str, **given: Any) -> httpx2.Response:
            response = await client.request(method, path, **given)
            said.append(f"{response.headers} {response.text}")
            return response

        headers = {"Authorization": f"Bearer {KEY}"}
        wrong = {"Authorization": "Bearer canary-of-a-caller", "x-api-key": "canary-of-a-caller"}
        for path in (
            "/",
            "/health",
            "/health/live",
            "/health/ready",
            "/health?detailed=true",
            "/v1/models",
            "/agents",
            "/docs",
            "/openapi.json",
            "/metrics",
            "/absent",
        ):
            await ask("GET", path, headers=headers)
            await ask("GET", path, headers=wrong)
        for agent in ("helper", "memory"):
            for body in (
                asking(),
                asking(stream=True),
                asking(n=3),
                {"model": ["canary-of-a-caller"]},
            ):
                body = {**body, "model": agent} if "messages" in body else body
                for sent in (
                    headers,
                    wrong,
                    {**headers, "X-Session-Id": "s", "X-OpenWebUI-User-Jwt": "canary-of-a-caller"},
                ):
                    await ask("POST", CHAT, json=body, headers=sent)
        await ask("POST", "/agents/helper/chat", json={"message": "Hi."}, headers=headers)
        await ask("GET", "/agents/memory/conversations", headers=headers)
        await ask("GET", "/memory", headers=headers)
        await ask("DELETE", "/memory", headers=headers)
        assert any(
            request.headers.get("authorization") == f"Bearer {SECRETS['OPENAI_API_KEY']}"
            for request in upstream.requests
        )
        assert any(
            request.headers.get("authorization") == "Basic canary-of-traces-0123"
            for request in upstream.requests
        )
    log = (tmp_path / "log").read_text(encoding="utf-8")
    audit = (tmp_path / "audit.jsonl").read_text(encoding="utf-8")
    assert "agent.called" in audit
    assert "provider_authentication_failed" in "".join(said)
    for canary in CANARIES:
        for where, text in (
            ("an answer", "\n".join(said)),
            ("the log", log),
            ("the audit log", audit),
        ):
            assert canary not in text, f"{canary} came out in {where}"


def test_the_check_of_a_faulty_configuration_shows_no_secret(tmp_path: Path) -> None:
    wrong = {name: f"canary-{name.lower()}"[:18] for name in (*SECRETS, "TRUSTED_PROXY_SECRET")}
    told = environment(
        **{
            **wrong,
            "DATABASE_URL": "mysql://user:canary-of-the-database@h/d",
            "IDENTITY_MODE": "open_webui_jwt",
            "PORT": "canary-of-a-port",
        }
    )
    command = [sys.executable, "-m", "app.main", "check"]
    done = subprocess.run(
        command, cwd=tmp_path, env=told, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert "MEMORY_ENCRYPTION_KEYS" in done.stderr
    assert "API_KEYS" in done.stderr
    assert "canary" not in done.stderr + done.stdout
