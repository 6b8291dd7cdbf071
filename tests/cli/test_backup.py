"""ai-agent-service backup: database and configuration as an operator's timer keeps them, and what
becomes of them elsewhere."""

import asyncio
import os
import re
import shutil
import sqlite3
import subprocess
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ai_agent_service.cli.backup import backup
from ai_agent_service.cli.db import db
from tests.support.commands import command, invoke, unpacked
from tests.support.processes import ROOT, list_models, serving

OWN = {"AGENT_CONFIG_FILE": "agent_config.json", "PROMPTS_DIR": "prompts"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an installation as it is shipped, with a database; the commands are run in
    it."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("agent_config.json", "mcp.json"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "prompts", folder / "prompts")
    (folder / ".env").write_text(
        "OPENROUTER_API_KEY=a-secret-that-is-not-backed-up\n", encoding="utf-8"
    )
    assert asyncio.run(command(db, folder, "upgrade")).code == 0
    monkeypatch.chdir(folder)
    return folder


async def told(here: Path, *arguments: str) -> str:
    """What `ai-agent-service backup` says, in one line."""
    done = await command(backup, here, *arguments)
    assert (done.code, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    return done.stdout.strip()


async def refused(here: Path, *arguments: str) -> str:
    """Why `ai-agent-service backup` fails, in one line."""
    done = await command(backup, here, *arguments)
    assert (done.code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    return done.stderr.strip()


async def test_what_was_backed_up_serves_the_same_agents_in_an_empty_folder(
    here: Path, tmp_path: Path
) -> None:
    backups = tmp_path / "backups"
    backups.mkdir()
    began = datetime.now(UTC)
    said = await told(here, str(backups))
    [made] = backups.iterdir()
    size = (made / "conversations.db").stat().st_size
    assert said == (
        f"{made} was made: 0 conversations, 0 messages, {size / 1e6:.1f} MB of"
        f" sqlite:///{here}/data/ai-agent-service.db,"
        " and agent_config.json, mcp.json, prompts."
    )
    assert 0 <= (datetime.strptime(made.name, "%Y%m%dT%H%M%S%z") - began).total_seconds() + 1 < 30
    assert sorted(path.name for path in made.iterdir()) == [
        "config-backup.tar.gz",
        "conversations.db",
    ]
    assert [path.stat().st_mode & 0o077 for path in (made, *made.iterdir())] == [0, 0, 0]
    elsewhere = unpacked(made / "config-backup.tar.gz", tmp_path / "elsewhere")
    assert not (elsewhere / ".env").exists()
    assert (await command(db, elsewhere, "restore", str(made / "conversations.db"))).code == 0
    with serving(elsewhere, **OWN) as (url, _):
        assert list_models(url) == [
            "research_agent",
            "cli_agent",
        ]


def test_the_plain_command_for_the_configuration_does_too(here: Path, tmp_path: Path) -> None:
    archive = tmp_path / "config-backup.tar.gz"
    subprocess.run(
        ["tar", "-czf", str(archive), "agent_config.json", "mcp.json", "prompts/"],
        cwd=here,
        check=True,
        timeout=20,
    )
    before, after = (
        invoke(here, "check", **OWN),
        invoke(unpacked(archive, tmp_path / "elsewhere"), "check", **OWN),
    )
    assert (after.returncode, after.stdout, after.stderr) == (0, before.stdout, "")
    assert "no faults" in after.stdout


async def test_old_backups_are_deleted_by_number_and_by_age_and_nothing_else(
    here: Path, tmp_path: Path
) -> None:
    backups = tmp_path / "backups"
    now = datetime.now(UTC)
    old = [(now - timedelta(days=days)).strftime("%Y%m%dT%H%M%SZ") for days in (1, 2, 3, 40)]
    left_over, under_way = ".partial-1", ".partial-2"
    for name in (*old, "20261128", "mine", left_over, under_way):
        (backups / name).mkdir(parents=True)
    os.utime(backups / left_over, (time.time() - 90_000,) * 2)
    assert (await told(here, str(backups), "--days", "30")).endswith(" 1 older was deleted.")
    kept = {path.name for path in backups.iterdir()}
    assert kept > {*old[:3], "20261128", "mine", under_way}
    assert not kept & {old[3], left_over}
    [newest] = kept - {*old, "20261128", "mine", under_way}
    (backups / newest).rename(backups / f"{newest}-first")
    assert (await told(here, str(backups), "--keep", "2")).endswith(" 2 older were deleted.")
    assert {path.name for path in backups.iterdir()} > {
        old[0],
        "20261128",
        "mine",
        under_way,
        f"{newest}-first",
    }


async def test_a_backup_that_fails_leaves_nothing_and_deletes_nothing(
    here: Path, tmp_path: Path
) -> None:
    backups = tmp_path / "backups"
    assert await refused(here, str(backups)) == f"Error: there is no folder {backups}"
    (backups / "20200101T000000Z").mkdir(parents=True)
    (here / "agent_config.json").rename(here / "moved.json")
    assert re.search(
        r"20\d{6}T\d{6}Z was not made: .*: No such file or directory$",
        await refused(here, str(backups), "--keep", "1"),
    )
    with closing(sqlite3.connect(here / "data" / "ai-agent-service.db")) as connection:
        connection.execute("DROP TABLE nodes").close()
    assert "it does not have the tables of this service" in await refused(
        here, str(backups), "--keep", "1"
    )
    assert (await refused(tmp_path, str(backups))).startswith(
        f"Error: there is no database sqlite:///{tmp_path}/data/ai-agent-service.db"
    )
    assert [path.name for path in backups.iterdir()] == ["20200101T000000Z"]
