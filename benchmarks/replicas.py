"""python -m benchmarks replicas: what a turn with memory costs on 1, 2 and 4 replicas of one
PostgreSQL, directly and through pgbouncer."""

import asyncio
import itertools
import os
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from statistics import median, quantiles

import msgspec

from benchmarks import load, servers
from benchmarks.databases import MESSAGES
from benchmarks.load import Connection, Conversation
from benchmarks.servers import Server
from tests.support.postgres import PgBouncer, PostgresServer, binaries_18

CONCURRENCY = 32
TURNS_OF_A_SESSION = 10
COUNTS = (1, 2, 4)
FULL_TURNS, FULL_ROUNDS = 2000, 3
QUICK_TURNS = 40
SINGLE_SESSIONS = 5
"""How many sessions have turns one at a time."""

_IDLE_SECONDS = 1.5
POOLED_CONNECTIONS = 16
"""How many connections to the server pgbouncer has for all replicas together."""


class Figures(msgspec.Struct, frozen=True):
    """What was measured with so many replicas; what ends with `_ms`, `_kb`, `statements` and
    `commits` is of one turn, but for `p50_ms` to `p99_ms`, which are how long turns took."""

    replicas: int
    is_pooled: bool
    turns_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    service_ms: float
    """CPU of all replicas together, user and system."""
    postgres_ms: float
    pooler_ms: float
    load_ms: float
    """CPU of the load generator, which is also the balancer."""
    provider_ms: float
    held_ms: float
    """How long the turn's transactions held a connection to the server, with one turn at a time."""
    statements: float
    commits: float
    connections: int
    """Connections to the server that are open at the end."""
    wal_kb: float
    tables_kb: float
    indexes_kb: float


class Measured(msgspec.Struct, frozen=True):
    """A measurement: on which day, on how many cores, and what of how many turns, the median of so
    many rounds."""

    day: str
    cores: int
    turns: int
    rounds: int
    figures: tuple[Figures, ...]


async def measure(
    counts: Sequence[int] = COUNTS, *, turns: int = FULL_TURNS, rounds: int = FULL_ROUNDS
) -> Measured:
    """Measures each number of replicas without pgbouncer and, where there is one, with it."""
    found: list[Figures] = []
    with tempfile.TemporaryDirectory() as folder:
        async with servers.upstream().running() as upstream:
            for is_pooled in (False, True) if PgBouncer.program() is not None else (False,):
                for count in counts:
                    found.append(
                        _median(
                            [
                                await _round(
                                    Path(folder), upstream, count, turns, is_pooled=is_pooled
                                )
                                for _ in range(rounds)
                            ]
                        )
                    )
    return Measured(time.strftime("%Y-%m-%d"), os.cpu_count() or 1, turns, rounds, tuple(found))


def table(measured: Measured) -> str:
    """The figures as Markdown."""
    columns: tuple[tuple[str, str, int], ...] = (
        ("turns a second", "turns_per_second", 0),
        ("p50 ms", "p50_ms", 0),
        ("p95 ms", "p95_ms", 0),
        ("p99 ms", "p99_ms", 0),
        ("CPU ms: service", "service_ms", 2),
        ("PostgreSQL", "postgres_ms", 2),
        ("pgbouncer", "pooler_ms", 2),
        ("load", "load_ms", 2),
        ("provider", "provider_ms", 2),
        ("statements", "statements", 1),
        ("commits", "commits", 1),
        ("connection held, ms", "held_ms", 1),
        ("connections", "connections", 0),
        ("WAL KB", "wal_kb", 1),
        ("tables KB", "tables_kb", 1),
        ("indexes KB", "indexes_kb", 1),
    )
    lines = [
        "| replicas | " + " | ".join(title for title, _, _ in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for each in measured.figures:
        cells = (f"{getattr(each, field):.{digits}f}" for _, field, digits in columns)
        lines.append(
            f"| {each.replicas}{' + pgbouncer' if each.is_pooled else ''} | "
            + " | ".join(cells)
            + " |"
        )
    return "\n".join(lines)


def _median(rounds: Sequence[Figures]) -> Figures:
    """The median of each figure."""
    fields = {
        name: round(median(getattr(each, name) for each in rounds), 3)
        for name in Figures.__struct_fields__
        if name != "is_pooled"
    }
    fields["replicas"], fields["connections"] = int(fields["replicas"]), int(fields["connections"])
    return Figures(is_pooled=rounds[0].is_pooled, **fields)


class _Counts(msgspec.Struct, frozen=True):
    """What was used until now: nanoseconds of CPU, and what PostgreSQL counts."""

    service: int
    postgres: int
    pooler: int
    load: int
    provider: int
    held_ms: float
    statements: int
    commits: int
    wal: int
    tables: int
    indexes: int

    def since(self, before: "_Counts") -> "_Counts":
        """What was used since."""
        return _Counts(
            *(getattr(self, name) - getattr(before, name) for name in self.__struct_fields__)
        )


class _Running(msgspec.Struct):
    """What is measured together."""

    replicas: list[Server]
    provider: Server
    postgres: PostgresServer
    pooler: PgBouncer | None
    database: str

    def counts(self) -> _Counts:
        """What was used until now."""
        # A connection of the service tells its counts once it has been idle for a second.
        self.postgres.sql("SELECT pg_stat_force_next_flush()", self.database)
        told = self.postgres.sql(
            """SELECT (SELECT active_time + idle_in_transaction_time FROM pg_stat_database WHERE
            datname = current_database()), (SELECT coalesce(sum(calls), 0) FROM pg_stat_statements s
            JOIN pg_database d ON d.oid = s.dbid
             WHERE datname = current_database() AND query NOT LIKE '%pg_stat%' AND query !~
             '^(BEGIN|COMMIT|ROLLBACK)'), (SELECT coalesce(sum(calls), 0) FROM pg_stat_statements s
             JOIN pg_database d ON d.oid = s.dbid WHERE datname = current_database() AND query LIKE
             'COMMIT%'), pg_current_wal_insert_lsn() - '0/0'::pg_lsn, (SELECT
             sum(pg_table_size(oid)) FROM pg_class WHERE relkind = 'r' AND relnamespace =
             'public'::regnamespace), (SELECT sum(pg_indexes_size(oid)) FROM pg_class WHERE relkind
             = 'r' AND relnamespace = 'public'::regnamespace)""",
            self.database,
        )
        held, statements, commits, wal, tables, indexes = told.split("|")
        return _Counts(
            service=sum(each.cpu_ns() for each in self.replicas),
            postgres=_cpu_ns_of(self.postgres),
            pooler=0 if self.pooler is None else servers.cpu_ns(self.pooler.pid),
            load=time.process_time_ns(),
            provider=self.provider.cpu_ns(),
            held_ms=float(held),
            statements=int(statements),
            commits=int(commits),
            wal=int(wal),
            tables=int(tables),
            indexes=int(indexes),
        )

    def connections(self) -> int:
        """Connections to the server but for the one that asks."""
        asked = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <>"
            " pg_backend_pid()"
        )
        return int(self.postgres.sql(asked, self.database))


def _cpu_ns_of(postgres: PostgresServer) -> int:
    """Nanoseconds of CPU time of all its processes, those that have ended among them."""
    used = 0
    for pid in postgres.pids:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            used += servers.cpu_ns(pid)
    fields = (
        Path(f"/proc/{postgres.pids[0]}/stat")
        .read_text(encoding="utf-8")
        .rpartition(")")[2]
        .split()
    )
    of_ended = int(fields[13]) + int(fields[14])  # cutime and cstime, see proc_pid_stat(5)
    return used + of_ended * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def _running(
    folder: Path, provider: Server, count: int, *, is_pooled: bool
) -> AsyncGenerator[_Running, None]:
    """`count` replicas on a new database of a server of its own."""
    async with AsyncExitStack() as opened:
        settings = {
            "shared_buffers": "128MB",
            "max_wal_size": "2GB",
            "shared_preload_libraries": "pg_stat_statements",
        }
        postgres = PostgresServer(binaries_18(), **settings)
        opened.callback(postgres.remove)
        await asyncio.to_thread(lambda: postgres.make().start())
        database = postgres.new_database()
        postgres.sql("CREATE EXTENSION pg_stat_statements", database)
        pooler = None
        if is_pooled:
            pooler = PgBouncer(postgres, pool_size=POOLED_CONNECTIONS)
            opened.callback(pooler.remove)
            await asyncio.to_thread(pooler.start)
        program = servers.service_with_memory(provider.port, folder).told(
            DATABASE_URL=(pooler or postgres).url(database)
        )
        replicas = [await opened.enter_async_context(program.running()) for _ in range(count)]
        yield _Running(replicas, provider, postgres, pooler, database)


async def _round(
    folder: Path, provider: Server, count: int, turns: int, *, is_pooled: bool
) -> Figures:
    """What one round comes to; the first turn of each session, which tells the service the
    conversation so far, is not counted."""
    async with _running(folder, provider, count, is_pooled=is_pooled) as running:
        sessions = [
            Conversation(MESSAGES - TURNS_OF_A_SESSION - 2)
            for _ in range(max(1, turns // TURNS_OF_A_SESSION))
        ]
        ports = [each.port for each in running.replicas]
        await _take(ports, sessions, turns=1)
        for each in running.replicas:
            await each.rests()
        await asyncio.to_thread(running.postgres.sql, "CHECKPOINT", running.database)
        before = await asyncio.to_thread(running.counts)
        began = time.perf_counter()
        seconds = await _take(ports, sessions, turns=TURNS_OF_A_SESSION)
        took = time.perf_counter() - began
        connections = await asyncio.to_thread(running.connections)
        await asyncio.sleep(
            _IDLE_SECONDS
        )  # PostgreSQL tells of what its connections did once they rest
        middle = await asyncio.to_thread(running.counts)
        used = middle.since(before)
        single = await _take(
            ports, sessions[:SINGLE_SESSIONS], turns=TURNS_OF_A_SESSION, concurrency=1
        )
        await asyncio.sleep(_IDLE_SECONDS)
        held_ms = (await asyncio.to_thread(running.counts)).since(middle).held_ms / len(single)
    number = len(seconds)
    cuts = quantiles(seconds, n=100)
    return Figures(
        replicas=count,
        is_pooled=is_pooled,
        turns_per_second=number / took,
        p50_ms=cuts[49] * 1e3,
        p95_ms=cuts[94] * 1e3,
        p99_ms=cuts[98] * 1e3,
        service_ms=used.service / number / 1e6,
        postgres_ms=used.postgres / number / 1e6,
        pooler_ms=used.pooler / number / 1e6,
        load_ms=used.load / number / 1e6,
        provider_ms=used.provider / number / 1e6,
        held_ms=held_ms,
        statements=used.statements / number,
        commits=used.commits / number,
        connections=connections,
        wal_kb=used.wal / number / 1024,
        tables_kb=used.tables / number / 1024,
        indexes_kb=used.indexes / number / 1024,
    )


async def _take(
    ports: Sequence[int],
    sessions: Sequence[Conversation],
    *,
    turns: int,
    concurrency: int = CONCURRENCY,
) -> list[float]:
    """Takes `turns` turns in each session, each turn on the next replica, in so many sessions at
    any time; how long each took."""
    seconds: list[float] = []
    left = iter(sessions)
    async with AsyncExitStack() as opened, asyncio.TaskGroup() as group:
        share = min(concurrency, len(sessions))
        lists = [await opened.enter_async_context(load.connections(port, share)) for port in ports]
        for number, ours in enumerate(zip(*lists, strict=True)):
            group.create_task(
                _share(
                    itertools.islice(itertools.cycle(ours), number % len(ports), None),
                    left,
                    turns,
                    seconds,
                )
            )
    return seconds


async def _share(
    replicas: Iterator[Connection],
    sessions: Iterator[Conversation],
    turns: int,
    seconds: list[float],
) -> None:
    for session in sessions:
        for _ in range(turns):
            seconds.append(await session.turn(next(replicas)))
