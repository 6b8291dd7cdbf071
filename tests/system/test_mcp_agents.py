"""Agents that use MCP servers, through the whole service."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ai_agent_service.mcp.tool import build_model_name
from ai_agent_service.runtime.configuration import Configuration
from ai_agent_service.server.application import create_app
from ai_agent_service.tools import tool
from tests.support.fake_provider import Script, calls, says
from tests.support.mcp_rogue import ROGUE
from tests.support.service import AGENT, configuration, open_client

TIME = {"server_label": "time", "command": sys.executable, "args": ["-m", "mcp_server_time"]}
DEAD = {
    "server_label": "dead",
    "command": sys.executable,
    "args": ["-c", "import sys; sys.exit('no licence')"],
}
CONVERT = {"source_timezone": "Asia/Tokyo", "time": "09:30", "target_timezone": "UTC"}


def configured(
    folder: Path,
    script: Script,
    servers: list[dict[str, Any]],
    allowed: dict[str, Any],
    **more: Any,
) -> Configuration:
    """An agent `helper` that may use what `allowed` says of `servers`."""
    (folder / "mcp.json").write_text(json.dumps(servers), encoding="utf-8")
    agent = {**AGENT, "allowed_regular_tools": ["calculate"], "allowed_mcp_servers": allowed}
    return configuration(folder, script, agents=[agent], **more)


async def settled(client: httpx2.AsyncClient) -> dict[str, Any]:
    """The detailed health, once no server is starting any more."""
    async with asyncio.timeout(40):
        while True:
            health: dict[str, Any] = (await client.get("/health?detailed=true")).json()
            if all(server["state"] != "starting" for server in health["mcp_servers"].values()):
                return health
            await asyncio.sleep(0.02)


async def ask(client: httpx2.AsyncClient) -> str:
    """What `helper` answers as a model."""
    response = await client.post(
        "/v1/chat/completions",
        json={"model": "helper", "messages": [{"role": "user", "content": "Go."}]},
    )
    assert response.status_code == 200, response.text
    answer: str = response.json()["choices"][0]["message"]["content"]
    return answer


@pytest.mark.parametrize("allowed", [{}, {"allowed_mcp_tools": None}], ids=["nothing said", "null"])
async def test_an_agent_that_is_allowed_all_of_a_server_uses_its_tools(
    tmp_path: Path, allowed: dict[str, Any]
) -> None:
    script = Script(calls(("time__convert_time", CONVERT)), says("Half past midnight."))
    async with open_client(
        create_app(configured(tmp_path, script, [TIME], {"time": allowed}))
    ) as client:
        assert (await settled(client))["status"] == "healthy"
        assert await ask(client) == "Half past midnight."
    first, second = script.requests
    assert [spec.name for spec in first.tools] == [
        "calculate",
        "time__get_current_time",
        "time__convert_time",
    ]
    assert "T00:30:00+00:00" in second.messages[-1].text
    assert first.messages[0].text == "You help."


async def test_an_agent_with_a_dead_server_answers_and_its_model_and_health_are_told(
    tmp_path: Path,
) -> None:
    script = Script(says("Without it."))
    async with open_client(
        create_app(configured(tmp_path, script, [TIME, DEAD], {"time": {}, "dead": {}}))
    ) as client:
        health = await settled(client)
        assert await ask(client) == "Without it."
        [agent] = (await client.get("/agents")).json()
    assert health["status"] == "degraded"
    assert (health["mcp_servers"]["dead"]["state"], health["mcp_servers"]["time"]["state"]) == (
        "down",
        "ready",
    )
    assert health["mcp_servers"]["dead"]["error"] == "it exited with code 1: no licence"
    system = script.requests[0].messages[0].text
    assert system.startswith("You help.\n\nSome of your tools cannot be used at the moment.")
    assert system.endswith("\n- the tools of dead")
    assert (agent["available"], agent["unavailable"]) == (True, ["the tools of dead"])


async def test_a_server_that_hangs_at_its_start_delays_nobody(tmp_path: Path) -> None:
    hangs = {
        "server_label": "hangs",
        "command": sys.executable,
        "args": [ROGUE, "hangs-in-initialize"],
    }
    async with open_client(
        create_app(configured(tmp_path, Script(says("Here.")), [hangs], {"hangs": {}}))
    ) as client:
        assert await ask(client) == "Here."
        assert (await client.get("/health?detailed=true")).json()["mcp_servers"]["hangs"][
            "state"
        ] == "starting"


async def test_an_agent_sees_and_runs_only_what_it_is_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = Script(
        calls(
            ("time__get_current_time", {"timezone": "UTC"}),
            ("time__convert_time", CONVERT),
            ("other__echo", {}),
        ),
        says("Done."),
    )
    other = {
        "server_label": "other",
        "command": sys.executable,
        "args": [ROGUE, "well", str(tmp_path)],
    }
    allowed = {"time": {"allowed_mcp_tools": ["convert_time", "no_such_tool"]}}
    async with open_client(
        create_app(configured(tmp_path, script, [TIME, other], allowed))
    ) as client:
        await settled(client)
        await ask(client)
    assert [spec.name for spec in script.requests[0].tools] == ["calculate", "time__convert_time"]
    refused, converted, unknown = (message.text for message in script.requests[1].messages[-3:])
    assert (
        refused == "Error: There is no tool 'time__get_current_time'. There are: calculate,"
        " time__convert_time."
    )
    assert "T00:30:00+00:00" in converted
    assert unknown.startswith("Error: There is no tool 'other__echo'.")
    refusals = [
        vars(record)["tool"] for record in caplog.records if record.message == "tool.refused"
    ]
    assert refusals == ["time__get_current_time", "other__echo"]
    assert not (tmp_path / "calls").exists()


async def test_a_result_that_may_be_old_is_asked_for_once_by_each_agent(tmp_path: Path) -> None:
    server = {
        "server_label": "s",
        "command": sys.executable,
        "args": [ROGUE, "well", str(tmp_path)],
    }
    once = [
        [calls((name, {"text": "a"})), says("Done.")]
        for name in ("s__echo", "s__echo", "s__echo", "s__pid", "s__pid")
    ]
    script = Script(*(answer for turn in once for answer in turn))
    allowed = {"s": {"allowed_mcp_tools": ["echo", "pid"], "cached_mcp_tools": {"echo": 60}}}
    (tmp_path / "mcp.json").write_text(json.dumps([server]), encoding="utf-8")
    agents = [
        {**AGENT, "agent_id": name, "allowed_mcp_servers": allowed} for name in ("helper", "other")
    ]
    async with open_client(create_app(configuration(tmp_path, script, agents=agents))) as client:
        await settled(client)
        for model in ("helper", "helper", "other", "helper", "helper"):
            await client.post(
                "/v1/chat/completions",
                json={"model": model, "messages": [{"role": "user", "content": "Go."}]},
            )
    assert (tmp_path / "calls").read_text(encoding="utf-8") == "echo a\necho a\npid a\npid a\n"
    assert [request.messages[-1].text for request in script.requests[1:6:2]] == ["a", "a", "a"]


async def test_a_server_cannot_take_the_place_of_a_tool_of_ours(tmp_path: Path) -> None:
    @tool(name=build_model_name("s", "echo"))
    async def ours() -> str:
        """Ours."""
        return "ours"

    script = Script(calls(("s__echo", {})), says("Done."))
    server = {
        "server_label": "s",
        "command": sys.executable,
        "args": [ROGUE, "well", str(tmp_path)],
    }
    (tmp_path / "mcp.json").write_text(json.dumps([server]), encoding="utf-8")
    agent = {**AGENT, "allowed_regular_tools": ["s__echo"], "allowed_mcp_servers": {"s": {}}}
    async with open_client(
        create_app(configuration(tmp_path, script, agents=[agent], tools=[ours]))
    ) as client:
        await settled(client)
        await ask(client)
    assert [spec.name for spec in script.requests[0].tools].count("s__echo") == 1
    assert script.requests[1].messages[-1].text == "ours"
