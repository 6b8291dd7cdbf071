"""The operator's commands on keys, and that what they print is a key of the service."""

import json
import re
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ai_agent_service.auth.keys.ring import KeyRing
from ai_agent_service.cli.keys import keys
from ai_agent_service.config.settings import Settings
from ai_agent_service.core.errors import ConfigError, UnauthorizedError
from ai_agent_service.storage.database import Database
from ai_agent_service.storage.encryption import Cipher
from ai_agent_service.storage.migrate import HEAD_REVISION
from ai_agent_service.storage.opening import build_database_url, build_engine
from tests.support import commands
from tests.support.commands import Done
from tests.support.postgres import DatabaseUnderTest
from tests.support.processes import ROOT, SHIPPED, run

KEY = re.compile(r"aas_([0-9A-Za-z]{12})_[0-9A-Za-z]{38}\n")


async def command(folder: Path, *arguments: str, **environment: str) -> Done:
    """What `ai-agent-service keys` comes to."""
    return await commands.command(keys, folder, *arguments, **environment)


async def makes(folder: Path, *arguments: str, **environment: str) -> tuple[str, str]:
    """The key that the command prints, which is all that it prints on standard output, and its
    id."""
    done = await command(folder, *arguments, **environment)
    assert done.code == 0, done.stderr
    found = KEY.fullmatch(done.stdout)
    assert found is not None
    assert done.stdout.strip() not in done.stderr
    assert f"({found[1]})" in done.stderr
    return done.stdout.strip(), found[1]


async def listed(folder: Path, **environment: str) -> list[dict[str, object]]:
    """The keys that are there."""
    done = await command(folder, "list", "--json", **environment)
    assert (done.code, done.stderr) == (0, "")
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


async def wrong(folder: Path, *arguments: str, **environment: str) -> str:
    """What is told of bad input, in one message."""
    done = await command(folder, *arguments, **environment)
    assert (done.code, done.stdout) == (2, "")
    return done.stderr.strip().splitlines()[-1]


@asynccontextmanager
async def ring(folder: Path, url: str | None = None) -> AsyncGenerator[KeyRing, None]:
    """The keys as the service knows them."""
    settings = Settings.model_validate({"data_dir": folder / "data", "database_url": url})
    database = Database(build_engine(build_database_url(settings), settings), timeout=5)
    await database.open()
    try:
        async with KeyRing(database, environment_keys=(), pepper=None, cipher=Cipher(())) as found:
            yield found
    finally:
        await database.close()


async def test_a_key_is_made_rotated_listed_and_revoked(
    tmp_path: Path, database: DatabaseUnderTest
) -> None:
    of = database.environment
    options = (
        "--scopes",
        "chat, admin",
        "--client",
        "open_webui",
        "--rpm",
        "60",
        "--tpm",
        "9000",
        "--user-parallel",
        "2",
    )
    first, key_id = await makes(
        tmp_path, "create", "--name", "desk", *options, "--expires", "90d", **of
    )
    second, _ = await makes(tmp_path, "rotate", "desk", **of)
    [shown] = await listed(tmp_path, **of)
    assert shown == {
        "key_id": key_id,
        "name": "desk",
        "tenant": key_id,
        "scopes": ["admin", "chat"],
        "agents": None,
        "client": "open_webui",
        "limits": {"requests": 60, "tokens": 9000},
        "user_limits": {"parallel": 2},
        "state": "rotating",
        **{name: shown[name] for name in ("created_at", "expires_at", "previous_until")},
        "revoked_at": None,
        "last_used_at": None,
    }
    async with ring(tmp_path, database.url) as found:
        assert (await found.find(first)) == (await found.find(second))
    table = (await command(tmp_path, "list", **of)).stdout
    assert re.match(
        r"ID +NAME +STATE +TENANT +SCOPES +AGENTS +CLIENT +LIMITS +CREATED +EXPIRES +LAST USED\n",
        table,
    )
    assert re.search(
        rf"\n{key_id} +desk +rotating until \S+ \S+Z +{key_id} +admin,chat +all +open_webui +60"
        r" rpm, 9000 tpm; each user",
        table,
    )
    assert not any(secret[17:40] in table for secret in (first, second))
    done = await command(tmp_path, "revoke", key_id, **of)
    assert (done.code, done.stdout, done.stderr) == (
        0,
        f"The key 'desk' ({key_id}) is revoked.\n",
        "",
    )
    async with ring(tmp_path, database.url) as found:
        for key in (first, second):
            with pytest.raises(UnauthorizedError):
                await found.find(key)
    assert [each["state"] for each in await listed(tmp_path, **of)] == ["revoked"]


async def test_a_rotation_without_grace_ends_the_old_secret(tmp_path: Path) -> None:
    first, _ = await makes(tmp_path, "create", "--name", "desk")
    second, _ = await makes(tmp_path, "rotate", "desk", "--grace", "0")
    async with ring(tmp_path) as found:
        assert (await found.find(second)).name == "desk"
        with pytest.raises(UnauthorizedError):
            await found.find(first)


async def test_a_key_may_reach_the_conversations_of_another(tmp_path: Path) -> None:
    _, old = await makes(tmp_path, "create", "--name", "old")
    await makes(tmp_path, "create", "--name", "new", "--tenant", old)
    await makes(tmp_path, "create", "--name", "first", "--tenant", "local")
    assert [each["tenant"] for each in await listed(tmp_path)] == [old, old, "local"]
    assert "those that begin with env_ are of keys in API_KEYS" in await wrong(
        tmp_path, "create", "--name", "x", "--tenant", "env_0"
    )


async def test_agents_are_those_of_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    told = await wrong(
        tmp_path, "create", "--name", "x", "--agents", "cli_agent,reserch_agent", **SHIPPED
    )
    assert (
        told == "Error: Invalid value for --agents: 'reserch_agent' is no agent. Did you mean"
        " 'research_agent'?"
    )
    _, key_id = await makes(
        tmp_path, "create", "--name", "x", "--agents", " cli_agent,research_agent ", **SHIPPED
    )
    broken = {"AGENT_CONFIG_FILE": str(tmp_path / "absent.json")}
    done = await command(tmp_path, "create", "--name", "y", "--agents", "anything", **broken)
    assert done.code == 0
    assert done.stderr.startswith("note: the configuration has faults")
    assert [each["agents"] for each in await listed(tmp_path)] == [
        ["cli_agent", "research_agent"],
        ["anything"],
    ]
    assert "cli_agent,research_agent" in (await command(tmp_path, "list")).stdout
    assert (await listed(tmp_path))[0]["key_id"] == key_id


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create"], "Error: Missing option '--name'."),
        (
            ["create", "--name", ""],
            "Error: a name has 1 to 100 printable characters, with no space around them.",
        ),
        (
            ["create", "--name", "x", "--scopes", "chatt"],
            "'chatt' is no scope. Did you mean 'chat'?",
        ),
        (["create", "--name", "x", "--scopes", ","], "it names none."),
        (
            ["create", "--name", "x", "--expires", "3 weeks"],
            "'3 weeks' is no time: 90d, 12h, 30m and 3600s are.",
        ),
        (["create", "--name", "x", "--expires", "0s"], "'0s' is no time"),
        (
            ["create", "--name", "x", "--expires", "999999999d"],
            "so late a time cannot be; a century is 36500d.",
        ),
        (["create", "--name", "x", "--rpm", "0"], "0 is not in the range"),
        (["create", "--name", "x", "--client", "browser"], "'browser' is not 'open_webui'."),
        (["rotate", "desk", "--grace", "-1h"], "'-1h' is no time"),
        (
            ["rotate", "nobody"],
            "there is no key 'nobody'; to see them: ai-agent-service keys list.",
        ),
        (
            ["revoke", "nobody"],
            "there is no key 'nobody'; to see them: ai-agent-service keys list.",
        ),
        (["create", "--name", "desk"], "there is a live key with the name 'desk' already"),
    ],
)
async def test_bad_input_is_told_in_one_message(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    await makes(tmp_path, "create", "--name", "desk")
    assert words in await wrong(tmp_path, *arguments)
    assert len(await listed(tmp_path)) == 1


async def test_a_database_that_is_not_there_is_made_with_the_first_key_alone(
    tmp_path: Path,
) -> None:
    file = tmp_path / "data" / "ai-agent-service.db"
    for arguments in (["list"], ["revoke", "x"], ["rotate", "x"]):
        done = await command(tmp_path, *arguments)
        assert (done.code, done.stdout) == (1, "")
        assert done.stderr.startswith(f"Error: there is no database sqlite:///{file}; ")
    done = await command(tmp_path, "create", "--name", "x", DATABASE_MIGRATE="false")
    assert (done.code, done.stderr.endswith("as does: ai-agent-service db upgrade\n")) == (1, True)
    assert not file.exists()
    file.parent.mkdir()
    file.touch()
    done = await command(tmp_path, "create", "--name", "x", DATABASE_MIGRATE="false")
    assert (done.code, done.stdout) == (1, "")
    assert (
        f"its tables have the revision none, not {HEAD_REVISION}; run: ai-agent-service db upgrade"
        in done.stderr
    )
    done = await command(tmp_path, "list")
    assert (done.code, done.stdout) == (
        0,
        "There are no keys. To make one: ai-agent-service keys create --name NAME\n",
    )
    await makes(tmp_path, "create", "--name", "x", DATABASE_MIGRATE="false")


async def test_a_server_that_refuses_is_told_without_its_password(tmp_path: Path) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        url = f"postgresql://ann:hidden-word@127.0.0.1:{nobody_listens.getsockname()[1]}/chats"
        done = await command(tmp_path, "create", "--name", "x", DATABASE_URL=url)
    assert (done.code, done.stdout) == (1, "")
    assert re.fullmatch(
        r"Error: postgresql://ann:\*\*\*@127.0.0.1:\d+/chats cannot be used:"
        r" ConnectionRefusedError.*\n",
        done.stderr,
    )


async def test_another_pepper_is_told_of(tmp_path: Path) -> None:
    await makes(tmp_path, "create", "--name", "desk")
    other = {"API_KEY_PEPPER": "p" * 32}
    done = await command(tmp_path, "list", "--json", **other)
    assert len(json.loads(done.stdout)) == 1
    assert done.stderr.startswith(
        "warning: the pepper is not the one that the keys of this database were made with"
    )
    assert "the pepper is not the one" in await wrong(tmp_path, "create", "--name", "new", **other)


async def test_a_pepper_that_cannot_be_decrypted_is_told(tmp_path: Path) -> None:
    await makes(tmp_path, "create", "--name", "desk", MEMORY_ENCRYPTION_KEYS="ab" * 32)
    done = await command(tmp_path, "create", "--name", "new")
    assert (done.code, done.stdout) == (1, "")
    assert "which MEMORY_ENCRYPTION_KEYS lacks" in done.stderr


async def test_faults_of_the_settings_are_all_told_and_no_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        await command(
            tmp_path,
            "list",
            API_KEYS="hidden-word",
            API_KEY_PEPPER="hidden-word",
            DATABASE_URL="mysql://x",
        )
    assert [fault.field for fault in raised.value.faults] == [
        "API_KEYS",
        "API_KEY_PEPPER",
        "DATABASE_URL",
    ]
    assert "hidden-word" not in str(raised.value)


def test_the_commands_are_those_of_the_program(tmp_path: Path) -> None:
    done = run(tmp_path, "keys", "create", "--name", "desk")
    assert done.returncode == 0
    assert KEY.fullmatch(done.stdout)
