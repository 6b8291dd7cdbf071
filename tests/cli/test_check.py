"""`ai-agent-service check`: what it shows of agents, providers and MCP servers."""

import asyncio
import json
import re
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.support.commands import invoke
from tests.support.fake_upstream import Upstream, reply
from tests.support.mcp_definitions import KEYLESS, TIME, configure, dead_server
from tests.support.mcp_rogue import ROGUE
from tests.support.processes import run


def find_row(output: str, label: str) -> list[str]:
    """Return the cells of the row `label` in a table of `check --connect`."""
    return re.split(
        r"  +", next(line for line in output.splitlines() if line.startswith(f"{label}  "))
    )


def test_check_shows_the_shipped_agents(tmp_path: Path) -> None:
    done = invoke(tmp_path, "check")
    assert (done.returncode, done.stderr) == (0, "")
    assert "research_agent" in done.stdout
    assert "get_current_datetime, calculate" in done.stdout
    assert "Agents with the provider auto use: demo" in done.stdout
    assert "2 agents in" in done.stdout


def test_an_agent_that_cannot_answer_is_told_of(tmp_path: Path) -> None:
    done = invoke(tmp_path, "check", DEFAULT_PROVIDER="openai", OPENAI_API_KEY="k")
    assert done.returncode == 0
    assert "no: The agent names no model for openai" in done.stdout
    assert (
        "no: OPENROUTER_API_KEY must be set for openrouter."
        in invoke(tmp_path, "check", DEFAULT_PROVIDER="openrouter").stdout
    )
    assert invoke(tmp_path, "check", DEFAULT_PROVIDER="azure_openai_cc").returncode == 0


def test_check_shows_whom_an_agent_falls_back_to(tmp_path: Path) -> None:
    others = [
        {"provider": "openrouter", "model": "a/b"},
        {"provider": "openai"},
        {"provider": "demo"},
    ]
    agent = {
        "agent_id": "helper",
        "system_prompt": "You help.",
        "provider": "openai",
        "model": "big",
        "fallback": others,
    }
    (tmp_path / "agents.json").write_text(json.dumps([agent]), encoding="utf-8")
    done = invoke(tmp_path, "check", AGENT_CONFIG_FILE="agents.json", OPENROUTER_API_KEY="k")
    assert done.returncode == 0
    assert re.search(r"^helper +openai +big +- +- +- +yes$", done.stdout, re.MULTILINE)
    missing = "(no: OPENAI_API_KEY must be set for openai.)"
    assert (
        f"helper asks openai/big {missing}; if that fails: openrouter/a/b, openai {missing}, demo\n"
        in done.stdout
    )
    agent["fallback"] = [{"provider": "opnai"}]
    (tmp_path / "agents.json").write_text(json.dumps([agent]), encoding="utf-8")
    done = invoke(tmp_path, "check", AGENT_CONFIG_FILE="agents.json")
    assert done.returncode == 2
    assert (
        "agent 'helper': fallback.0.provider: 'opnai' is not a provider. Did you mean 'openai'?"
        in done.stderr
    )


def test_check_names_the_servers_and_what_is_off(tmp_path: Path) -> None:
    files = {"server_label": "files", "command": "no-such-command-anywhere"}
    disabled = {**TIME, "disabled": True}
    done = invoke(
        tmp_path, "check", **configure(tmp_path, files, disabled, KEYLESS, files={}, wiki={})
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        "MCP servers: files (off: The command 'no-such-command-anywhere' is not found; install it,"
        " or name it with its full path), time (off: It is disabled in the MCP configuration), wiki"
        " (off: NO_SUCH_WIKI_KEY is not set). To see whether they can be reached: check --connect\n"
        in done.stdout
    )
    assert next(line for line in done.stdout.splitlines() if line.startswith("a  ")).split() == [
        *("a", "demo", "demo", "-", "-"),
        *("files,", "wiki", "yes"),
    ]


def test_check_connect_tells_of_each_server_and_fails_when_one_is_down(tmp_path: Path) -> None:
    with dead_server() as dead:
        done = run(
            tmp_path, "check", "--connect", **configure(tmp_path, TIME, dead, KEYLESS, time={})
        )
    assert (done.returncode, done.stderr) == (1, "")
    assert find_row(done.stdout, "MCP SERVER") == [
        "MCP SERVER",
        "TRANSPORT",
        "STATE",
        "TOOLS",
        "TIME",
        "ERROR",
    ]
    label, transport, state, tools, seconds = find_row(done.stdout, "time")
    assert (label, transport, state, tools) == ("time", "stdio", "ready", "2")
    assert re.fullmatch(r"\d+\.\d\d s", seconds)
    assert find_row(done.stdout, "dead")[:5] == ["dead", "http", "down", "-", "-"]
    assert find_row(done.stdout, "dead")[5].startswith("it cannot be reached")
    assert find_row(done.stdout, "wiki") == [
        "wiki",
        "http",
        "off",
        "-",
        "-",
        "NO_SUCH_WIKI_KEY is not set.",
    ]
    assert "\ntime: get_current_time, convert_time\n" in done.stdout


def test_check_connect_succeeds_when_every_server_is_ready_or_off_and_warns_of_missing_tools(
    tmp_path: Path,
) -> None:
    allowed = {
        "allowed_mcp_tools": ["convert_tme", "get_current_time"],
        "cached_mcp_tools": ["get_curent_time"],
    }
    done = run(
        tmp_path,
        "check",
        "--connect",
        **configure(tmp_path, TIME, KEYLESS, time=allowed, wiki={"allowed_mcp_tools": ["ask"]}),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if "has no tool" in line] == [
        "warning: agent a: time has no tool 'convert_tme'. Did you mean 'convert_time'?",
        "warning: agent a: time has no tool 'get_curent_time'. Did you mean 'get_current_time'?",
    ]


def test_check_connect_warns_of_more_tools_than_a_provider_takes(tmp_path: Path) -> None:
    many = {
        "server_label": "many",
        "command": sys.executable,
        "args": [ROGUE, "offers-much"],
    }
    done = run(tmp_path, "check", "--connect", **configure(tmp_path, many, many={}))
    assert done.returncode == 0
    assert re.search(r"warning: agent \w+: it has 20\d tools, and OpenAI takes 128", done.stdout)
    done = run(
        tmp_path,
        "check",
        "--connect",
        **configure(tmp_path, many, many={"allowed_mcp_tools": ["echo"]}),
    )
    assert "OpenAI takes" not in done.stdout


@pytest.mark.parametrize(
    ("status", "code", "state", "said"),
    [
        (200, 0, "ready", ""),
        (404, 0, "unknown", "openai: No list of models."),
        (401, 1, "down", "openai: No list of models."),
    ],
)
async def test_check_connect_asks_each_provider_and_fails_when_one_is_down(
    tmp_path: Path, status: int, code: int, state: str, said: str
) -> None:
    async with Upstream(reply(status, {"error": {"message": "No list of models."}})) as upstream:
        settings = {
            "DEFAULT_PROVIDER": "openai",
            "OPENAI_BASE_URL": upstream.url,
            "OPENAI_API_KEY": "k",
            "OPENAI_DEFAULT_MODEL": "m",
        }
        done = await asyncio.to_thread(partial(run, tmp_path, "check", "--connect", **settings))
    name, found, time, *error = find_row(done.stdout, "openai")
    assert (done.returncode, name, found, error) == (code, "openai", state, [said] if said else [])
    assert re.fullmatch(r"\d+\.\d\d s" if status == 200 else "-", time)
    assert ("Providers that cannot be used: openai.\n" in done.stdout) == (code == 1)


def test_check_connect_without_servers_says_so(tmp_path: Path) -> None:
    done = run(tmp_path, "check", "--connect")
    assert done.returncode == 0
    assert "No MCP server is defined in mcp.json." in done.stdout
