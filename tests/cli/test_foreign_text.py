"""Text of users, models, tools and servers on the terminal: it commands nothing and hides
nothing."""

import http.server
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ai_agent_service.cli.chat import TerminalAnswer, _parse_markdown
from ai_agent_service.cli.check import _echo_servers
from ai_agent_service.core.events import ToolFinished, ToolProgress, ToolsMissing, ToolStarted
from ai_agent_service.core.messages import ToolCall, ToolResult
from ai_agent_service.mcp.connection import ServerStatus
from tests.support.commands import invoke
from tests.support.service import configuration

CANARIES = {
    "clipboard": "\x1b]52;c;b3duZWQ=\x07",
    "title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;https://evil.example\x1b\\here\x1b]8;;\x1b\\",
    "c1": "\x9b31m\x9d0;owned\x9c",
    "carriage": "\rowned",
    "backspace": "a\x08\x7f",
    "bidi": "\u202eowned\u2066",
    "zero_width": "ow\u200bn\u2060ed\ufeff",
    "line_ends": "a\u2028b\u2029c\x85d\x0b\x0c",
    "tags": "\U000e0041",
}
ALL = "".join(CANARIES.values())
FORBIDDEN = set(ALL) - {character for character in ALL if character.isprintable()} - {"\x1b"}
PLUGIN = f"""
import json

from ai_agent_service.core.errors import ProviderRefusedError
from ai_agent_service.core.events import ReasoningDelta, TextDelta
from ai_agent_service.core.messages import ToolCall
from ai_agent_service.core.usage import Usage
from ai_agent_service.plugins import tool
from ai_agent_service.providers.base import ModelFinished
from ai_agent_service.providers.demo import Demo

CANARY = {ALL!r}

@tool
def look(what: str) -> str:
    \"\"\"Look.\"\"\"
    return "[bold]result[/]" + CANARY

class Hostile(Demo):
    name = "hostile"

    async def stream(self, request):
        last = request.messages[-1]
        if last.text == "fail":
            raise ProviderRefusedError("refused " + CANARY)
        if last.role == "user":
            yield ReasoningDelta("thought " + CANARY)
            yield TextDelta("[red]before[/] " + CANARY)
            arguments = json.dumps({{"what": CANARY}}, ensure_ascii=False)
            call = ToolCall("c1", "look", arguments)
            yield ModelFinished("tool_calls", (call,), Usage(1, 1))
            return
        yield TextDelta("answer " + CANARY + " &#x202e; [text](https://evil.example) end")
        yield ModelFinished("stop", (), Usage(1, 1))
"""


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """The environment of an agent whose provider, tool and id hold canaries."""
    (tmp_path / "plugin.py").write_text(PLUGIN, encoding="utf-8")
    agent = {
        "agent_id": "a",
        "system_prompt": "x",
        "provider": "hostile",
        "allowed_regular_tools": ["look"],
    }
    (tmp_path / "agents.json").write_text(json.dumps([agent]), encoding="utf-8")
    return {"AGENT_CONFIG_FILE": "agents.json", "PLUGINS_DIR": str(tmp_path)}


def assert_harmless(output: str) -> None:
    assert not FORBIDDEN & set(output)
    assert "\x1b" not in output


@pytest.mark.parametrize("message", ["hello", "fail"])
def test_chat_shows_what_models_and_tools_say(
    tmp_path: Path, variables: dict[str, str], message: str
) -> None:
    done = invoke(tmp_path, "chat", "a", "-m", message, **variables)
    assert_harmless(done.stdout + done.stderr)
    assert r"\u001b]52;c;" in done.stdout
    assert r"\u202eowned" in done.stdout
    if message == "hello":
        for text in ("thought ", "[red]before[/] ", "[bold]result[/]", "answer "):
            assert text in done.stdout


def test_markdown_shows_where_links_lead_and_decodes_nothing_invisible() -> None:
    console = Console(force_terminal=True, width=200)
    with console.capture() as captured:
        console.print(_parse_markdown("&#x202e;&#x200b; [text](https://evil.example/&#x202e;)"))
    shown = captured.get()
    assert not FORBIDDEN & set(shown)
    assert "\x1b]8" not in shown
    assert "https://evil.example/" in shown


def test_notes_of_tools_are_shown_without_markup(capsys: pytest.CaptureFixture[str]) -> None:
    call = ToolCall("c1", f"[red]name[/]{ALL}", ALL)
    answer = TerminalAnswer(Console(highlight=False, soft_wrap=True))
    answer.show(ToolStarted(call))
    answer.show(ToolProgress(call, 1, 2, ALL))
    result = ToolResult(call_id="c1", name=call.name, content=ALL, is_error=True)
    answer.show(ToolFinished(result))
    answer.show(ToolsMissing((ALL,)))
    shown = capsys.readouterr().out
    assert_harmless(shown)
    assert shown.count("[red]name[/]") == 3


def test_check_shows_what_mcp_servers_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state: Any = dict.fromkeys(("since", "restarts", "schema_changes"), 0) | {"quarantined": ()}
    state["problems"] = (f"left out {ALL}",)
    common = {**state, "connect_seconds": 1.0, "transport": "stdio"}
    ready = ServerStatus(label="good", state="ready", tools=(f"tool{ALL}",), error=None, **common)
    down = ServerStatus(label="bad", state="down", tools=(), error=f"it said {ALL}", **common)
    _echo_servers(configuration(tmp_path), (ready, down))
    shown = capsys.readouterr().out
    assert_harmless(shown)
    assert r"tool\u001b]52;c;" in shown
    assert r"it said \u001b]52;c;" in shown
    assert r"left out \u001b]52;c;" in shown


def test_keys_shows_names(tmp_path: Path) -> None:
    variables = {"DATA_DIR": str(tmp_path / "data")}
    made = invoke(tmp_path, "keys", "create", "--name", "x\u202ey\u200bz", **variables)
    listed = invoke(tmp_path, "keys", "list", **variables)
    as_json = invoke(tmp_path, "keys", "list", "--json", **variables)
    for done in (made, listed, as_json):
        assert_harmless(done.stdout + done.stderr)
    if made.returncode == 0:
        assert r"x\u202ey\u200bz" in listed.stdout
        assert json.loads(as_json.stdout)[0]["name"] == "x\u202ey\u200bz"


def test_eval_shows_cases_and_answers(tmp_path: Path, variables: dict[str, str]) -> None:
    cases = [{"id": "one", "input": "hello", "expect": {"contains": ALL}}]
    dataset = {"agent": "a", "cases": cases}
    (tmp_path / "set.json").write_text(json.dumps(dataset), encoding="utf-8")
    done = invoke(tmp_path, "eval", "run", "set.json", "--agent", "a", **variables)
    assert_harmless(done.stdout + done.stderr)


def test_faults_of_the_configuration_and_unknown_names_are_shown(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    agents = [{"agent_id": ALL, "system_prompt": "x", ALL: 1}]
    (tmp_path / "agents.json").write_text(json.dumps(agents), encoding="utf-8")
    done = invoke(tmp_path, "check", **variables)
    assert done.returncode == 2
    assert_harmless(done.stdout + done.stderr)


def test_reload_shows_what_the_service_answers(tmp_path: Path) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.dumps({"error": {"message": f"no {ALL}", "code": "x"}}).encode()
            self.send_response(500)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        done = invoke(tmp_path, "reload", "--url", f"http://127.0.0.1:{server.server_port}")
        thread.join(10)
    assert done.returncode == 1
    assert_harmless(done.stdout + done.stderr)
    assert r"no \u001b]52;c;" in done.stderr
