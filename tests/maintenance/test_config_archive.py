"""The archive of the configuration."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ai_agent_service.config.locations import STARTER_FOLDER
from ai_agent_service.config.settings import Settings, load_settings
from ai_agent_service.maintenance.config_archive import pack
from tests.support.commands import unpacked


def test_the_archive_has_what_the_settings_name_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, etc = tmp_path / "work", tmp_path / "etc"
    for folder in (work / "data", work / "backups", work / "__pycache__", work / "..data", etc):
        folder.mkdir(parents=True)
    (etc / "agents.json").write_text(json.dumps([]), encoding="utf-8")
    (work / "..data" / "helper.txt").write_text("You help.", encoding="utf-8")
    (work / "helper.txt").symlink_to("..data/helper.txt")
    (work / ".env").write_text("SECRET=x", encoding="utf-8")
    for name in ("data/conversations.db", "backups/old", "__pycache__/x.pyc"):
        (work / name).write_text("x", encoding="utf-8")
    monkeypatch.chdir(work)
    named: dict[str, Any] = {
        "agent_config_file": Path("../etc/agents.json"),
        "prompts_dir": Path(),
        "plugins_dir": etc,
    }
    written = io.BytesIO()
    names = pack(Settings(**named), written, without=[Path("backups")])
    at_root = etc.relative_to("/").as_posix()
    assert names == (f"{at_root}/agents.json", at_root, ".")
    with tarfile.open(fileobj=io.BytesIO(written.getvalue())) as archive:
        assert sorted({member.name for member in archive if member.isfile()}) == [
            "./helper.txt",
            f"{at_root}/agents.json",
        ]
        extracted = archive.extractfile("./helper.txt")
        assert extracted is not None
        assert extracted.read() == b"You help."


def test_the_archive_of_a_folder_without_files_has_those_that_are_served_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written = tmp_path / "config-backup.tar.gz"
    with written.open("wb") as file:
        assert pack(load_settings(), file) == ("agent_config.json", "mcp.json", "prompts")
    elsewhere = unpacked(written, tmp_path / "elsewhere")
    assert {
        path.relative_to(elsewhere).as_posix(): path.read_bytes()
        for path in elsewhere.rglob("*")
        if path.is_file()
    } == {
        path.relative_to(STARTER_FOLDER).as_posix(): path.read_bytes()
        for path in STARTER_FOLDER.rglob("*")
        if path.is_file()
    }
