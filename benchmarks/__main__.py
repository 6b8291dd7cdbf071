"""python -m benchmarks [--quick] [--only ROW ...]: measures the rows of the table and prints it."""

import argparse
import resource
import tempfile
from pathlib import Path
from statistics import median

import uvloop

from benchmarks import servers
from benchmarks.rows import ROWS, Bench, Row, Size

FULL, FULL_ROUNDS = Size(turns=2000, batches=6, pairs=400, open_streams=1000, calls=1000), 3
QUICK, QUICK_ROUNDS = Size(turns=64, batches=1, pairs=20, open_streams=50, calls=20), 1
NEEDED_FILES = 8192
"""A thousand open streams are two thousand sockets in the server."""

LINE = "{:<40}{:>9}{:>9}{:>8}{:>10}  {}"


def main() -> None:
    """Measures and prints; an answer that is not complete ends it with a traceback."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures what the service costs beside the naive hop P.")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=f"some of the rows: {', '.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="measure very little, only to show that it works")
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, NEEDED_FILES) if hard >= 0 else NEEDED_FILES, hard))
    uvloop.run(_table(arguments.only, *((QUICK, QUICK_ROUNDS) if arguments.quick else (FULL, FULL_ROUNDS))))


async def _table(names: list[str], size: Size, rounds: int) -> None:
    print(LINE.format("", "P", "ours", "ours/P", "target", ""), flush=True)
    with tempfile.TemporaryDirectory() as plain, tempfile.TemporaryDirectory() as with_mcp:
        async with servers.upstream().running() as upstream, servers.mcp_server().running() as mcp:
            mcp_program = servers.service_with_mcp(upstream.port, mcp.port, Path(with_mcp))
            theirs = Bench(servers.reference(upstream.port), upstream.port, size, mcp_program, mcp.port)
            ours = Bench(servers.service(upstream.port, Path(plain)), upstream.port, size, mcp_program, mcp.port)
            for name in names:
                row = ROWS[name]
                print(_line(row, [(await row.reference(theirs), await row.measure(ours)) for _ in range(rounds)]), flush=True)


def _line(row: Row, pairs: list[tuple[float, float]]) -> str:
    """The median of the rounds; the ratio is that of a round, for the machine is not the same in all of them."""
    reference, ours = (median(column) for column in zip(*pairs, strict=True))
    ratio = median(our / their for their, our in pairs)
    reached = (ours if row.unit else ratio) <= row.target
    target = f"{row.target:g} {row.unit or 'P'}"
    return LINE.format(row.title, f"{reference:.2f}", f"{ours:.2f}", f"{ratio:.2f}", target, "ok" if reached else "over")


if __name__ == "__main__":
    main()
