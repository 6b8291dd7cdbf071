"""Copies an SQLite database to a file and back."""

import os
import sqlite3
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

PARTIAL_SUFFIX = ".partial"
BUSY_TIMEOUT_SECONDS = 30.0
"""How long a copy waits for a database that somebody else has for themselves."""

_SIDECAR_SUFFIXES = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a file, and would take for the new file's own if that came in the old
one's place."""

_DAMAGE_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class BackupError(Exception):
    """A backup was not made, or not restored; the text says why, for the operator."""


class Backup(msgspec.Struct, frozen=True):
    """What a copy holds."""

    sessions: int
    messages: int
    size: int
    """In bytes."""

    def __str__(self) -> str:
        return (
            f"{self.sessions:,} conversations, {self.messages:,} messages,"
            f" {self.size / 1_000_000:,.1f} MB"
        )


def back_up(database: Path, file: Path, *, force: bool = False) -> Backup:
    """Copies the SQLite database to `file`, whole and as it is at one moment, while others read and
    write it.

    `file` appears once its copy was checked; it is a single file that only its owner may read.
    Raises BackupError, also if there is such a file and not `force`.
    """
    if file.exists() and file.samefile(database):
        raise BackupError(f"{file} is the database itself")
    with write_atomically(file, force=force) as partial:
        _copy(database, partial)
        return _verify_copy(partial)


@contextmanager
def write_atomically(file: Path, *, force: bool = False) -> Generator[Path, None, None]:
    """An empty file to write, which only its owner may read, and which becomes `file` at the end if
    nothing fails.

    Raises BackupError, also for errors of SQLite and of files within, and if there is a `file`
    already and not `force`.
    """
    _check_target(file, force=force)
    partial = file.with_name(file.name + PARTIAL_SUFFIX)
    with wrap_errors(f"{file} was not written"), _create_file(partial) as ours:
        yield partial
        if not _is_same_file(partial, ours):
            raise BackupError("another backup to the same file began meanwhile")
        sync(partial)
        _delete_sidecars(file)
        partial.replace(file)
        sync(file.parent)


@contextmanager
def stage_copy(file: Path, database: Path) -> Generator[Path, None, None]:
    """A copy of the backup `file`, checked, in the folder of `database`; it is deleted at the end.
    Raises BackupError."""
    if not file.is_file():
        raise BackupError(f"there is no file {file}")
    if database.exists() and file.samefile(database):
        raise BackupError(f"{file} is the database itself")
    copy = database.with_name(f"{database.name}.restoring-{os.getpid()}")
    with ExitStack() as made:
        with wrap_errors(f"{file} cannot be restored"):
            database.parent.mkdir(parents=True, exist_ok=True)
            made.enter_context(_create_file(copy))
            _copy(file, copy, read_only=True)
            _verify_copy(copy)
            with closing(_connect(copy)) as connection:
                # Those that were there when the backup was made are not there now.
                connection.execute("DELETE FROM processes")
                connection.commit()
        yield copy


def replace_database(copy: Path, database: Path) -> Path | None:
    """Writes the content of `copy` into the database, in one transaction; gives the file that keeps
    what was there before, if anything.

    Raises BackupError.
    """
    with wrap_errors(f"{database} was not replaced"):
        if not database.exists():
            with _create_file(database, keep=True):
                _copy(copy, database)
            return None
        kept = database.with_name(
            f"{database.name}.before-restore-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
        )
        try:
            with _create_file(kept, keep=True):
                _copy(database, kept)
            _copy(copy, database)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            # What is damaged can be neither copied nor written over, so it is moved.
            _move_database(database, kept)
            with _create_file(database, keep=True):
                _copy(copy, database)
    return kept


def sync(path: Path) -> None:
    """Has a file or a folder be on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def wrap_errors(what: str) -> Generator[None, None, None]:
    """Has errors of SQLite and of files say what was meant to be done."""
    try:
        yield
    except BackupError as error:
        raise BackupError(f"{what}: {error}") from None
    except (sqlite3.Error, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BackupError(f"{what}: {reason}") from error


def _check_target(file: Path, *, force: bool) -> None:
    if not file.parent.is_dir():
        raise BackupError(f"there is no folder {file.parent}")
    if file.is_dir():
        raise BackupError(f"{file} is a folder; name a file")
    there = next((each for each in (file, *_list_sidecars(file)) if each.exists()), None)
    if there is not None and not force:
        raise BackupError(
            f"{there} is there already; name another file, or write over it with --force"
        )


def _connect(path: Path, mode: str = "rw") -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True)


def _copy(source: Path, target: Path, *, read_only: bool = False) -> None:
    with (
        closing(_connect(source, "ro" if read_only else "rw")) as connection,
        closing(_connect(target)) as copy,
    ):
        # All pages in one step: a copy in several begins anew whenever somebody writes between
        # them.
        connection.backup(copy, pages=-1, progress=_build_copy_timeout(), sleep=0.05)


def _build_copy_timeout() -> Callable[[int, int, int], None]:
    """Ends a copy that is kept waiting for too long, which would else wait for ever."""
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS

    def check_deadline(status: int, _: int, __: int) -> None:
        if status != sqlite3.SQLITE_DONE and time.monotonic() > deadline:
            raise sqlite3.OperationalError("database is locked")

    return check_deadline


def _verify_copy(path: Path) -> Backup:
    """What the copy holds, once it was found to be whole and ours; it is made a single file."""
    with closing(_connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE").close()
        [[verdict]] = connection.execute("PRAGMA integrity_check(1)").fetchall()
        if verdict != "ok":
            raise BackupError(f"the copy is damaged: {verdict.splitlines()[-1]}")
        try:
            connection.execute("SELECT version_num FROM alembic_version").close()
            sessions, messages = connection.execute(
                "SELECT (SELECT count(*) FROM sessions), (SELECT count(*) FROM nodes)"
            ).fetchone()
        except sqlite3.OperationalError:
            raise BackupError("it does not have the tables of this service") from None
    return Backup(sessions, messages, path.stat().st_size)


@contextmanager
def _create_file(path: Path, *, keep: bool = False) -> Generator[int, None, None]:
    """An empty file that only its owner may read; gives its number. It is deleted at the end,
    unless `keep` and what is done succeeds.

    What is not to be kept may be left over from an earlier time, and is written over.
    """
    if not keep:
        path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    number = os.fstat(descriptor).st_ino
    os.close(descriptor)
    _delete_sidecars(path)
    succeeded = False
    try:
        yield number
        succeeded = True
    finally:
        if not (keep and succeeded) and _is_same_file(path, number):
            path.unlink()
            _delete_sidecars(path)


def _is_same_file(path: Path, number: int) -> bool:
    return path.exists() and path.stat().st_ino == number


def _move_database(database: Path, kept: Path) -> None:
    for suffix in ("", *_SIDECAR_SUFFIXES):
        each = database.with_name(database.name + suffix)
        if each.exists():
            each.replace(kept.with_name(kept.name + suffix))


def _list_sidecars(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in _SIDECAR_SUFFIXES]


def _delete_sidecars(path: Path) -> None:
    for each in _list_sidecars(path):
        each.unlink(missing_ok=True)


def _is_damage(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE_CODES
