"""Copies of an SQLite database: whole, single files, and put back without losing what was there."""

import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from ai_agent_service.maintenance.sqlite_backup import (
    BackupError,
    back_up,
    replace_database,
    stage_copy,
)
from ai_agent_service.storage.migrate import upgrade
from ai_agent_service.storage.sqlite import SqliteEngine
from ai_agent_service.storage.url import parse_database_url

NOW = "2026-11-24 12:00:00.000000"


@pytest.fixture
async def database(tmp_path: Path) -> Path:
    """A database with the tables of the service."""
    return await made(tmp_path / "data" / "conversations.db")


async def made(path: Path) -> Path:
    engine = SqliteEngine(parse_database_url(f"sqlite:///{path}"), timeout=5)
    await upgrade(engine)
    await engine.close()
    return path


def say(connection: sqlite3.Connection, session: int, texts: int = 1) -> None:
    """Adds a session with messages, in one transaction."""
    key = session.to_bytes(16, "big")
    with connection:
        connection.execute(
            "INSERT INTO sessions (key, tenant, user_id, agent_id, session_id, created_at,"
            " updated_at) VALUES (?, 't', 'u', 'a', ?, ?, ?)",
            (key, str(session), NOW, NOW),
        )
        connection.executemany(
            "INSERT INTO nodes (path, session_key, tenant, user_id, parent, depth, role, origin,"
            " status, body, created_at) VALUES (?, ?, 't', 'u', ?, 1, 'user', 'client', 'complete',"
            " ?, ?)",
            [
                (
                    (session * 1000 + number).to_bytes(16, "big"),
                    key,
                    key,
                    f'"text {session} {number}"',
                    NOW,
                )
                for number in range(texts)
            ],
        )


def add(path: Path, session: int, texts: int = 1) -> None:
    with closing(sqlite3.connect(path)) as connection:
        say(connection, session, texts)


def sessions_in(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [
            row[0]
            for row in connection.execute("SELECT session_id FROM sessions ORDER BY session_id")
        ]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def damage(path: Path) -> None:
    """Overwrites all pages but the first."""
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))


def restore(file: Path, database: Path) -> Path | None:
    with stage_copy(file, database) as copy:
        return replace_database(copy, database)


async def test_a_copy_is_one_file_for_its_owner_alone(database: Path, tmp_path: Path) -> None:
    add(database, 1, texts=3)
    folder = tmp_path / "copies"
    folder.mkdir()
    with closing(
        sqlite3.connect(database)
    ) as reader:  # so that the log is not merged into the file
        reader.execute("SELECT count(*) FROM nodes").close()
        add(database, 2)
        made = back_up(database, folder / "copy.db")
    assert (made.sessions, made.messages) == (2, 4)
    assert made.size == (folder / "copy.db").stat().st_size
    assert (folder / "copy.db").stat().st_mode & 0o777 == 0o600
    assert sessions_in(folder / "copy.db") == ["1", "2"]
    assert names_in(folder) == ["copy.db"]


async def test_a_copy_shows_one_moment_though_others_write(database: Path, tmp_path: Path) -> None:
    stop, written, failures = threading.Event(), threading.Semaphore(0), list[Exception]()

    def write() -> None:
        with closing(sqlite3.connect(database)) as connection:
            for session in range(100_000):
                if stop.is_set():
                    return
                try:
                    say(connection, session, texts=5)
                except sqlite3.Error as error:
                    failures.append(error)
                    return
                written.release()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        found = []
        for number in range(8):
            assert written.acquire(timeout=20)
            found.append(back_up(database, tmp_path / f"{number}.db"))
    finally:
        stop.set()
        writer.join(20)
    assert failures == []
    assert all(each.messages == 5 * each.sessions for each in found)
    assert found[0].sessions < found[-1].sessions


async def test_a_file_that_is_there_is_written_over_only_by_force(
    database: Path, tmp_path: Path
) -> None:
    file = tmp_path / "copy.db"
    add(database, 1)
    back_up(database, file)
    add(database, 2)
    with pytest.raises(BackupError, match=r"copy\.db is there already; .*--force"):
        back_up(database, file)
    assert sessions_in(file) == ["1"]
    stale = tmp_path / "copy.db-wal"
    stale.write_bytes(b"the log of another file")
    back_up(database, file, force=True)
    assert sessions_in(file) == ["1", "2"]
    assert not stale.exists()


async def test_a_database_that_is_damaged_does_not_replace_a_good_copy(
    database: Path, tmp_path: Path
) -> None:
    file = tmp_path / "copy.db"
    add(database, 1)
    back_up(database, file)
    damage(database)
    with pytest.raises(BackupError, match=r"copy\.db was not written: "):
        back_up(database, file, force=True)
    assert sessions_in(file) == ["1"]
    assert names_in(tmp_path) == ["copy.db", "data"]


async def test_a_copy_that_was_cut_off_earlier_is_in_nobodys_way(
    database: Path, tmp_path: Path
) -> None:
    (tmp_path / "copy.db.partial").write_bytes(b"half a co")
    (tmp_path / "copy.db.partial-journal").write_bytes(b"py")
    add(database, 1)
    back_up(database, tmp_path / "copy.db")
    assert sessions_in(tmp_path / "copy.db") == ["1"]
    assert names_in(tmp_path) == ["copy.db", "data"]


async def test_the_database_itself_is_never_taken_for_its_copy(
    database: Path, tmp_path: Path
) -> None:
    add(database, 1)
    link = tmp_path / "link.db"
    link.symlink_to(database)
    for file in (database, link):
        with pytest.raises(BackupError, match="is the database itself"):
            back_up(database, file, force=True)
        with pytest.raises(BackupError, match="is the database itself"):
            restore(file, database)
    assert sessions_in(database) == ["1"]


@pytest.mark.parametrize("place", ["absent/copy.db", "data"])
async def test_a_place_that_cannot_be_written_to_is_told(
    database: Path, tmp_path: Path, place: str
) -> None:
    with pytest.raises(BackupError, match=r"there is no folder .*absent|data is a folder"):
        back_up(database, tmp_path / place)


async def test_what_was_there_before_is_kept(database: Path, tmp_path: Path) -> None:
    add(database, 1)
    back_up(database, tmp_path / "copy.db")
    add(database, 2)
    kept = restore(tmp_path / "copy.db", database)
    assert kept is not None
    assert kept.parent == database.parent
    assert kept.name.startswith("conversations.db.before-restore-2")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert (sessions_in(database), sessions_in(kept)) == (["1"], ["1", "2"])
    assert names_in(database.parent) == ["conversations.db", kept.name]


async def test_a_connection_that_is_open_meanwhile_goes_on_with_what_was_restored(
    database: Path, tmp_path: Path
) -> None:
    back_up(database, tmp_path / "copy.db")
    with closing(sqlite3.connect(database)) as connection:
        say(connection, 1)
        restore(tmp_path / "copy.db", database)
        assert connection.execute("SELECT count(*) FROM nodes").fetchone() == (0,)
        say(connection, 2)
    assert sessions_in(database) == ["2"]


async def test_a_place_without_a_database_gets_one(database: Path, tmp_path: Path) -> None:
    add(database, 1)
    back_up(database, tmp_path / "copy.db")
    elsewhere = tmp_path / "new" / "folder" / "conversations.db"
    assert restore(tmp_path / "copy.db", elsewhere) is None
    assert sessions_in(elsewhere) == ["1"]
    assert names_in(elsewhere.parent) == ["conversations.db"]


def _write_junk(path: Path) -> None:
    path.write_bytes(b"This is no database. " * 1000)


@pytest.mark.parametrize("spoil", [damage, _write_junk])
async def test_a_damaged_database_is_kept_as_it_is(
    database: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    add(database, 1)
    back_up(database, tmp_path / "copy.db")
    spoil(database)
    spoilt = database.read_bytes()
    log = database.with_name("conversations.db-wal")
    log.write_bytes(b"the log of a process that was killed")
    kept = restore(tmp_path / "copy.db", database)
    assert kept is not None
    assert kept.read_bytes()[4096:] == spoilt[4096:]  # the first page tells how often it was opened
    assert sessions_in(database) == ["1"]


async def test_a_copy_made_by_hand_counts_with_its_log(database: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        say(connection, 1)
        for suffix in ("", "-wal"):
            shutil.copy(f"{database}{suffix}", f"{tmp_path}/by-hand.db{suffix}")
    restore(tmp_path / "by-hand.db", elsewhere := tmp_path / "new.db")
    assert sessions_in(elsewhere) == ["1"]


def _not_there(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _of_another_program(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)").close()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_not_there, r"there is no file .*copy\.db"),
        (_empty, r"copy\.db cannot be restored: it does not have the tables of this service"),
        (
            _of_another_program,
            r"copy\.db cannot be restored: it does not have the tables of this service",
        ),
        (_write_junk, r"copy\.db cannot be restored: file is not a database"),
        (damage, r"copy\.db cannot be restored: "),
    ],
)
async def test_what_is_no_good_backup_changes_nothing(
    database: Path, tmp_path: Path, spoil: Callable[[Path], None], told: str
) -> None:
    back_up(database, tmp_path / "copy.db")
    spoil(tmp_path / "copy.db")
    add(database, 1)
    with pytest.raises(BackupError, match=told):
        restore(tmp_path / "copy.db", database)
    assert sessions_in(database) == ["1"]
    assert names_in(database.parent) == ["conversations.db"]


async def test_processes_that_were_there_when_a_backup_was_made_are_not_there_when_it_is_restored(
    database: Path, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("INSERT INTO processes VALUES ('p', 'h', ?, ?)", (NOW, NOW)).close()
    back_up(database, tmp_path / "copy.db")
    restore(tmp_path / "copy.db", database)
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM processes").fetchone() == (0,)
