"""The rows of the table: what each measures, and where we want to be."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from statistics import median
from typing import NamedTuple

from benchmarks import load
from benchmarks.databases import MESSAGES, Databases
from benchmarks.load import Connection, Conversation
from benchmarks.plans import Plan
from benchmarks.servers import ROOT, Program
from benchmarks.upstream import PACED_PIECES

CONCURRENCY = 32
STREAMS = 50
OPENING = 32
"""How many streams are being opened at any time, until all are open."""

GROWTH = 10
"""How many turns a session of 50 messages has: it grows from 40 to 60."""

LONG_SHARE = 10
"""How many fewer turns are taken of those in which the client sends ten thousand messages."""


class Size(NamedTuple):
    """How much is measured at a time: turns, batches of 50 paced streams, pairs of single turns,
    streams held open, calls of a tool, sessions of so many messages as are said to be ten thousand,
    sessions in a database that is said to hold a million messages."""

    turns: int
    batches: int
    pairs: int
    open_streams: int
    calls: int
    long_sessions: int
    long: int
    stored_sessions: int


class Bench(NamedTuple):
    """What a measurement works with."""

    program: Program
    service: Program
    upstream_port: int
    size: Size
    with_mcp: Program
    mcp_port: int
    with_memory: Program
    long_sessions: Sequence[Conversation]
    databases: Databases


Measure = Callable[[Bench], Awaitable[float]]


async def cpu_per_turn(bench: Bench, *, model: str) -> float:
    """Milliseconds of CPU a turn, 32 at a time."""
    async with bench.program.running() as server:
        await load.turns(server.port, model, count=bench.size.turns // 4, concurrency=CONCURRENCY)
        before = server.cpu_ns()
        await load.turns(server.port, model, count=bench.size.turns, concurrency=CONCURRENCY)
        return (server.cpu_ns() - before) / bench.size.turns / 1e6


async def observed_turn(bench: Bench, *, is_observed: bool) -> float:
    """As `cpu_per_turn` of the service, as it is by default or without its access log."""
    program = bench.service if is_observed else bench.service.told(LOG_LEVEL="ERROR")
    return await cpu_per_turn(bench._replace(program=program), model="plain")


async def cpu_per_paced_chunk(bench: Bench) -> float:
    """Microseconds of CPU a chunk, in 50 streams of 100 chunks 5 ms apart."""
    async with bench.program.running() as server:
        await load.turns(server.port, "paced", count=STREAMS, concurrency=STREAMS)
        before = server.cpu_ns()
        streams = STREAMS * bench.size.batches
        await load.turns(server.port, "paced", count=streams, concurrency=STREAMS)
        return (server.cpu_ns() - before) / streams / PACED_PIECES / 1e3


async def latency_added(bench: Bench) -> float:
    """Milliseconds that the median turn takes longer than one asked of the upstream, one at a time,
    the two in turn."""
    async with (
        bench.program.running() as server,
        load.connections(server.port, 1) as (ours,),
        load.connections(bench.upstream_port, 1) as (direct,),
    ):
        for _ in range(bench.size.pairs // 4):
            await ours.ask("plain")
        pairs = [
            (await ours.ask("plain"), await direct.ask("plain")) for _ in range(bench.size.pairs)
        ]
        return (
            median(through for through, _ in pairs) - median(straight for _, straight in pairs)
        ) * 1e3


async def memory_per_open_stream(bench: Bench) -> float:
    """KB that memory grows by for a stream that is open and idle; all of them are then read to
    their end."""
    count = bench.size.open_streams
    async with bench.program.running() as server:
        await load.turns(server.port, "plain", count=CONCURRENCY, concurrency=CONCURRENCY)
        before = server.memory_kb()
        turnstile = asyncio.Semaphore(OPENING)
        begun = asyncio.Barrier(count + 1)
        async with (
            asyncio.timeout(2 * load.ANSWER_SECONDS),
            load.connections(server.port, count) as opened,
            asyncio.TaskGroup() as group,
        ):
            for connection in opened:
                group.create_task(_held_open(connection, turnstile, begun))
            await begun.wait()
            grown = server.memory_kb() - before
            await load.get(bench.upstream_port, "/release")
        return grown / count


async def _held_open(
    connection: Connection, turnstile: asyncio.Semaphore, begun: asyncio.Barrier
) -> None:
    await turnstile.acquire()
    first = True
    async for _ in connection.pieces("open"):
        if first:
            first = False
            turnstile.release()
            await begun.wait()


async def idle_memory(bench: Bench) -> float:
    """MB resident once the server answers and before it has been asked anything else."""
    return await _idle_memory(bench.program)


async def idle_memory_with_database(bench: Bench) -> float:
    """As `idle_memory`, of the service with an agent that remembers."""
    return await _idle_memory(bench.with_memory)


async def _idle_memory(program: Program) -> float:
    async with program.running() as server:
        return server.memory_kb() / 1024


async def cold_start(bench: Bench) -> float:
    """Seconds from starting the process to its first healthy answer, the second time it is
    started."""
    return await _cold_start(bench.program)


async def cold_start_with_database(bench: Bench) -> float:
    """As `cold_start`, of the service with an agent that remembers."""
    return await _cold_start(bench.with_memory)


async def _cold_start(program: Program) -> float:
    async with program.running():
        pass
    async with program.running() as server:
        return server.seconds_to_healthy


async def relayed_turn(bench: Bench, *, is_long: bool = False) -> float:
    """Milliseconds of CPU a turn, 32 at a time, whose request has the 50 messages of its
    conversation, or ten thousand."""
    return await _turns_of_sessions(
        bench.program, bench.size, bench.long_sessions if is_long else None
    )


async def remembered_turn(bench: Bench, *, is_long: bool = False, is_whole: bool = True) -> float:
    """As `relayed_turn`, with an agent that remembers; with the server's history the request has
    the new message alone."""
    return await _turns_of_sessions(
        bench.with_memory, bench.size, bench.long_sessions if is_long else None, is_whole=is_whole
    )


async def postgres_turn(bench: Bench) -> float:
    """As `remembered_turn`, on PostgreSQL with an empty database; the server's own CPU is not
    counted."""
    return await _turns_of_sessions(
        await bench.databases.program(bench.with_memory, sessions=0), bench.size
    )


async def million_turn(bench: Bench, *, is_full: bool) -> float:
    """As `postgres_turn`, with the CPU of the database's server, and with a million stored messages
    or none."""
    sessions = bench.size.stored_sessions if is_full else 0
    program = await bench.databases.program(bench.with_memory, sessions=sessions)
    return await _turns_of_sessions(program, bench.size, also=bench.databases.cpu_ns)


async def million_plans(bench: Bench) -> list[str]:
    """Whether a table is read through for a turn, among a million stored messages, and by what
    index else: a line for each statement."""
    plans = await bench.databases.plans(bench.with_memory, sessions=bench.size.stored_sessions)
    through = sum(bool(plan.read_through) for plan in plans)
    return [
        f"  {len(plans)} statements of turns and of reading; {through} read a table through",
        *map(_shown, plans),
    ]


def _shown(plan: Plan) -> str:
    how = (
        f"READS THROUGH {', '.join(sorted(plan.read_through))}"
        if plan.read_through
        else ", ".join(sorted(plan.indexes))
    )
    return f"  {plan.statement[:50]:<50}  {how}"


async def _turns_of_sessions(
    program: Program,
    size: Size,
    long_sessions: Sequence[Conversation] | None = None,
    *,
    is_whole: bool = True,
    also: Callable[[], int] = lambda: 0,
) -> float:
    """Each session's first turn tells the server what was said before; that and what follows from
    it is not counted."""
    if long_sessions is None:
        turns = GROWTH
        sessions: Sequence[Conversation] = [
            Conversation(MESSAGES - turns - 2) for _ in range(size.turns // turns)
        ]
    else:
        turns = max(1, size.turns // (LONG_SHARE if is_whole else 1) // len(long_sessions))
        sessions = long_sessions
    async with program.running() as server:
        # What is stored at once holds the other turns up, so that the long ones would not be stored
        # in time.
        await load.conversations(
            server.port, sessions, turns=1, concurrency=CONCURRENCY if long_sessions is None else 1
        )
        await server.rests()
        before = server.cpu_ns() + also()
        await load.conversations(
            server.port, sessions, turns=turns, concurrency=CONCURRENCY, is_whole=is_whole
        )
        return (server.cpu_ns() + also() - before) / (len(sessions) * turns) / 1e6


async def mcp_call(bench: Bench, *, label: str) -> float:
    """Milliseconds of CPU that calling an MCP tool takes the service's own process: by how much a
    turn with such a call costs more than one whose call is of a built-in tool that does as little,
    one at a time, the two in turn."""
    async with (
        bench.with_mcp.running() as server,
        load.connections(server.port, 1) as (connection,),
    ):
        async with asyncio.timeout(load.ANSWER_SECONDS):
            while not await load.is_healthy_in_detail(server.port):
                await asyncio.sleep(0.1)
        spent = {"tool": 0, f"mcp-{label}": 0}
        for number in range(-bench.size.calls // 4, bench.size.calls):
            for model in spent:
                before = server.own_cpu_ns()
                await connection.ask(model)
                if number >= 0:
                    spent[model] += server.own_cpu_ns() - before
        return (spent[f"mcp-{label}"] - spent["tool"]) / bench.size.calls / 1e6


async def mcp_client_call(bench: Bench, *, label: str) -> float:
    """Milliseconds of CPU that a call takes a process which has the fastmcp client and does nothing
    else."""
    where = ["--url", f"http://127.0.0.1:{bench.mcp_port}/mcp"] if label == "http" else []
    command = [
        sys.executable,
        "-m",
        "benchmarks.mcp_client",
        "--calls",
        str(bench.size.calls),
        *where,
    ]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(load.ANSWER_SECONDS):
        printed, _ = await process.communicate()
    return float(printed)


async def access(bench: Bench, *, with_keys: bool) -> float:
    """Microseconds of CPU that it takes to tell who sends a request, in a process that does nothing
    else."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.access",
        "--calls",
        str(bench.size.turns * 2),
        *(["--with-keys"] if with_keys else []),
    ]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    async with asyncio.timeout(load.ANSWER_SECONDS):
        printed, _ = await process.communicate()
    return float(printed)


class Row(NamedTuple):
    """One row; `target` is a share of P's figure, or with `unit` given a figure of its own, None
    where there is none.

    `details` are lines to print below it. One that `takes_long` is measured only when it is named.
    """

    title: str
    measure: Measure
    reference: Measure
    target: float | None
    unit: str = ""
    details: Callable[[Bench], Awaitable[list[str]]] | None = None
    takes_long: bool = False


_plain = partial(cpu_per_turn, model="plain")

ROWS = {
    "turn": Row("CPU ms, plain turn, c=32", _plain, _plain, 0.4),
    "chunk": Row("CPU us, paced chunk", cpu_per_paced_chunk, cpu_per_paced_chunk, 0.45),
    "tool": Row(
        "CPU ms, turn with one tool (P: plain)", partial(cpu_per_turn, model="tool"), _plain, 0.8
    ),
    "observed": Row(
        "CPU ms, with access log (P: without)",
        partial(observed_turn, is_observed=True),
        partial(observed_turn, is_observed=False),
        1.15,
    ),
    "latency": Row("p50 ms added, c=1", latency_added, latency_added, 0.7),
    "stream": Row("KB, open stream", memory_per_open_stream, memory_per_open_stream, 1.0),
    "memory": Row("MB, idle", idle_memory, idle_memory, 120, "MB"),
    "mcp-stdio": Row(
        "CPU ms, MCP call over stdio (P: fastmcp)",
        partial(mcp_call, label="stdio"),
        partial(mcp_client_call, label="stdio"),
        1.2,
        "ms",
    ),
    "mcp-http": Row(
        "CPU ms, MCP call over HTTP (P: fastmcp)",
        partial(mcp_call, label="http"),
        partial(mcp_client_call, label="http"),
        2.8,
        "ms",
    ),
    "access": Row(
        "CPU us, key and user (P: none needed)",
        partial(access, with_keys=True),
        partial(access, with_keys=False),
        60,
        "us",
    ),
    "start": Row("s, cold start to healthy", cold_start, cold_start, 2, "s"),
    "session": Row("CPU ms, memory, 50 messages sent", remembered_turn, relayed_turn, 1.0),
    "session-10000": Row(
        "CPU ms, memory, 10,000 messages sent",
        partial(remembered_turn, is_long=True),
        partial(relayed_turn, is_long=True),
        None,
    ),
    "history": Row(
        "CPU ms, server's history of 50 (P: sent)",
        partial(remembered_turn, is_whole=False),
        relayed_turn,
        None,
    ),
    "history-10000": Row(
        "CPU ms, server's history of 10,000 (P: 50)",
        partial(remembered_turn, is_long=True, is_whole=False),
        partial(remembered_turn, is_whole=False),
        1.3,
    ),
    "postgres": Row("CPU ms, memory in PostgreSQL, 50 sent", postgres_turn, relayed_turn, None),
    "million": Row(
        "CPU ms, a million stored (P: none)",
        partial(million_turn, is_full=True),
        partial(million_turn, is_full=False),
        1.15,
        details=million_plans,
        takes_long=True,
    ),
    "memory-database": Row(
        "MB, idle, an agent remembers", idle_memory_with_database, idle_memory, 120, "MB"
    ),
    "start-database": Row(
        "s, cold start, an agent remembers", cold_start_with_database, cold_start, 2, "s"
    ),
}
