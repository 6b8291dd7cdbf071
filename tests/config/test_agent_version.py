"""Versions of agents: what makes another one, and what does not."""

import json
from pathlib import Path
from typing import Any

import pytest

from ai_agent_service.config.agent_version import compute_version
from ai_agent_service.config.read_agents import KnownNames, read_agents
from ai_agent_service.config.read_servers import read_servers

KNOWN = KnownNames(("agent",), ("demo",), ("calculate",))
AGENT: dict[str, Any] = {
    "agent_id": "a",
    "system_prompt_file": "a.txt",
    "allowed_mcp_servers": {"one": {}},
    "resources": ["memory"],
    "resource_config": {"memory": {"compression": {"prompt_file": "s.txt"}}},
}
SERVER: dict[str, Any] = {
    "server_label": "one",
    "server_url": "https://${HOST}/mcp",
    "header": {"Authorization": "Bearer ${TOKEN}", "X-A": "1"},
}
ENVIRONMENT = {"HOST": "here", "TOKEN": "t0p-secret", "MODEL": "m"}


class Files:
    """What the operator wrote, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = dict(ENVIRONMENT)
        self.agent = dict(AGENT)
        self.servers = [dict(SERVER)]
        self.prompts = {"a.txt": "You help.", "s.txt": "Sum up."}

    def version(self) -> str:
        """The agent's version."""
        (self.folder / "agents.json").write_text(
            json.dumps([self.agent], indent=3), encoding="utf-8"
        )
        (self.folder / "mcp.json").write_text(json.dumps(self.servers), encoding="utf-8")
        for name, text in self.prompts.items():
            (self.folder / name).write_text(text, encoding="utf-8")
        [agent], faults = read_agents(
            self.folder / "agents.json", self.folder, self.environment, KNOWN
        )
        servers, more = read_servers(self.folder / "mcp.json", self.environment)
        assert faults == more == []
        return compute_version(agent, servers)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """The agent and the server above."""
    return Files(tmp_path)


def test_it_is_the_same_on_every_machine(files: Files) -> None:
    assert files.version() == "7b8b5f7134f2"


def test_the_order_of_fields_defaults_that_are_written_out_and_names_of_prompt_files_do_not_matter(
    files: Files,
) -> None:
    before = files.version()
    files.agent = {"max_steps": 12, **dict(reversed(AGENT.items())), "system_prompt_file": "b.txt"}
    files.servers = [dict(reversed(SERVER.items())), {"server_label": "unused", "command": "x"}]
    files.prompts["b.txt"] = "You help."
    assert files.version() == before


def test_what_machines_and_people_keep_to_themselves_does_not_matter(files: Files) -> None:
    before = files.version()
    files.environment |= {"HOST": "there", "TOKEN": "an0ther-secret"}
    assert files.version() == before
    del files.environment["TOKEN"]
    assert files.version() == before
    files.servers = [{**SERVER, "header": {"Authorization": "Bearer one-secret", "X-A": "1"}}]
    written = files.version()
    files.servers = [{**SERVER, "header": {"Authorization": "Bearer two-secret", "X-A": "1"}}]
    assert files.version() == written != before


@pytest.mark.parametrize(
    "change",
    [
        {"description": "x"},
        {"model": "m"},
        {"model_settings": {"temperature": 0.1}},
        {"allowed_regular_tools": ["calculate"]},
        {"allowed_mcp_servers": {"one": {"allowed_mcp_tools": ["t"]}}},
        {"agent_id": "b"},
    ],
)
def test_another_definition_is_another_version(files: Files, change: dict[str, Any]) -> None:
    before = files.version()
    files.agent |= change
    assert files.version() != before


@pytest.mark.parametrize("name", ["a.txt", "s.txt"])
def test_another_prompt_is_another_version(files: Files, name: str) -> None:
    before = files.version()
    files.prompts[name] += " Well."
    assert files.version() != before


@pytest.mark.parametrize(
    "change",
    [
        {"server_url": "https://b/mcp"},
        {"pin_tools": True},
        {"header": {"X-A": "2"}},
        {"disabled": True},
    ],
)
def test_another_entry_of_a_server_that_is_used_is_another_version(
    files: Files, change: dict[str, Any]
) -> None:
    before = files.version()
    files.servers[0] |= change
    assert files.version() != before


def test_a_variable_in_the_definition_counts_by_its_value(files: Files) -> None:
    files.agent["model"] = "${MODEL}"
    before = files.version()
    files.environment["MODEL"] = "other"
    assert files.version() != before
