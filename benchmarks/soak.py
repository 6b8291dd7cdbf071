"""python -m benchmarks soak: take many mixed turns, and show that nothing grows or is left over."""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

from benchmarks import servers
from benchmarks.load import Connection, Conversation, connections

CONCURRENCY = 8
TURNS_PER_SESSION = 5
STEP = 5000
"""Turns between two samples."""

SETTLED_AFTER = 20_000
"""Turns after which memory counts: caches and allocators have their size by then."""

MAX_KB_PER_10_000 = 1024
LEFT_SECONDS = 10.0


class Sample(NamedTuple):
    """What the service has after so many turns."""

    turns: int
    memory_kb: int
    descriptors: int
    threads: int
    children: int


async def soak(turns: int) -> list[Sample]:
    """Take `turns` mixed turns, and return the samples; the first is before, the last after all
    connections are closed."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        async with servers.upstream().running() as upstream:
            program = servers.service(upstream.port, folder)
            _add_memory(folder)
            async with program.running() as service:
                samples = [await _take_sample(service, 0)]
                print(_describe(samples[0]), flush=True)
                numbers = count()
                for done in range(STEP, turns + 1, STEP):
                    await _take_turns(service.port, numbers)
                    samples.append(await _take_sample(service, done))
                    print(_describe(samples[-1]), flush=True)
    return samples


def find_problems(samples: list[Sample]) -> list[str]:
    """Return what grew or was left over, a sentence each."""
    first, last = samples[0], samples[-1]
    found = []
    settled = [sample for sample in samples if sample.turns >= SETTLED_AFTER]
    if len(settled) > 1:
        begun = settled[0]
        growth = (last.memory_kb - begun.memory_kb) * 10_000 / (last.turns - begun.turns)
        if growth > MAX_KB_PER_10_000:
            found.append(f"memory grows by {growth:.0f} KB in 10,000 turns")
    # The pool of the database and its threads are opened by the first turns.
    base = samples[1] if len(samples) > 2 else first
    for name in ("descriptors", "threads", "children"):
        if getattr(last, name) > getattr(base, name):
            found.append(f"{name}: {getattr(base, name)} became {getattr(last, name)}")
    return found


def _add_memory(folder: Path) -> None:
    file = folder / "agent_config.json"
    agents = json.loads(file.read_text(encoding="utf-8"))
    remembering = {**agents[0], "agent_id": "remembering", "resources": ["memory"]}
    file.write_text(json.dumps([*agents, remembering]), encoding="utf-8")


async def _take_turns(port: int, numbers: Iterator[int]) -> None:
    left = iter(range(STEP))
    async with connections(port, CONCURRENCY) as opened, asyncio.TaskGroup() as group:
        for connection in opened:
            group.create_task(_share(port, connection, left, numbers))


async def _share(
    port: int, connection: Connection, left: Iterator[int], numbers: Iterator[int]
) -> None:
    """Take turns of every kind, one after the other, while any are left."""
    session = Conversation(0)
    remembered = 0
    for _ in left:
        match next(numbers) % 20:
            case 0:
                await _leave(port)
            case 1:
                await _send_invalid(port)
            case kind if kind < 6:
                await connection.ask("tool")
            case kind if kind < 11:
                await session.turn(connection)
                remembered += 1
                if remembered % TURNS_PER_SESSION == 0:
                    session = Conversation(0)
            case _:
                await connection.ask("plain")


async def _leave(port: int) -> None:
    """Leave in the middle of an answer."""
    async with connections(port, 1) as (connection,):
        pieces = connection.pieces("open")
        await anext(pieces)
        await pieces.aclose()


async def _send_invalid(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 1\r\n\r\n"
    writer.write(head + b"{")
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 400 ")
    writer.close()


async def _take_sample(service: servers.Server, turns: int) -> Sample:
    """Return what the service has once its connections are closed."""
    await service.rests()
    folder = Path(f"/proc/{service.pid}")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LEFT_SECONDS):
            while _count_sockets(folder, service.port):
                await asyncio.sleep(0.1)
    children = [
        child for each in folder.glob("task/*/children") for child in each.read_text().split()
    ]
    return Sample(
        turns,
        service.memory_kb(),
        len(list((folder / "fd").iterdir())),
        len(list((folder / "task").iterdir())),
        len(children),
    )


def _count_sockets(folder: Path, port: int) -> int:
    """Return how many connections to `port` are established."""
    lines = (folder / "net" / "tcp").read_text(encoding="ascii").splitlines()[1:]
    local = f":{port:04X}"
    return sum(line.split()[1].endswith(local) and line.split()[3] == "01" for line in lines)


def _describe(sample: Sample) -> str:
    return (
        f"{sample.turns:>7,} turns: {sample.memory_kb / 1024:7.1f} MB,"
        f" {sample.descriptors:4} descriptors, {sample.threads:3} threads,"
        f" {sample.children:2} children"
    )
