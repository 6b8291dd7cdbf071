"""The terminal chat: where Markdown that still grows may be cut, and what it does with the agent's
MCP servers."""

import json
from pathlib import Path

import pytest

from ai_agent_service.cli.chat import _split_last_block
from tests.cli.test_main import KEYLESS, TIME, configure, dead_server, run

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
