"""python -m benchmarks: measures the rows of the table and prints it; `replicas` and `plan` measure
several processes, and plan them."""

import argparse
import resource
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import uvloop

from benchmarks import plan, replicas, scaling, servers, soak
from benchmarks.databases import Databases
from benchmarks.load import Conversation
from benchmarks.rows import ROWS, Bench, Row, Size

FULL, FULL_ROUNDS = (
    Size(
        turns=2000,
        batches=6,
        pairs=400,
        open_streams=1000,
        calls=1000,
        long_sessions=32,
        long=10_000,
        stored_sessions=20_000,
    ),
    3,
)
QUICK, QUICK_ROUNDS = (
    Size(
        turns=64,
        batches=1,
        pairs=20,
        open_streams=50,
        calls=20,
        long_sessions=4,
        long=1000,
        stored_sessions=400,
    ),
    1,
)
NEEDED_FILES = 8192
"""A thousand open streams are two thousand sockets in the server."""

LARGEST_COUNT = 1_000_000
LINE = "{:<44}{:>9}{:>9}{:>8}{:>10}  {}"


def main() -> None:
    """Measures and prints; an answer that is not complete ends it with a traceback."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures what the service costs beside the naive hop P.",
    )
    usual = [name for name, row in ROWS.items() if not row.takes_long]
    parser.add_argument(
        "--only",
        nargs="+",
        choices=ROWS,
        default=usual,
        metavar="ROW",
        help=f"some of the rows: {', '.join(ROWS)}",
    )
    parser.add_argument(
        "--quick", action="store_true", help="measure very little, only to show that it works"
    )
    commands = parser.add_subparsers(dest="command", title="instead of the table")
    of_replicas = commands.add_parser(
        "replicas", help="1, 2 and 4 replicas on one PostgreSQL: throughput, and what a turn costs"
    )
    of_replicas.add_argument(
        "--quick",
        action="store_true",
        dest="is_quick",
        help="measure very little, only to show that it works",
    )
    of_replicas.add_argument(
        "--count",
        nargs="+",
        type=_count,
        default=replicas.COUNTS,
        metavar="N",
        help="how many (default: 1 2 4)",
    )
    of_replicas.add_argument(
        "--rounds",
        type=_count,
        metavar="N",
        help=f"how often each is measured (default: {replicas.FULL_ROUNDS})",
    )
    of_replicas.add_argument(
        "--record",
        action="store_true",
        help="keep what was measured, and write it into docs/scaling.md",
    )
    of_plan = commands.add_parser(
        "plan", help="what 1 to 10,000 turns a second need, by what was measured last and recorded"
    )
    of_plan.add_argument(
        "--rate", nargs="+", type=_count, default=plan.RATES, metavar="N", help="turns a second"
    )
    of_plan.add_argument(
        "--set",
        nargs="+",
        type=_input,
        default=[],
        metavar="NAME=VALUE",
        dest="inputs",
        help="other inputs",
    )
    of_soak = commands.add_parser("soak", help="many mixed turns, after which nothing is left over")
    of_soak.add_argument("--turns", type=_count, default=60_000, metavar="N", help="how many")
    arguments = parser.parse_args()
    if arguments.command == "soak":
        problems = soak.find_problems(uvloop.run(soak.soak(arguments.turns)))
        sys.exit("\n".join(problems) or None)
    if arguments.command == "plan":
        inputs = plan.inputs_of(scaling.recorded(), **dict(arguments.inputs))
        print(f"{plan.inputs_table(inputs)}\n\n{plan.table(inputs, arguments.rate)}")
        return
    if arguments.command == "replicas":
        turns, rounds = (
            (replicas.QUICK_TURNS, 1)
            if arguments.is_quick
            else (replicas.FULL_TURNS, replicas.FULL_ROUNDS)
        )
        measured = uvloop.run(
            replicas.measure(arguments.count, turns=turns, rounds=arguments.rounds or rounds)
        )
        print(replicas.table(measured))
        if arguments.record:
            scaling.record(measured)
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (min(hard, NEEDED_FILES) if hard >= 0 else NEEDED_FILES, hard)
    )
    uvloop.run(
        _table(arguments.only, *((QUICK, QUICK_ROUNDS) if arguments.quick else (FULL, FULL_ROUNDS)))
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= LARGEST_COUNT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {LARGEST_COUNT:,}")
    return int(text)


def _input(text: str) -> tuple[str, float]:
    """`name=value` of an input of the plan."""
    name, _, value = text.partition("=")
    if name not in plan.Inputs.__struct_fields__:
        raise argparse.ArgumentTypeError(
            f"{name!r} is not an input; there are {', '.join(plan.Inputs.__struct_fields__)}"
        )
    try:
        number = float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number") from None
    if not 0 <= number <= LARGEST_COUNT or (name == "use" and not 0 < number <= 1):
        raise argparse.ArgumentTypeError(f"{name} cannot be {value}")
    return name, number


async def _table(names: list[str], size: Size, rounds: int) -> None:
    print(LINE.format("", "P", "ours", "ours/P", "target", ""), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary, label) for label in ("plain", "mcp", "memory")]
        for folder in folders:
            folder.mkdir()
        plain, with_mcp, with_memory = folders
        async with (
            servers.upstream().running() as upstream,
            servers.mcp_server().running() as mcp,
            AsyncExitStack() as stack,
        ):
            databases = Databases()
            stack.push_async_callback(databases.close)
            service = servers.service(upstream.port, plain)
            theirs = Bench(
                program=servers.reference(upstream.port),
                service=service,
                upstream_port=upstream.port,
                size=size,
                with_mcp=servers.service_with_mcp(upstream.port, mcp.port, with_mcp),
                mcp_port=mcp.port,
                with_memory=servers.service_with_memory(upstream.port, with_memory),
                long_sessions=[Conversation(size.long) for _ in range(size.long_sessions)],
                databases=databases,
            )
            ours = theirs._replace(
                program=service,
                long_sessions=[Conversation(size.long) for _ in range(size.long_sessions)],
            )
            for name in names:
                row = ROWS[name]
                print(
                    _line(
                        row,
                        [
                            (await row.reference(theirs), await row.measure(ours))
                            for _ in range(rounds)
                        ],
                    ),
                    flush=True,
                )
                if row.details is not None:
                    print("\n".join(await row.details(ours)), flush=True)


def _line(row: Row, pairs: list[tuple[float, float]]) -> str:
    """The median of the rounds; the ratio is that of a round, for the machine is not the same in
    all of them."""
    reference, ours = (median(column) for column in zip(*pairs, strict=True))
    ratio = median(our / their for their, our in pairs)
    figures = (f"{reference:.2f}", f"{ours:.2f}", f"{ratio:.2f}")
    if row.target is None:
        return LINE.format(row.title, *figures, "-", "")
    reached = (ours if row.unit else ratio) <= row.target
    return LINE.format(
        row.title, *figures, f"{row.target:g} {row.unit or 'P'}", "ok" if reached else "over"
    )


if __name__ == "__main__":
    main()
