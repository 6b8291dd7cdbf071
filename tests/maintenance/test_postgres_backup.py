"""Dumps of a PostgreSQL database: what they hold is read from them, and what is none is told."""

import os
from pathlib import Path

import pytest

from ai_agent_service.maintenance.postgres_backup import (
    DUMP_FOOTER,
    dump,
    read_dump,
    strip_password,
)
from ai_agent_service.maintenance.sqlite_backup import Backup, BackupError
from ai_agent_service.storage.url import parse_database_url

TABLES = b"""--
-- PostgreSQL database dump
--
COPY public.alembic_version (version_num) FROM stdin;
0002
\\.
COPY public.nodes (path, content) FROM stdin;
\\\\x01\tCOPY public.sessions (key) FROM stdin;
\\\\x02\t-- PostgreSQL database dump complete
\\.
COPY public.secrets (name, value) FROM stdin;
address_key\taesgcm:0123:abc
\\.
COPY other."sessions" (key, name) FROM stdin;
\\\\x01\tone
\\.
COPY other."names of people" (name) FROM stdin;
-- PostgreSQL database dump complete
PGDMP
COPY public.nodes (path) FROM stdin;
\\.
"""


def test_a_dump_tells_what_it_holds(tmp_path: Path) -> None:
    file = tmp_path / "backup.sql"
    file.write_bytes(TABLES + DUMP_FOOTER + b"\\unrestrict x\n")
    found = read_dump(file)
    assert found.counts == Backup(1, 2, file.stat().st_size)
    assert (found.revision, found.secrets) == ("0002", {"address_key": "aesgcm:0123:abc"})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "it is no dump of pg_dump, or was cut off"),
        (TABLES, "it is no dump of pg_dump, or was cut off"),
        (DUMP_FOOTER, "it does not have the tables of this service"),
        (b"PGDMP\x01\x0e", "it is in pg_dump's own format, which pg_restore restores"),
    ],
)
def test_what_is_no_dump_of_ours_is_told(tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "backup.sql"
    file.write_bytes(content)
    with pytest.raises(BackupError, match=f"backup.sql cannot be used: {told}"):
        read_dump(file)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+asyncpg://ann:p%40ss@db:5432/chats", "postgresql://ann@db:5432/chats"),
        ("postgresql://ann@one:1,two:2/chats", "postgresql://ann@one:1,two:2/chats"),
        (
            "postgresql:///chats?user=ann&password=p&options=-c%20a%3Db",
            "postgresql:///chats?user=ann&options=-c%20a%3Db",
        ),
        (
            "postgresql://ann@db/chats?sslmode=require&sslpassword=p&scram_client_key=k",
            "postgresql://ann@db/chats?sslmode=require",
        ),
        (
            "postgresql://ann:p@[::1]/chats?ssl=require",
            "postgresql://ann@[::1]/chats?sslmode=require",
        ),
    ],
)
def test_an_address_for_other_programs_has_no_password(url: str, shown: str) -> None:
    assert strip_password(parse_database_url(url)) == shown


def test_an_address_for_other_programs_may_name_other_servers() -> None:
    address = parse_database_url("postgresql://postgres:p@postgres/postgres")
    assert (
        strip_password(address, "postgres,one:1") == "postgresql://postgres@postgres,one:1/postgres"
    )


def test_the_programs_of_postgres_get_no_key_of_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "pg_dump"
    program.write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\nexit 1\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("OPENAI_API_KEY", "canary-1")
    monkeypatch.setenv("PGSSLROOTCERT", "/ca.pem")
    address = parse_database_url("postgresql://u:secret@127.0.0.1/d")
    with pytest.raises(BackupError):
        dump(address, tmp_path / "backup.sql", timeout=5)
    seen = (tmp_path / "seen").read_text(encoding="utf-8")
    assert "canary-1" not in seen
    assert {"PGPASSWORD=secret", "PGSSLROOTCERT=/ca.pem"} <= set(seen.splitlines())
