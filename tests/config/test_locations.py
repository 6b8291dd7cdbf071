"""Where the files lie: those of the folder, or the starter set of the program."""

import json
from pathlib import Path

import pytest

from ai_agent_service.config.json_files import read_json
from ai_agent_service.config.locations import STARTER_FOLDER, locate_files
from ai_agent_service.config.settings import load_settings
from ai_agent_service.core.errors import ConfigError
from ai_agent_service.runtime.configuration import Configuration, load_configuration
from ai_agent_service.runtime.opening import open_service
from ai_agent_service.runtime.plugin_loader import load_plugins
from tests.support.processes import ROOT


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to start in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, agent_id: str) -> None:
    agent = {"agent_id": agent_id, "system_prompt": "x", "provider": "demo"}
    (folder / "agent_config.json").write_text(json.dumps([agent]), encoding="utf-8")


def loaded() -> Configuration:
    return load_configuration(load_settings(default_provider="demo"), load_plugins()[0])


def test_the_starter_set_is_what_the_project_itself_runs_with() -> None:
    for name in ("agent_config.json", "mcp.json"):
        assert read_json(STARTER_FOLDER / name) == (
            json.loads((ROOT / name).read_text(encoding="utf-8")),
            [],
        )
        assert "// " in (STARTER_FOLDER / name).read_text(encoding="utf-8")
    prompts = {
        path.name: path.read_text(encoding="utf-8")
        for path in (STARTER_FOLDER / "prompts").iterdir()
    }
    assert prompts == {
        path.name: path.read_text(encoding="utf-8") for path in (ROOT / "prompts").iterdir()
    }


def test_an_empty_folder_has_the_starter_set() -> None:
    found = locate_files(load_settings())
    assert (
        found.is_starter,
        found.agents.is_relative_to(STARTER_FOLDER),
        found.agents.exists(),
    ) == (True, True, True)
    assert [agent.agent_id for agent in loaded().agents] == ["research_agent", "cli_agent"]


@pytest.mark.parametrize("name", ["agent_config.json", "mcp.json", "prompts"])
def test_a_folder_with_any_of_the_files_has_no_other(folder: Path, name: str) -> None:
    (folder / name).symlink_to("nowhere")
    assert not locate_files(load_settings()).is_starter
    with pytest.raises(ConfigError, match=r"agent_config\.json: the file does not exist"):
        loaded()


@pytest.mark.parametrize("name", ["AGENT_CONFIG_FILE", "MCP_CONFIG_FILE", "PROMPTS_DIR"])
def test_files_that_are_named_on_purpose_have_to_be_there(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "agent_config.json")
    with pytest.raises(ConfigError, match=r"agent_config\.json: the file does not exist"):
        loaded()


async def test_files_that_vanish_are_no_reason_to_serve_others(folder: Path) -> None:
    write(folder, "mine")
    async with open_service(loaded()) as service:
        (folder / "agent_config.json").unlink()
        with pytest.raises(ConfigError, match=r"agent_config\.json: the file does not exist"):
            await service.reload()
        assert [agent.agent_id for agent in service.catalog] == ["mine"]


async def test_files_that_come_are_taken_by_a_reload(folder: Path) -> None:
    async with open_service(loaded()) as service:
        write(folder, "mine")
        assert (await service.reload()).added_agents == ["mine"]
        assert [agent.agent_id for agent in service.catalog] == ["mine"]
