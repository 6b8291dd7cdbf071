"""GET /health and GET /."""

import asyncio
import json
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from dirty_equals import IsNow, IsPositiveInt, IsStr

from ai_agent_service import __version__
from ai_agent_service.server.application import create_app
from tests.support.clients import read_error
from tests.support.service import AGENT, configuration, open_client, serving

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}

DETAILED = "/health?detailed=true"


async def until_down(client: httpx2.AsyncClient, label: str) -> dict[str, Any]:
    """What detailed health says once the server `label` is down."""
    async with asyncio.timeout(30):
        while True:
            health: dict[str, Any] = (await client.get(DETAILED)).json()
            if health["mcp_servers"][label]["state"] == "down":
                return health
            await asyncio.sleep(0.02)


async def test_health_says_that_the_service_is_up(tmp_path: Path) -> None:
    async with open_client(
        create_app(configuration(tmp_path, service_name="Our agents"))
    ) as client:
        response = await client.get("/health")
    body = response.json()
    assert response.status_code == 200
    assert datetime.fromisoformat(body.pop("timestamp")) == IsNow(
        tz=UTC, delta=timedelta(minutes=1)
    )
    assert body == {
        "status": "healthy",
        "service": "Our agents",
        "version": __version__,
        "access": "open",
    }


async def test_the_version_that_is_told_can_be_set(tmp_path: Path) -> None:
    async with open_client(create_app(configuration(tmp_path, service_version="9.8.7"))) as client:
        told = {path: (await client.get(path)).json()["version"] for path in ("/health", "/")}
    assert set(told.values()) == {"9.8.7"}


async def test_the_front_door_tells_programs_where_to_go(tmp_path: Path) -> None:
    async with open_client(
        create_app(configuration(tmp_path, agents=[AGENT, {**AGENT, "agent_id": "writer"}]))
    ) as client:
        response = await client.get("/")
        body = response.json()
        places = {path: (await client.get(path)).status_code for path in body["links"]}
    assert response.headers["content-type"] == "application/json"
    assert body["agents"] == ["helper", "writer"]
    assert places.pop("/v1/chat/completions") == 405
    assert set(places.values()) == {200}


async def test_the_front_door_is_a_page_for_browsers(tmp_path: Path) -> None:
    async with open_client(
        create_app(configuration(tmp_path, service_name="<script>alert(1)</script>"))
    ) as client:
        response = await client.get("/", headers=BROWSER)
    assert response.headers["content-type"].startswith("text/html")
    assert "<script>" not in response.text
    assert "&lt;script&gt;" in response.text
    assert "http://service/v1" in response.text
    assert "<code>helper</code>" in response.text
    assert 'href="/docs"' in response.text


async def test_the_host_that_a_browser_names_cannot_write_into_the_page(tmp_path: Path) -> None:
    async with open_client(create_app(configuration(tmp_path))) as client:
        response = await client.get("/", headers={**BROWSER, "host": "a<b>c"})
    assert "a<b>c" not in response.text


async def test_without_mcp_servers_the_details_are_empty(tmp_path: Path) -> None:
    async with open_client(create_app(configuration(tmp_path))) as client:
        body = (await client.get(DETAILED)).json()
    assert (body["status"], body["mcp_servers"]) == ("healthy", {})


async def test_servers_that_are_off_are_told_with_the_reason_and_degrade_nothing(
    tmp_path: Path,
) -> None:
    servers = [
        {
            "server_label": "wiki",
            "server_url": "https://wiki.invalid/mcp",
            "header": {"Authorization": "Bearer ${NO_SUCH_WIKI_KEY}"},
        },
        {"server_label": "unused", "command": "no-such-command-anywhere"},
    ]
    (tmp_path / "mcp.json").write_text(json.dumps(servers), encoding="utf-8")
    agents = [{**AGENT, "allowed_mcp_servers": {"wiki": {}}}]
    async with open_client(create_app(configuration(tmp_path, agents=agents))) as client:
        body = (await client.get(DETAILED)).json()
    assert (body["status"], list(body["mcp_servers"])) == ("healthy", ["wiki", "unused"])
    since = body["mcp_servers"]["wiki"].pop("since")
    assert datetime.fromisoformat(since) == IsNow(tz=UTC, delta=timedelta(minutes=1))
    assert body["mcp_servers"]["wiki"] == {
        "state": "off",
        "transport": "http",
        "tools": [],
        "error": "NO_SUCH_WIKI_KEY is not set.",
        "restarts": 0,
        "schema_changes": 0,
        "quarantined_tools": [],
        "problems": [],
    }
    unused = body["mcp_servers"]["unused"]
    assert (unused["state"], unused["transport"], unused["error"]) == (
        "off",
        "stdio",
        "No agent uses it.",
    )


async def test_a_server_that_is_down_degrades_the_details_and_the_service_stays_up(
    tmp_path: Path,
) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody_listens.getsockname()[1]}/mcp"
        (tmp_path / "mcp.json").write_text(
            json.dumps([{"server_label": "dead", "server_url": url}]), encoding="utf-8"
        )
        agents = [{**AGENT, "allowed_mcp_servers": {"dead": {}}}]
        async with open_client(create_app(configuration(tmp_path, agents=agents))) as client:
            starting = (await client.get(DETAILED)).json()
            down = await until_down(client, "dead")
            plain = (await client.get("/health")).json()
    assert (starting["status"], down["status"], plain["status"]) == (
        "degraded",
        "degraded",
        "healthy",
    )
    dead = down["mcp_servers"]["dead"]
    assert (dead["error"], dead["restarts"], dead["tools"]) == (
        IsStr(regex="it cannot be reached .*"),
        IsPositiveInt(),
        [],
    )


@pytest.mark.parametrize(
    ("value", "has_details"),
    [("true", True), ("1", True), ("True", True), ("false", False), ("0", False)],
)
async def test_details_are_given_to_those_who_ask_for_them(
    tmp_path: Path, value: str, has_details: bool
) -> None:
    async with open_client(create_app(configuration(tmp_path))) as client:
        body = (await client.get(f"/health?detailed={value}")).json()
    assert ("mcp_servers" in body) == has_details


@pytest.mark.parametrize("value", ["SECRET", "", "2"])
async def test_any_other_value_of_detailed_is_refused(tmp_path: Path, value: str) -> None:
    async with open_client(create_app(configuration(tmp_path))) as client:
        error = read_error(await client.get(f"/health?detailed={value}"), 400)
    assert error["param"] == "detailed"
    assert "SECRET" not in error["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/health",
        "/health/live",
        "/health/ready",
        "/v1/models",
        "/v1/models/helper",
        "/agents",
        "/docs",
        "/nothing",
        "/v1/chat/completions",
    ],
)
async def test_head_is_get_without_a_body(tmp_path: Path, path: str) -> None:
    async with (
        serving(create_app(configuration(tmp_path))) as address,
        httpx2.AsyncClient(base_url=address) as client,
    ):
        given, head = await client.get(path), await client.head(path)
        again = await client.get(path)  # over the same connection
    assert head.status_code == given.status_code == again.status_code
    assert head.headers["x-request-id"]
    varying = ("date", "x-request-id", "content-security-policy")
    assert {name: value for name, value in head.headers.items() if name not in varying} == {
        name: value for name, value in given.headers.items() if name not in varying
    }
    assert head.content == b""


async def test_head_of_what_is_there_is_a_200(tmp_path: Path) -> None:
    async with open_client(create_app(configuration(tmp_path))) as client:
        for path in ("/", "/health", "/health/live", "/health/ready", "/v1/models"):
            response = await client.head(path)
            assert (response.status_code, response.content) == (200, b"")
