"""The terminal chat: where Markdown that still grows may be cut, how it answers and stops, and what
it does with the agent's MCP servers."""

import json
from pathlib import Path

import pytest

from ai_agent_service.cli.chat import _split_last_block
from tests.support.commands import invoke
from tests.support.mcp_definitions import KEYLESS, TIME, configure, dead_server
from tests.support.processes import Terminal, run

LIST = "1. Step:\n\n   ```bash\n   cmd\n   ```\n\n2. More\n\n   of step two\n3. Third\n"


@pytest.mark.parametrize(
    ("text", "whole", "rest"),
    [
        ("One.\n\nTwo", "One.", "Two"),
        ("One paragraph\nthat goes on\n", "", "One paragraph\nthat goes on\n"),
        (f"{LIST}", "", LIST),
        (f"Do this:\n\n{LIST}\nDone.", f"Do this:\n\n{LIST.rstrip()}", "Done."),
        ("```\na\n\nb\n", "", "```\na\n\nb\n"),
        (
            "# Title\n\n| a | b |\n|---|---|\n| 1 | 2 |\n",
            "# Title",
            "| a | b |\n|---|---|\n| 1 | 2 |\n",
        ),
    ],
)
def test_only_blocks_that_cannot_grow_any_more_are_cut_off(
    text: str, whole: str, rest: str
) -> None:
    assert _split_last_block(text) == (whole, rest)


ASKS_THE_TIME = """
from ai_agent_service.core.messages import ToolCall
from ai_agent_service.providers.demo import Demo

class AsksTheTime(Demo):
    name = "asks_the_time"

    def _tool_call(self, request):
        has_clock = any(spec.name == "time__get_current_time" for spec in request.tools)
        asked = request.messages[-1].role == "user" and has_clock
        return ToolCall("c1", "time__get_current_time", '{"timezone": "UTC"}') if asked else None
"""


def chat_with(folder: Path, environment: dict[str, str]) -> tuple[int, str, str]:
    """One question to the agent `a`, whose provider calls `time__get_current_time` when it can."""
    (folder / "plugin.py").write_text(ASKS_THE_TIME, encoding="utf-8")
    done = run(
        folder,
        "chat",
        "a",
        "-m",
        "Hm?",
        **environment,
        PLUGINS_DIR=str(folder),
        DEFAULT_PROVIDER="asks_the_time",
    )
    return done.returncode, done.stdout, done.stderr


def test_a_chat_waits_for_the_agents_server_and_uses_its_tool(tmp_path: Path) -> None:
    code, answer, told = chat_with(tmp_path, configure(tmp_path, TIME, time={}))
    assert (code, told) == (0, "")
    assert '> time__get_current_time {"timezone": "UTC"}\n' in answer
    assert "< time__get_current_time (" in answer
    assert '"timezone": "UTC"' in answer.split("The tool answered: ")[1]


def test_a_chat_says_which_servers_it_goes_without(tmp_path: Path) -> None:
    with dead_server() as dead:
        code, answer, told = chat_with(
            tmp_path, configure(tmp_path, TIME, dead, KEYLESS, dead={}, wiki={})
        )
    lines = told.replace("\n", " ").split("without the tools of ")[1:]
    assert (code, "> time__" in answer) == (0, False)
    assert [line.split(":")[0] for line in lines] == ["dead", "wiki"]
    assert lines[0].startswith("dead: it cannot be reached")
    assert lines[1].strip() == "wiki: NO_SUCH_WIKI_KEY is not set."


def test_a_chat_starts_no_server_of_another_agent(tmp_path: Path) -> None:
    starting = {
        "server_label": "starting",
        "command": TIME["command"],
        "args": ["-c", "open('started', 'w')"],
    }
    environment = configure(tmp_path, starting)
    other = {"agent_id": "b", "system_prompt": "x", "allowed_mcp_servers": {"starting": {}}}
    agents = json.loads((tmp_path / "agents.json").read_text(encoding="utf-8"))
    (tmp_path / "agents.json").write_text(json.dumps([*agents, other]), encoding="utf-8")
    code, _, told = chat_with(tmp_path, environment)
    assert (code, told, (tmp_path / "started").exists()) == (0, "", False)


def test_debug_shows_on_a_terminal_what_a_model_is_asked(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "chat", "cli_agent", "--debug", "-m", "What is 6*7?")
    terminal.wait_for("model.asked")
    terminal.wait_for("      - role: user\r\n        text: What is 6*7?\r\n")
    terminal.wait_for("tool.started tool=calculate")
    terminal.wait_for("model.answered")
    assert terminal.end() == 0


def test_chat_answers_one_message(tmp_path: Path) -> None:
    done = invoke(tmp_path, "chat", "research_agent", "-m", "What is (17 + 4) * 2?")
    assert (done.returncode, done.stderr) == (0, "")
    assert '> calculate {"expression":"(17 + 4) * 2"}' in done.stdout
    assert done.stdout.endswith("(17 + 4) * 2 = **42**\n")


def test_chat_remembers_what_was_said(tmp_path: Path) -> None:
    done = invoke(tmp_path, "chat", "cli_agent", stdin="My name is Ada.\n\nWhat is my name?\n")
    assert done.returncode == 0
    assert "Your name is Ada." in done.stdout


def test_chat_tells_of_an_unknown_agent_and_of_bad_settings(tmp_path: Path) -> None:
    unknown = invoke(tmp_path, "chat", "nobody", "-m", "x")
    assert unknown.returncode == 2
    assert "There are: research_agent, cli_agent." in unknown.stderr
    assert "'x' is not NAME=VALUE" in invoke(tmp_path, "chat", "cli_agent", "--setting", "x").stderr
    assert (
        "messages cannot be set"
        in invoke(tmp_path, "chat", "cli_agent", "--setting", "messages=1").stderr
    )


def test_chat_fails_when_the_agent_cannot_answer(tmp_path: Path) -> None:
    done = invoke(tmp_path, "chat", "cli_agent", "-m", "x", DEFAULT_PROVIDER="openrouter")
    assert done.returncode == 1
    assert "OPENROUTER_API_KEY" in done.stdout


def test_chat_in_a_terminal_sets_markdown_stops_and_goes_on(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "chat", "research_agent")
    terminal.wait_for("> ")
    terminal.type("help\n")
    terminal.wait_for("demo")
    terminal.type("\x03")
    terminal.wait_for("stopped")
    terminal.wait_for("> ")
    terminal.type("What is 6*7?\n")
    terminal.wait_for("calculate")
    terminal.wait_for("6*7 = \x1b[1m42\x1b[0m")
    terminal.wait_for("> ")
    terminal.type("half a line")
    terminal.wait_for(
        "Ctrl-D ends the chat", pressing="\x03"
    )  # once is not enough if it comes before the prompt reads
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.end() == 0
