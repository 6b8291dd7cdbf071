"""ai-agent-service backup: the database and the configuration, together, as an operator's timer
runs it."""

import os
import re
import shutil
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from ai_agent_service.cli.database_target import back_up_target, read_target, require_existing
from ai_agent_service.cli.streams import echo
from ai_agent_service.maintenance.config_archive import pack
from ai_agent_service.maintenance.sqlite_backup import (
    BackupError,
    sync,
    wrap_errors,
    write_atomically,
)
from ai_agent_service.observability.logging import configure_logging

ARCHIVE = "config-backup.tar.gz"
_PARTIAL = ".partial-"
_STALE_PARTIAL_SECONDS = 86_400
_NAME_FORMAT = "%Y%m%dT%H%M%SZ"
_NAME_PATTERN = re.compile(r"\d{8}T\d{6}Z")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--keep",
    type=click.IntRange(1),
    metavar="N",
    help="Then delete all backups in FOLDER but the newest N.",
)
@click.option(
    "--days",
    type=click.FloatRange(0, 36_500, min_open=True),
    metavar="N",
    help="Then delete those older than N days.",
)
def backup(folder: Path, keep: int | None, days: float | None) -> None:
    """Back up database and configuration to a new folder in FOLDER, named by the time (UTC), while
    the service runs."""
    configure_logging("CRITICAL")
    target = require_existing(read_target())
    if not folder.is_dir():
        raise click.ClickException(f"there is no folder {folder}")
    began = datetime.now(UTC)
    made = folder / began.strftime(_NAME_FORMAT)
    try:
        with wrap_errors(f"{made} was not made"):
            partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=folder))
            try:
                suffix = "db" if target.address.kind == "sqlite" else "sql"
                found = back_up_target(target, partial / f"conversations.{suffix}")
                with write_atomically(partial / ARCHIVE) as archive, archive.open("wb") as file:
                    names = pack(target.settings, file, without=[folder])
                sync(partial)
                partial.rename(made)
                sync(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        deleted = _delete_old(
            folder, made.name, keep, None if days is None else began - timedelta(days=days)
        )
    except BackupError as error:
        raise click.ClickException(str(error)) from error
    older = f" {deleted} older {'was' if deleted == 1 else 'were'} deleted." if deleted else ""
    echo(f"{made} was made: {found} of {target.shown}, and {', '.join(names)}.{older}")


def _delete_old(folder: Path, newest: str, keep: int | None, since: datetime | None) -> int:
    """Deletes backups that are not to be kept, and what backups that were cut off left over; gives
    how many backups those were."""
    with wrap_errors("the backup was made, but old ones were not deleted"):
        for each in folder.glob(f"{_PARTIAL}*"):
            if time.time() - each.stat().st_mtime > _STALE_PARTIAL_SECONDS:
                shutil.rmtree(each)
        names = sorted(
            (
                each.name
                for each in os.scandir(folder)
                if each.is_dir() and _NAME_PATTERN.fullmatch(each.name)
            ),
            reverse=True,
        )
        oldest = "" if since is None else since.strftime(_NAME_FORMAT)
        old = [
            name
            for place, name in enumerate(names)
            if name != newest and (place >= (keep or len(names)) or name < oldest)
        ]
        for name in old:
            shutil.rmtree(folder / name)
    return len(old)
