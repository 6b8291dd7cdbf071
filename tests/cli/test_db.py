"""The operator's commands on the database, over conversations that the service really had."""

import asyncio
import os
import re
import secrets
import socket
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from ai_agent_service.cli.db import db
from ai_agent_service.server.application import create_app
from ai_agent_service.storage.migrate import HEAD_REVISION
from tests.support import commands
from tests.support.commands import Done, invoke
from tests.support.fake_provider import Script, calls, says
from tests.support.postgres import PASSWORD, QUOTED, PostgresServer, binaries_18
from tests.support.processes import Terminal
from tests.support.service import AGENT, configuration, open_client

HELPER = {**AGENT, "resources": ["memory"]}
OLD, NEW = secrets.token_hex(32), secrets.token_hex(32)
NOW_OF_SQLITE = "SELECT strftime('%Y-%m-%d %H:%M:%f', 'now') || '000'"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The database that is there by default."""
    return tmp_path / "data" / "ai-agent-service.db"


async def command(folder: Path, *arguments: str, **environment: str) -> Done:
    """What `ai-agent-service db` comes to."""
    return await commands.command(db, folder, *arguments, **environment)


async def succeeds(folder: Path, *arguments: str, **environment: str) -> str:
    """What the command says, in one line."""
    done = await command(folder, *arguments, **environment)
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    return done.stdout.strip()


async def fails(folder: Path, *arguments: str, **environment: str) -> str:
    """Why the command fails, in one line."""
    done = await command(folder, *arguments, **environment)
    assert (done.code, done.stdout) == (1, "")
    assert re.fullmatch(r"Error: .*\n", done.stderr)
    return done.stderr.strip()


@asynccontextmanager
async def serving(folder: Path, **settings: Any) -> AsyncGenerator[httpx2.AsyncClient, None]:
    """A client of the service, with its own configuration in `folder`."""
    folder.mkdir(exist_ok=True)
    script = Script(
        calls(("calculate", {"expression": "6*7"})), says("It is 42."), says("You are welcome.")
    )
    async with open_client(
        create_app(configuration(folder, script, agents=[HELPER], **settings))
    ) as client:
        yield client


async def talk(client: httpx2.AsyncClient, user: str = "ann", session: str = "monday") -> None:
    """Two turns, the first with a tool."""
    for message in ("What is 6*7?", "Thank you."):
        asked = {"message": message, "session_id": session, "user_id": user}
        answer = await client.post("/agents/helper/chat", json=asked)
        assert answer.status_code == 200, answer.text


async def everything(client: httpx2.AsyncClient, user: str = "ann") -> list[Any]:
    """All that is remembered of a user."""
    found = await client.get("/memory", params={"user_id": user})
    assert found.status_code == 200, found.text
    return [msgspec.json.decode(line) for line in found.content.splitlines()]


async def talked(folder: Path, *users: str, **settings: Any) -> list[Any]:
    """All that is remembered of the first of `users` once each of them has talked."""
    async with serving(folder, **settings) as client:
        for user in users or ("ann",):
            await talk(client, user)
        found = await everything(client, users[0] if users else "ann")
    assert [message["role"] for message in found[0]["messages"]] == ["user", "assistant"] * 2
    assert found[0]["messages"][1]["tool_calls"][0]["result"] == "42"
    return found


async def remembered(folder: Path, **settings: Any) -> list[Any]:
    """All that the service finds of ann."""
    async with serving(folder, **settings) as client:
        return await everything(client)


def changed(file: Path, statement: str) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(statement).close()


# upgrade, current, check


async def test_upgrade_makes_the_tables_once(tmp_path: Path, file: Path) -> None:
    shown = f"sqlite:///{file}"
    assert (
        await succeeds(tmp_path, "upgrade")
        == f"The tables of {shown} were made, with the revision {HEAD_REVISION}."
    )
    assert (
        await succeeds(tmp_path, "upgrade")
        == f"The tables of {shown} have the revision {HEAD_REVISION} already."
    )
    assert await succeeds(tmp_path, "current") == f"revision {HEAD_REVISION}, sqlite, {shown}"
    assert (
        await succeeds(tmp_path, "check")
        == f"{shown} can be used; its tables have the revision {HEAD_REVISION}."
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["current"],
        ["check"],
        ["backup", "copy.db"],
        ["reencrypt", "--plain"],
        ["erase", "--user", "ann"],
    ],
)
async def test_a_database_that_is_not_there_is_told_and_not_made(
    tmp_path: Path, file: Path, arguments: list[str]
) -> None:
    told = await fails(tmp_path, *arguments)
    assert told.startswith(f"Error: there is no database sqlite:///{file}; ")
    assert told.endswith("ai-agent-service db upgrade")
    assert list(tmp_path.iterdir()) == []


async def test_a_database_without_our_tables_cannot_be_used(tmp_path: Path, file: Path) -> None:
    file.parent.mkdir()
    changed(file, "CREATE TABLE songs (title TEXT)")
    assert await succeeds(tmp_path, "current") == f"revision none, sqlite, sqlite:///{file}"
    problem = (
        f"Error: sqlite:///{file} cannot be used: its tables have the revision none, not"
        f" {HEAD_REVISION}; run: ai-agent-service db upgrade"
    )
    for arguments in (["check"], ["reencrypt", "--plain"], ["erase", "--user", "ann", "--yes"]):
        assert await fails(tmp_path, *arguments) == problem
    assert "it does not have the tables of this service" in await fails(
        tmp_path, "backup", str(tmp_path / "copy.db")
    )


async def test_tables_of_a_newer_version_are_told(tmp_path: Path, file: Path) -> None:
    await succeeds(tmp_path, "upgrade")
    changed(file, "UPDATE alembic_version SET version_num = '9999'")
    assert (
        f"'9999', which this version (at {HEAD_REVISION!r}) does not know: this program is"
        in await fails(tmp_path, "upgrade")
    )
    told = await fails(tmp_path, "check")
    assert "this program is older than the tables" in told
    assert "db upgrade" not in told


async def test_a_file_that_is_no_database_is_told(tmp_path: Path, file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(b"This is no database. " * 500)
    for name in ("upgrade", "current", "check"):
        assert (
            await fails(tmp_path, name)
            == f"Error: sqlite:///{file} cannot be used: DatabaseError: file is not a database"
        )


async def test_a_server_that_refuses_is_told_without_its_password(tmp_path: Path) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        url = f"postgresql://ann:hidden-word@127.0.0.1:{nobody_listens.getsockname()[1]}/chats"
        for arguments in (["upgrade"], ["current"], ["check"], ["erase", "--user", "ann", "--yes"]):
            told = await fails(tmp_path, *arguments, DATABASE_URL=url)
            assert told.startswith("Error: postgresql://ann:***@127.0.0.1:")
            assert "cannot be used: ConnectionRefusedError" in told


async def test_a_key_that_is_lacking_fails_the_check(tmp_path: Path) -> None:
    await talked(tmp_path, memory_encryption_keys=OLD)
    assert "can be used" in await succeeds(tmp_path, "check", MEMORY_ENCRYPTION_KEYS=f"{NEW},{OLD}")
    for keys in (NEW, ""):
        assert "which MEMORY_ENCRYPTION_KEYS lacks" in await fails(
            tmp_path, "check", MEMORY_ENCRYPTION_KEYS=keys
        )


def test_faults_of_the_settings_end_with_code_2_and_all_of_them_readable(tmp_path: Path) -> None:
    wrong = {
        "DATABASE_URL": "mysql://ann:hidden-word@x",
        "MEMORY_ENCRYPTION_KEYS": "hidden-word",
        "DATABASE_TIMEOUT": "soon",
    }
    done = invoke(tmp_path, "db", "check", **wrong)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert lines[0] == "The configuration has 3 faults:"
    assert [line.split(": ")[1] for line in lines[1:]] == [
        "DATABASE_TIMEOUT",
        "DATABASE_URL",
        "MEMORY_ENCRYPTION_KEYS",
    ]
    assert "hidden-word" not in done.stderr


# backup, restore


async def test_a_backup_of_a_running_service_holds_every_message(tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    async with serving(tmp_path) as client:
        await talk(client)
        told = await everything(client)
        said = await succeeds(tmp_path, "backup", str(copy))
        await talk(client, session="tuesday")
    assert f"was backed up to {copy}: 1 conversations, 4 messages, 0.1 MB." in said
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert (
        await succeeds(elsewhere, "restore", str(copy))
        == f"sqlite:///{elsewhere}/data/ai-agent-service.db was restored from {copy}."
    )
    assert await remembered(elsewhere) == told
    async with serving(elsewhere) as client:
        await talk(client)
        [found] = await everything(client)
    assert len(found["messages"]) == 8


async def test_a_backup_that_is_there_is_written_over_only_by_force(tmp_path: Path) -> None:
    await talked(tmp_path)
    copy = str(tmp_path / "copy.db")
    await succeeds(tmp_path, "backup", copy)
    assert f"{copy} is there already" in await fails(tmp_path, "backup", copy)
    await succeeds(tmp_path, "backup", copy, "--force")


async def test_a_restored_backup_replaces_what_was_there_which_is_kept(
    tmp_path: Path, file: Path
) -> None:
    copy = str(tmp_path / "copy.db")
    told = await talked(tmp_path)
    await succeeds(tmp_path, "backup", copy)
    await talked(tmp_path, "bob")
    said = await succeeds(tmp_path, "restore", copy)
    assert await remembered(tmp_path) == told
    kept = said.removesuffix(".").split("What was there before is in ")[1]
    assert Path(kept).parent == file.parent
    await succeeds(tmp_path, "restore", kept)
    async with serving(tmp_path) as client:
        assert (await everything(client), len(await everything(client, "bob"))) == (told, 1)


async def test_a_database_that_is_in_use_is_replaced_only_by_force(
    tmp_path: Path, file: Path
) -> None:
    copy = str(tmp_path / "copy.db")
    async with serving(tmp_path) as client:
        await talk(client)
        told = await everything(client)
        await succeeds(tmp_path, "backup", copy)
        await talk(client, session="tuesday")
        refused = await fails(tmp_path, "restore", copy)
        assert (
            f"sqlite:///{file} is in use. Stop the service first"
            f" ({socket.gethostname()}:{os.getpid()}:" in refused
        )
        assert "--force" in refused
        assert len(await everything(client)) == 2
        assert (await succeeds(tmp_path, "restore", copy, "--force")).endswith(
            " Restart the service."
        )
        assert await everything(client) == told
    assert "was restored" in await succeeds(tmp_path, "restore", copy)


async def test_a_process_that_was_killed_is_waited_for_no_longer_than_20_seconds(
    tmp_path: Path, file: Path
) -> None:
    copy = str(tmp_path / "copy.db")
    await talked(tmp_path)
    await succeeds(tmp_path, "backup", copy)
    changed(
        file, f"INSERT INTO processes SELECT 'killed', 'h', now, now FROM ({NOW_OF_SQLITE} AS now)"
    )
    assert "Stop the service first (killed; " in await fails(tmp_path, "restore", copy)
    changed(file, "UPDATE processes SET seen_at = datetime(seen_at, '-21 seconds') || '.000000'")
    await succeeds(tmp_path, "restore", copy)


async def test_a_damaged_database_is_replaced_by_force(tmp_path: Path, file: Path) -> None:
    copy = str(tmp_path / "copy.db")
    told = await talked(tmp_path)
    await succeeds(tmp_path, "backup", copy)
    file.write_bytes(b"This is no database. " * 500)
    assert (
        "so it cannot be told whether a service uses it; stop that, and repeat this with --force"
        in await fails(tmp_path, "restore", copy)
    )
    await succeeds(tmp_path, "restore", copy, "--force")
    assert await remembered(tmp_path) == told


async def test_a_backup_that_this_version_cannot_use_changes_nothing(tmp_path: Path) -> None:
    newer, sealed, junk = (tmp_path / name for name in ("newer.db", "sealed.db", "junk.db"))
    await talked(tmp_path / "other", memory_encryption_keys=OLD)
    await succeeds(tmp_path / "other", "backup", str(newer))
    await succeeds(tmp_path / "other", "backup", str(sealed))
    changed(newer, "UPDATE alembic_version SET version_num = '9999'")
    junk.write_bytes(b"This is no database. " * 500)
    told = await talked(tmp_path)
    assert f"{newer} cannot be used: its tables have the revision '9999'" in await fails(
        tmp_path, "restore", str(newer)
    )
    refused = await fails(tmp_path, "restore", str(sealed))
    assert f"{sealed} cannot be used: An encrypted value needs the key with the id " in refused
    assert "--force" in refused
    assert f"{junk} cannot be restored: file is not a database" in await fails(
        tmp_path, "restore", str(junk)
    )
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["ai-agent-service.db"]
    assert await remembered(tmp_path) == told


# PostgreSQL


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """pg_dump and psql are those of PostgreSQL 18."""
    monkeypatch.setenv("PATH", f"{binaries_18()}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("programs")
async def test_a_dump_of_a_running_service_is_restored_in_its_place_and_elsewhere(
    tmp_path: Path, postgres_18: PostgresServer
) -> None:
    one, two = (postgres_18.url(postgres_18.new_database()) for _ in range(2))
    dump, shown = tmp_path / "a backup.sql", one.replace(QUOTED, "***")
    async with serving(tmp_path, database_url=one) as client:
        await talk(client)
        told = await everything(client)
        said = await succeeds(tmp_path, "backup", str(dump), DATABASE_URL=one)
        assert (
            said == f"{shown} was backed up to {dump}: 1 conversations, 4 messages,"
            f" {dump.stat().st_size / 1e6:.1f} MB."
        )
        assert dump.stat().st_mode & 0o777 == 0o600
        assert f"{dump} is there already" in await fails(
            tmp_path, "backup", str(dump), DATABASE_URL=one
        )
        await talk(client, session="tuesday")
        assert "is in use. Stop the service first" in await fails(
            tmp_path, "restore", str(dump), DATABASE_URL=one
        )
        assert len(await everything(client)) == 2
    said = await succeeds(tmp_path, "restore", str(dump), DATABASE_URL=one)
    kept = said.removesuffix(".").split(
        f"{shown} was restored from {dump}. What was there before is in "
    )[1]
    assert Path(kept).parent == tmp_path / "data"
    assert await remembered(tmp_path, database_url=one) == told
    assert (await succeeds(tmp_path, "restore", str(dump), DATABASE_URL=two)).endswith(
        f"was restored from {dump}."
    )
    assert "can be used" in await succeeds(tmp_path, "check", DATABASE_URL=two)
    async with serving(tmp_path, database_url=two) as client:
        assert await everything(client) == told
        await talk(client)
        assert len((await everything(client))[0]["messages"]) == 8
    await succeeds(tmp_path, "restore", kept, DATABASE_URL=two)
    assert len(await remembered(tmp_path, database_url=two)) == 2


async def test_the_plainest_dump_can_be_restored_and_restores_by_psql(
    tmp_path: Path, postgres_18: PostgresServer
) -> None:
    one, two = postgres_18.new_database(), postgres_18.new_database()
    told = await talked(tmp_path, database_url=postgres_18.url(one))
    plain = postgres_18.program("pg_dump", "-d", postgres_18.url(one))
    postgres_18.program("psql", "-q", "-d", postgres_18.url(two), text=plain)
    assert await remembered(tmp_path, database_url=postgres_18.url(two)) == told
    (tmp_path / "backup.sql").write_text(plain, encoding="utf-8")
    search = f"{binaries_18()}{os.pathsep}{os.environ['PATH']}"
    for name in (one, postgres_18.new_database()):
        await succeeds(
            tmp_path,
            "restore",
            str(tmp_path / "backup.sql"),
            DATABASE_URL=postgres_18.url(name),
            PATH=search,
        )
        assert await remembered(tmp_path, database_url=postgres_18.url(name)) == told


@pytest.mark.usefixtures("programs")
async def test_a_dump_that_cannot_be_used_changes_nothing(
    tmp_path: Path, postgres_18: PostgresServer
) -> None:
    url = postgres_18.url(postgres_18.new_database())
    dump = tmp_path / "backup.sql"
    told = await talked(tmp_path, database_url=url, memory_encryption_keys=OLD)
    here = {"DATABASE_URL": url, "MEMORY_ENCRYPTION_KEYS": OLD}
    await succeeds(tmp_path, "backup", str(dump), **here)
    whole = dump.read_text(encoding="utf-8")
    refused = await fails(
        tmp_path, "restore", str(dump), DATABASE_URL=url, MEMORY_ENCRYPTION_KEYS=NEW
    )
    assert f"{dump} cannot be used: An encrypted value needs the key with the id " in refused
    assert "--force" in refused
    for spoilt, reason in (
        (whole[: whole.index("COPY public.nodes") + 200], "or was cut off"),
        (whole.replace("\n0002\n", "\n9999\n"), "its tables have the revision '9999'"),
        (
            whole.replace("ADD CONSTRAINT", "ADD CONSTRAIN"),
            "was not restored, and nothing was changed: psql:",
        ),
    ):
        assert spoilt != whole
        dump.write_text(spoilt, encoding="utf-8")
        assert reason in await fails(tmp_path, "restore", str(dump), **here)
    assert await remembered(tmp_path, database_url=url, memory_encryption_keys=OLD) == told
    empty = postgres_18.url(postgres_18.new_database())
    refused = await fails(tmp_path, "restore", str(dump), **{**here, "DATABASE_URL": empty})
    assert re.search(r"nothing was changed: psql:.*: ERROR: +syntax error at or near", refused)


async def test_why_a_database_was_not_dumped_is_told_in_one_line_and_nothing_is_left(
    tmp_path: Path, postgres_18: PostgresServer
) -> None:
    url = postgres_18.url("absent")
    assert "pg_dump is not installed here" in await fails(
        tmp_path, "backup", str(tmp_path / "x.sql"), DATABASE_URL=url, PATH=str(tmp_path)
    )
    refused = await fails(
        tmp_path, "backup", str(tmp_path / "x.sql"), DATABASE_URL=url, PATH=str(binaries_18())
    )
    assert 'database "absent" does not exist' in refused
    assert PASSWORD not in refused
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("programs")
async def test_what_else_is_in_the_database_is_neither_dumped_nor_set_back(
    tmp_path: Path, postgres_18: PostgresServer
) -> None:
    name = postgres_18.new_database()
    url, dump = postgres_18.url(name), tmp_path / "backup.sql"
    told = await talked(tmp_path, database_url=url)
    postgres_18.sql(
        "CREATE SCHEMA crm; CREATE TABLE crm.alembic_version AS SELECT 'theirs'; CREATE TABLE"
        " crm.sessions AS SELECT 1",
        name,
    )
    await succeeds(tmp_path, "backup", str(dump), DATABASE_URL=url)
    assert "crm" not in dump.read_text(encoding="utf-8")
    postgres_18.sql("INSERT INTO crm.sessions VALUES (2)", name)
    await succeeds(tmp_path, "restore", str(dump), DATABASE_URL=url)
    assert postgres_18.sql("SELECT count(*) FROM crm.sessions", name) == "2"
    assert await remembered(tmp_path, database_url=url) == told


@pytest.mark.usefixtures("programs")
async def test_tables_of_another_program_are_replaced_only_by_force_which_is_told(
    tmp_path: Path, postgres_18: PostgresServer
) -> None:
    one, two = postgres_18.new_database(), postgres_18.new_database()
    dump = str(tmp_path / "backup.sql")
    told = await talked(tmp_path, database_url=postgres_18.url(one))
    await succeeds(tmp_path, "backup", dump, DATABASE_URL=postgres_18.url(one))
    postgres_18.sql("CREATE TABLE sessions AS SELECT 1", two)
    refused = await fails(tmp_path, "restore", dump, DATABASE_URL=postgres_18.url(two))
    assert (
        "was not replaced: its tables sessions are in the way, and seem to be those of another"
        " program" in refused
    )
    assert postgres_18.sql("SELECT count(*) FROM sessions", two) == "1"
    forced = await command(tmp_path, "restore", dump, "--force", DATABASE_URL=postgres_18.url(two))
    assert forced.code == 0
    assert forced.stderr.startswith("What is there is not kept: ")
    assert await remembered(tmp_path, database_url=postgres_18.url(two)) == told


# reencrypt


async def test_a_key_is_replaced_step_by_step(tmp_path: Path, file: Path) -> None:
    told = await talked(tmp_path)
    assert "MEMORY_ENCRYPTION_KEYS is not set" in await fails(tmp_path, "reencrypt")
    async with serving(tmp_path, memory_encryption_keys=OLD) as client:
        said = await succeeds(tmp_path, "reencrypt", MEMORY_ENCRYPTION_KEYS=OLD)
        assert said == "6 values were encrypted with the newest key; 0 were under it already."
        assert await everything(client) == told
    assert b"6*7" not in file.read_bytes()
    await succeeds(tmp_path, "reencrypt", MEMORY_ENCRYPTION_KEYS=f"{NEW},{OLD}")
    said = await succeeds(tmp_path, "reencrypt", MEMORY_ENCRYPTION_KEYS=NEW)
    assert said == "0 values were encrypted with the newest key; 6 were under it already."
    assert await remembered(tmp_path, memory_encryption_keys=NEW) == told
    assert (
        await succeeds(tmp_path, "reencrypt", "--plain", MEMORY_ENCRYPTION_KEYS=NEW)
        == "6 values were decrypted; 0 were in the clear already."
    )
    assert await remembered(tmp_path) == told


async def test_values_whose_key_is_lacking_are_counted_and_fail_the_command(tmp_path: Path) -> None:
    await talked(tmp_path, memory_encryption_keys=OLD)
    for arguments in (["reencrypt"], ["reencrypt", "--plain"]):
        done = await command(tmp_path, *arguments, MEMORY_ENCRYPTION_KEYS=NEW)
        assert done.code == 1
        assert done.stdout.startswith("0 values were ")
        assert re.fullmatch(
            r"Error: 6 values could not be read and stay as they are\. 6 times: An encrypted value"
            r" needs the key with the id"
            r" [0-9a-f]{8}, which MEMORY_ENCRYPTION_KEYS lacks\.\n",
            done.stderr,
        )


async def test_a_terminal_is_shown_how_far_it_is(tmp_path: Path) -> None:
    await talked(tmp_path)
    terminal = Terminal(tmp_path, "db", "reencrypt", "--plain")
    for text in (
        "Decrypting",
        "0/5",
        "5/5",
        "0 values were decrypted; 6 were in the clear already.",
    ):
        await asyncio.to_thread(terminal.wait_for, text)
    assert await asyncio.to_thread(terminal.end) == 0


async def test_nothing_is_decrypted_for_good_while_a_service_would_encrypt_what_follows(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, memory_encryption_keys=OLD) as client:
        await talk(client)
        told = await fails(tmp_path, "reencrypt", "--plain", MEMORY_ENCRYPTION_KEYS=OLD)
    assert (
        "is in use, and what is said meanwhile would be encrypted. Stop the service first" in told
    )


# erase


async def test_everything_of_one_user_is_erased_and_nothing_else(tmp_path: Path) -> None:
    await talked(tmp_path, "bob", "ann")
    counts = "1 conversations, 4 messages, 2 runs and 0 summaries"
    assert (
        await succeeds(tmp_path, "erase", "--user", "bob", "--tenant", "other", "--yes")
        == "0 conversations, 0 messages, 0 runs and 0 summaries of the user 'bob' of the tenant"
        " 'other' were deleted."
    )
    said = await succeeds(tmp_path, "erase", "--user", "bob", "--yes")
    assert said == f"{counts} of the user 'bob' of the tenant 'local' were deleted."
    async with serving(tmp_path) as client:
        assert await everything(client, "bob") == []
        assert len(await everything(client, "ann")) == 1


async def test_what_is_erased_must_be_confirmed(tmp_path: Path) -> None:
    await talked(tmp_path)
    assert "use --yes" in await fails(tmp_path, "erase", "--user", "ann")
    for typed, code in (("n\n", 1), ("y\n", 0)):
        assert len(await remembered(tmp_path)) == 1
        terminal = Terminal(tmp_path, "db", "erase", "--user", "ann")
        await asyncio.to_thread(terminal.wait_for, "for good? [y/N]:")
        terminal.type(typed)
        assert await asyncio.to_thread(terminal.end) == code
    assert await remembered(tmp_path) == []
