"""All servers together: which are connected to, what that costs when none is, and what is told of
those that are off."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ai_agent_service.config.server_definition import ServerDefinition
from ai_agent_service.mcp.supervisor import open_servers

OPENS_AND_CLOSES = """
import asyncio, json, sys
from ai_agent_service.runtime.opening import open_service
from ai_agent_service.runtime.configuration import load

async def main():
    async with open_service(load()) as service:
        await service.servers.wait_for_start(30)
        return [status.state for status in service.servers.statuses]

states = asyncio.run(main())
print(json.dumps([states, sorted({"fastmcp", "mcp", "mcp_types", "httpx2"} & sys.modules.keys())]))
"""
"""Prints the servers' states and which libraries were loaded in all the time that the service was
open."""

AGENT = {
    "agent_id": "a",
    "system_prompt": "x",
    "provider": "demo",
    "allowed_mcp_servers": {"used": {}, "other": {}},
}
ABSENT = {"command": "no-such-command-anywhere"}
HANGING = [sys.executable, "-c", "import time; time.sleep(60)"]


def definition(label: str, **fields: Any) -> ServerDefinition:
    return ServerDefinition.model_validate({"server_label": label, **fields})


def loaded(folder: Path, servers: Any) -> Any:
    """The states of `servers` (None: there is no mcp.json), and the libraries that opening the
    service with them loads."""
    (folder / "agent_config.json").write_text(json.dumps([AGENT]), encoding="utf-8")
    (folder / "prompts").mkdir()
    if servers is not None:
        (folder / "mcp.json").write_text(json.dumps(servers), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", OPENS_AND_CLOSES],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("servers", "states"),
    [
        (None, []),
        ([], []),
        (
            [
                {"server_label": "used", **ABSENT, "disabled": True},
                {"server_label": "other", "server_url": "https://${NO_SUCH_HOST}/mcp"},
                {"server_label": "unused", **ABSENT},
            ],
            ["off", "off", "off"],
        ),
    ],
    ids=["no mcp.json", "no server", "all are off"],
)
def test_without_a_server_to_connect_to_no_library_is_loaded(
    tmp_path: Path, servers: Any, states: list[str]
) -> None:
    assert loaded(tmp_path, servers) == [states, []]


def test_a_server_to_connect_to_loads_the_libraries(tmp_path: Path) -> None:
    ends = {"command": HANGING[0], "args": ["-c", "raise SystemExit(3)"]}
    assert loaded(tmp_path, [{"server_label": "used", **ends}]) == [
        ["down"],
        ["fastmcp", "httpx2", "mcp", "mcp_types"],
    ]


async def test_a_server_that_no_agent_uses_is_off() -> None:
    async with open_servers(
        [definition("idle", **ABSENT)], {}, wanted=(), connect_seconds=5, tools_seconds=60
    ) as servers:
        (status,) = servers.statuses
    assert (status.label, status.state, status.error) == ("idle", "off", "No agent uses it.")


async def test_a_variable_that_is_missing_is_named_in_the_log_and_in_the_status(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    off = [
        definition("wiki", transport="http", missing=("WIKI_KEY",)),
        definition("unused", transport="http", missing=("OTHER_KEY",)),
    ]
    async with open_servers(
        off, {}, wanted={"wiki"}, connect_seconds=5, tools_seconds=60
    ) as servers:
        assert [(status.state, status.error) for status in servers.statuses] == [
            ("off", "WIKI_KEY is not set."),
            ("off", "OTHER_KEY is not set."),
        ]
    told = [vars(record) for record in caplog.records if record.getMessage() == "mcp.off"]
    assert [(line["server"], line["reason"]) for line in told] == [("wiki", "WIKI_KEY is not set.")]


@pytest.mark.parametrize(
    ("command", "cwd", "state"),
    [
        ("no-such-command-anywhere", None, "off"),
        ("./serve", None, "off"),
        ("./serve", "there", "down"),
        ("bin/not-executable", "there", "off"),
        ("/bin/false", None, "down"),
    ],
)
async def test_a_command_that_is_not_installed_turns_its_server_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, cwd: str | None, state: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there" / "bin").mkdir(parents=True)
    (tmp_path / "there" / "bin" / "not-executable").write_text("", encoding="utf-8")
    (tmp_path / "there" / "serve").symlink_to("/bin/false")
    defined = definition("one", command=command, cwd=cwd and str(tmp_path / cwd))
    async with open_servers(
        [defined], os.environ, wanted={"one"}, connect_seconds=20, tools_seconds=60
    ) as servers:
        await servers.wait_for_start(40)
        (status,) = servers.statuses
    assert status.state == state
    if state == "off":
        assert (
            status.error
            == f"The command {command!r} is not found; install it, or name it with its full path."
        )


async def test_opening_does_not_wait_for_a_server_that_never_answers() -> None:
    hanging = definition("slow", command=HANGING[0], args=HANGING[1:])
    began = time.monotonic()
    async with open_servers(
        [hanging], os.environ, wanted={"slow"}, connect_seconds=50, tools_seconds=60
    ) as servers:
        assert time.monotonic() - began < 10
        await servers.wait_for_start(0.5)
        assert servers["slow"].state == "starting"


async def test_one_server_that_fails_does_not_keep_the_others_from_settling() -> None:
    definitions = [
        definition("one", server_url="http://127.0.0.1:1/mcp"),
        definition("two", command=HANGING[0], args=["-c", "raise SystemExit(3)"]),
    ]
    async with open_servers(
        definitions, os.environ, wanted={"one", "two"}, connect_seconds=20, tools_seconds=60
    ) as servers:
        await servers.wait_for_start(40)
        one, two = servers.statuses
    assert (one.state, two.state) == ("down", "down")
    assert "cannot be reached" in str(one.error)
    assert "exited with code 3" in str(two.error)


async def test_the_servers_are_found_by_their_labels_and_told_of_in_the_order_of_the_file() -> None:
    definitions = [definition(label, **ABSENT) for label in ("b", "a")]
    async with open_servers(
        definitions, {}, wanted=(), connect_seconds=5, tools_seconds=60
    ) as servers:
        assert [status.label for status in servers.statuses] == ["b", "a"]
        assert (servers["a"].label, "a" in servers, "c" in servers) == ("a", True, False)
