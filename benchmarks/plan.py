"""python -m benchmarks plan: what so many turns a second need, computed from what was measured and
from what is assumed of the turns."""

from collections.abc import Sequence
from math import ceil

import msgspec

from benchmarks.replicas import Measured

RATES = (1, 10, 100, 1_000, 10_000)
DAY = 86_400


class Inputs(msgspec.Struct, frozen=True):
    """What is known of a turn; all but the last five lines are measured on the machine that the
    table of replicas is of.

    `chunk_us` and `tool_ms` are those of the benchmarks' rows `chunk` and `tool`, less a plain
    turn; `stream_kb` and `idle_mb` those of `stream` and `memory-database`.
    """

    service_ms: float
    postgres_ms: float
    commits: float
    held_ms: float
    """How long a turn holds a connection of the database, when nothing else goes on."""
    wal_kb: float
    stored_kb: float
    """Tables and indexes, of a turn that says next to nothing."""
    chunk_us: float
    tool_ms: float
    stream_kb: float
    idle_mb: float
    pool: float
    """DATABASE_POOL_SIZE."""

    chunks: float
    """Pieces of text that an answer comes in."""
    tools: float
    """Calls of tools in a turn."""
    seconds: float
    """How long a turn takes, which is how long the provider takes."""
    text_kb: float
    """What a turn adds to the conversation: question, answer, arguments and results of tools."""
    use: float
    """The share of a core that is used at most, so that the rest is there for peaks."""


class Needs(msgspec.Struct, frozen=True):
    """What a rate of turns needs. A replica is one process, which uses one core; one more is
    counted than the load needs, where it needs more than one."""

    rate: int
    replicas: int
    streams: int
    """Open at once, on all replicas."""
    memory_mb: int
    """Of one replica."""
    postgres_cores: int
    connections: int
    """That the pools of all replicas may open."""
    busy_connections: float
    """Of these, how many are in use at a time on average."""
    commits: float
    """A second."""
    wal_mb: float
    """A second."""
    stored_gb: float
    """A day."""


def inputs_of(measured: Measured, **assumed: float) -> Inputs:
    """The inputs, of the dearest of what was measured without pgbouncer; `assumed` are further
    inputs."""
    direct = [each for each in measured.figures if not each.is_pooled]

    def worst(name: str) -> float:
        return max(float(getattr(each, name)) for each in direct)

    found = {
        name: worst(name) for name in ("service_ms", "postgres_ms", "commits", "held_ms", "wal_kb")
    }
    stored = max(each.tables_kb + each.indexes_kb for each in direct)
    return Inputs(**{**_OF_THE_BENCHMARKS, **_ASSUMED, **found, "stored_kb": stored, **assumed})


_OF_THE_BENCHMARKS = {
    "chunk_us": 29.0,
    "tool_ms": 0.3,
    "stream_kb": 48.0,
    "idle_mb": 100.0,
    "pool": 10,
}
_ASSUMED = {"chunks": 200.0, "tools": 1.0, "seconds": 10.0, "text_kb": 4.0, "use": 0.6}


def turn_ms(inputs: Inputs) -> float:
    """Milliseconds of CPU that the service uses for a turn."""
    return (
        inputs.service_ms + inputs.chunks * inputs.chunk_us / 1000 + inputs.tools * inputs.tool_ms
    )


def needs(inputs: Inputs, rate: int) -> Needs:
    """What `rate` turns a second need."""
    cores = rate * turn_ms(inputs) / 1000 / inputs.use
    replicas = ceil(cores) + (1 if cores > 1 else 0)
    streams = ceil(rate * inputs.seconds)
    return Needs(
        rate=rate,
        replicas=replicas,
        streams=streams,
        memory_mb=ceil(inputs.idle_mb + streams / replicas * inputs.stream_kb / 1024),
        postgres_cores=ceil(rate * inputs.postgres_ms / 1000 / inputs.use),
        connections=round(replicas * inputs.pool),
        busy_connections=rate * inputs.held_ms / 1000,
        commits=rate * inputs.commits,
        wal_mb=rate * (inputs.wal_kb + inputs.text_kb) / 1024,
        stored_gb=rate * DAY * (inputs.stored_kb + inputs.text_kb) / 1024**2,
    )


def table(inputs: Inputs, rates: Sequence[int] = RATES) -> str:
    """The plan as Markdown."""
    titles = (
        "turns a second",
        "replicas, a core each",
        "streams open",
        "streams a replica",
        "MB a replica",
        "PostgreSQL cores",
        "connections of the pools",
        "busy of them",
        "commits a second",
        "WAL MB/s",
        "GB a day",
    )
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for each in (needs(inputs, rate) for rate in rates):
        cells = (
            f"{each.rate:,}",
            f"{each.replicas:,}",
            f"{each.streams:,}",
            f"{ceil(each.streams / each.replicas):,}",
            f"{each.memory_mb:,}",
            f"{each.postgres_cores:,}",
            f"{each.connections:,}",
            _short(each.busy_connections),
            _short(each.commits),
            _short(each.wal_mb),
            _short(each.stored_gb),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def inputs_table(inputs: Inputs) -> str:
    """The inputs as Markdown, each by the name under which `--set` takes another value."""
    rows = [
        f"| `{name}` | {_short(float(getattr(inputs, name)))} | {meaning} |"
        for name, meaning in _MEANINGS.items()
    ]
    return "\n".join(["| input | value | what it is |", "|---|---|---|", *rows])


_MEANINGS = {
    "service_ms": "CPU ms of the service for a turn with memory, measured (see above)",
    "postgres_ms": "CPU ms of PostgreSQL for it, measured",
    "commits": "transactions, measured",
    "held_ms": "ms in which a turn holds a connection, measured with one turn at a time",
    "wal_kb": "KB of WAL, measured, without the text",
    "stored_kb": "KB that tables and indexes grow by, measured, without the text",
    "chunk_us": "CPU us for a piece of text, from the [benchmarks](benchmarks.md)",
    "tool_ms": (
        "CPU ms for a call of a built-in tool, from the benchmarks; of an MCP server's some 1 to 2"
    ),
    "stream_kb": "KB of memory for an open stream, from the benchmarks",
    "idle_mb": "MB of memory of a replica at rest, from the benchmarks; 40 more with MCP servers",
    "pool": "`DATABASE_POOL_SIZE`",
    "chunks": "assumed: pieces of text in an answer",
    "tools": "assumed: calls of tools in a turn",
    "seconds": "assumed: how long a turn takes, which is the provider's time",
    "text_kb": "assumed: KB that a turn adds to its conversation",
    "use": "assumed: the share of a core that is used on average, the rest being for peaks",
}


def _short(value: float) -> str:
    """A number with two digits that count, or all of a large one."""
    if value >= 10:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"
