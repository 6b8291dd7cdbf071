"""ai-agent-service init: a folder that works at once."""

import signal
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from ai_agent_service.cli.init import init
from ai_agent_service.config.env_template import render_env_file
from ai_agent_service.config.locations import STARTER_FOLDER
from tests.support.processes import list_models, run, serving

SHIPPED = ("agent_config.json", "mcp.json", "prompts/cli_agent.txt", "prompts/research_agent.txt")
pytestmark = pytest.mark.timeout(180)
UNSET = {"AGENT_CONFIG_FILE": "", "PROMPTS_DIR": ""}
"""An empty variable counts as unset."""


def test_what_init_writes_is_checked_and_served_without_an_edit(tmp_path: Path) -> None:
    done = run(tmp_path, "init", "a folder")
    assert (done.returncode, done.stderr) == (0, "")
    files = (*SHIPPED, ".env", ".gitignore")
    assert done.stdout.splitlines()[: len(files)] == [f"wrote  a folder/{name}" for name in files]
    assert done.stdout.endswith(
        "  cd 'a folder' && ai-agent-service check && ai-agent-service serve\n"
    )
    folder = tmp_path / "a folder"
    for name in SHIPPED:
        assert (folder / name).read_text(encoding="utf-8") == (STARTER_FOLDER / name).read_text(
            encoding="utf-8"
        )
    assert (folder / ".env").read_text(encoding="utf-8") == render_env_file()
    assert stat.S_IMODE((folder / ".env").stat().st_mode) == 0o600
    checked = run(folder, "check", **UNSET)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout.endswith("2 agents in agent_config.json: no faults.\n")
    with serving(folder, **UNSET) as (url, process):
        assert list_models(url) == ["research_agent", "cli_agent"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert "come with the program" not in process.stderr.read()


def test_files_that_are_there_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mcp.json").write_text("mine", encoding="utf-8")
    (tmp_path / "secrets").write_text("mine", encoding="utf-8")
    (tmp_path / ".env").symlink_to("secrets")
    done = CliRunner().invoke(init)
    assert done.exit_code == 0
    assert "kept   mcp.json   (it is there already)\n" in done.output
    assert "kept   .env   (it is there already)\n" in done.output
    assert "wrote  agent_config.json\n" in done.output
    assert "4 files written, 2 kept as they were; --force overwrites them.\n" in done.output
    assert (tmp_path / "mcp.json").read_text(encoding="utf-8") == "mine"
    forced = CliRunner().invoke(init, ["--force"])
    assert "kept" not in forced.output
    assert (tmp_path / "mcp.json").read_text(encoding="utf-8") == (
        STARTER_FOLDER / "mcp.json"
    ).read_text(encoding="utf-8")
    assert (
        (tmp_path / ".env").is_symlink(),
        (tmp_path / "secrets").read_text(encoding="utf-8"),
    ) == (False, "mine")
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600


@pytest.mark.parametrize("folder", ["file", "file/inner", "/proc/inner"])
def test_a_folder_that_cannot_be_written_to_is_told_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    done = CliRunner().invoke(init, [folder])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Error: {folder}/agent_config.json cannot be written: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
def test_an_empty_folder_is_served_and_it_is_said_by_whom(
    tmp_path: Path, workers: tuple[str, ...]
) -> None:
    with serving(tmp_path, *workers, **UNSET) as (url, process):
        assert process.stderr is not None
        notes = (line for line in process.stderr if line.startswith("  note "))
        assert (
            "no agent_config.json, so the agents that come with the program are served. To have"
            " them as files to edit:" in next(notes)
        )
        if not workers:
            assert list_models(url) == [
                "research_agent",
                "cli_agent",
            ]
    assert not [path.name for path in tmp_path.iterdir() if path.name != "data"]
