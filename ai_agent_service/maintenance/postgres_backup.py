"""Backs up a PostgreSQL database by its own pg_dump, and restores it by its own psql."""

import math
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import msgspec

from ai_agent_service.maintenance.sqlite_backup import (
    Backup,
    BackupError,
    wrap_errors,
    write_atomically,
)
from ai_agent_service.storage.tables import metadata
from ai_agent_service.storage.url import DatabaseUrl

LOCK_SECONDS = 60
"""How long pg_dump and psql wait for tables that somebody else has for themselves."""

DUMP_FOOTER = b"-- PostgreSQL database dump complete\n"
_COPY = re.compile(rb'COPY (?:(?:"?[^". ]+"?\.)?"?(\w+)"?|.+) \(.*\) FROM stdin;\n')
"""Where the rows of any table begin; it has the name of a table that may be ours."""

_INHERITED = re.compile(r"(PATH|HOME|USER|LOGNAME|TMPDIR|LANG|TZ|KRB5\w+|LD_\w+|LC_\w+|PG\w+)$")
"""The variables that the programs get; keys of ours are none of theirs."""

_SECRET_OPTIONS = frozenset(
    {"password", "sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret"}
)
"""Options of an address that must not stand in the list of processes. Source: PostgreSQL, libpq."""

_SERVICE = "ai-agent-service"
_SMALL = ("alembic_version", "secrets")
_TABLES = sorted([*metadata.tables, "alembic_version"])


class Dump(msgspec.Struct, frozen=True):
    """What a dump holds."""

    counts: Backup
    revision: str
    """That of its tables."""

    secrets: dict[str, str]
    """The rows of the table `secrets`."""


def dump(address: DatabaseUrl, file: Path, *, timeout: float, force: bool = False) -> Backup:
    """Backs up our tables in the PostgreSQL database to `file`, as they are at the moment of the
    call, while others read and write them.

    `file` appears once it was read back and found complete; only its owner may read it. A
    connection may take `timeout` seconds. Raises BackupError, also if there is such a file and not
    `force`.
    """
    with write_atomically(file, force=force) as partial:
        wanted = (
            "--clean",
            "--if-exists",
            "--no-owner",
            "--no-privileges",
            f"--lock-wait-timeout={LOCK_SECONDS}s",
        )
        # What else is in the database would be set back with ours by a restore.
        ours = [f"--table={name}" for name in _TABLES]
        _run("pg_dump", address, (*wanted, *ours, f"--file={partial}"), timeout)
        return read_dump(partial).counts


def restore_dump(address: DatabaseUrl, file: Path, *, timeout: float) -> None:
    """Puts what the dump `file` holds in the place of our tables, all of it or nothing; raises
    BackupError."""
    with wrap_errors(f"{file} was not restored, and nothing was changed"):
        wanted = (
            "--no-psqlrc",
            "--quiet",
            "--single-transaction",
            "--set=ON_ERROR_STOP=1",
            "--output=/dev/null",
        )
        steps = (
            "--command=SET LOCAL client_min_messages = warning",
            (
                f"--command=SET LOCAL lock_timeout = '{LOCK_SECONDS}s'; DROP TABLE IF EXISTS"
                f" {', '.join(_TABLES)}"
            ),
            f"--file={file}",
            # The dump left no search path. Those processes that were there when it was made are not
            # there now.
            "--command=RESET search_path",
            "--command=DELETE FROM processes",
            # Else plans are made without knowing how much there is, until the server gets round to
            # counting.
            "--command=ANALYZE",
        )
        _run("psql", address, (*wanted, *steps), timeout)


def read_dump(file: Path) -> Dump:
    """What a dump holds, once it was read to its end; raises BackupError if it was cut off or is
    none of ours."""
    counts: Counter[str] = Counter()
    small: dict[str, list[bytes]] = {name: [] for name in _SMALL}
    table: str | None = None
    is_complete = False
    with wrap_errors(f"{file} cannot be used"), file.open("rb") as lines:
        for line in lines:
            if table is None:
                is_complete = is_complete or line == DUMP_FOOTER
                if match := _COPY.fullmatch(line):
                    table = (match[1] or b"").decode()
                    counts[table] = 0
                elif line.startswith(b"PGDMP"):
                    raise BackupError("it is in pg_dump's own format, which pg_restore restores")
            elif line == b"\\.\n":
                table = None
            else:
                counts[table] += 1
                if table in small:
                    small[table].append(line)
        if not is_complete:
            raise BackupError("it is no dump of pg_dump, or was cut off")
        revisions = [line.decode().rstrip("\n") for line in small["alembic_version"]]
        if len(revisions) != 1 or not {"sessions", "nodes"} <= counts.keys():
            raise BackupError("it does not have the tables of this service")
        secrets = dict(line.decode().rstrip("\n").split("\t", 1) for line in small["secrets"])
        return Dump(
            Backup(counts["sessions"], counts["nodes"], file.stat().st_size), revisions[0], secrets
        )


def strip_password(address: DatabaseUrl, hosts: str = "") -> str:
    """A PostgreSQL address as its programs take it, its secrets left out; `hosts` stand in its
    servers' place."""
    parts = urlsplit(address.location)
    user, at, own = parts.netloc.rpartition("@")
    query = urlencode(
        [each for each in parse_qsl(parts.query) if each[0].lower() not in _SECRET_OPTIONS],
        quote_via=quote,
    )
    # Not by urlunsplit, which leaves the slashes out where no host is named.
    name = user.partition(":")[0]
    return f"postgresql://{name}{at}{hosts or own}{parts.path}{'?' if query else ''}{query}"


def _run(program: str, address: DatabaseUrl, arguments: Sequence[str], timeout: float) -> None:
    """Runs a program of PostgreSQL, which is given the password by its environment and never asks
    for one; raises BackupError."""
    found = shutil.which(program)
    if found is None:
        raise BackupError(
            f"{program} is not installed here; on Debian or Ubuntu: apt-get install"
            " postgresql-client"
        )
    command = [found, "--no-password", *arguments, f"--dbname={strip_password(address)}"]
    with _hold_secrets(address) as secrets:
        # arguments are a list
        done = subprocess.run(  # noqa: S603 - a program of PostgreSQL, without a shell
            command,
            env={**_build_environment(address, timeout), **secrets},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").splitlines()
        raise BackupError(
            " ".join(line.strip() for line in lines[:3])
            or f"{program} ended with {done.returncode}"
        )


@contextmanager
def _hold_secrets(address: DatabaseUrl) -> Generator[dict[str, str], None, None]:
    """Yield variables by which the programs find secrets that no variable takes: in a service file
    that only this user can read."""
    options = {name.lower(): value for name, value in parse_qsl(urlsplit(address.location).query)}
    kept = {name: options[name] for name in _SECRET_OPTIONS - {"password"} if name in options}
    if not kept:
        yield {}
        return
    if "service" in options or "PGSERVICE" in os.environ:
        raise BackupError(f"{' and '.join(sorted(kept))} cannot be used beside a service of libpq")
    if any("\n" in value for value in kept.values()):
        raise BackupError(f"{' or '.join(sorted(kept))} has a line break")
    with NamedTemporaryFile("w", prefix="ai-agent-service-", encoding="utf-8") as file:
        file.write(f"[{_SERVICE}]\n" + "".join(f"{name}={kept[name]}\n" for name in kept))
        file.flush()
        yield {"PGSERVICEFILE": file.name, "PGSERVICE": _SERVICE}


def _build_environment(address: DatabaseUrl, timeout: float) -> dict[str, str]:
    parts = urlsplit(address.location)
    options = {name.lower(): value for name, value in parse_qsl(parts.query)}
    password = options.get("password") or unquote(parts.netloc.rpartition("@")[0].partition(":")[2])
    # Of several servers the one that takes writes: a replica may lag, and ends what takes long.
    wanted = {
        "PGTARGETSESSIONATTRS": "read-write",
        "PGCONNECT_TIMEOUT": str(max(2, math.ceil(timeout))),
        "PGAPPNAME": "ai-agent-service db",
    }
    ours = {name: value for name, value in os.environ.items() if _INHERITED.match(name)}
    return {**wanted, **ours, **({"PGPASSWORD": password} if password else {})}
