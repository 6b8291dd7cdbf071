"""Starts the servers that are measured, each a process of its own, and reads from /proc what they
use."""

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks import load

ROOT = Path(__file__).parent.parent
START_SECONDS = 60.0
STOP_SECONDS = 20.0
REST_SECONDS = 300.0
POLL_SECONDS = 0.005


class Server(NamedTuple):
    """A server that runs."""

    pid: int
    port: int
    seconds_to_healthy: float

    def cpu_ns(self) -> int:
        """Nanoseconds of CPU time that its processes have used."""
        return sum(cpu_ns(pid) for pid in self._processes())

    def own_cpu_ns(self) -> int:
        """As `cpu_ns`, of its first process alone."""
        return cpu_ns(self.pid)

    async def rests(self) -> None:
        """Returns once it has nothing more to do, such as to summarise after an answer."""
        async with asyncio.timeout(REST_SECONDS):
            idle, before = 0, self.cpu_ns()
            while idle < 3:
                await asyncio.sleep(0.1)
                used, before = self.cpu_ns() - before, self.cpu_ns()
                idle = idle + 1 if used < 5_000_000 else 0

    def memory_kb(self) -> int:
        """KB of memory that its processes have resident."""
        lines = (
            line
            for pid in self._processes()
            for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        )
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

    def _processes(self) -> Iterator[int]:
        waiting = [self.pid]
        while waiting:
            pid = waiting.pop()
            yield pid
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                waiting += map(int, children.read_text(encoding="ascii").split())


class Program(NamedTuple):
    """How to start a server: what follows `python -m`, the folder it works in, what its environment
    has besides."""

    arguments: tuple[str, ...]
    folder: Path
    environment: dict[str, str]

    def told(self, **environment: str) -> "Program":
        """The same program with more in its environment."""
        return self._replace(environment={**self.environment, **environment})

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Server, None]:
        """The server, from its first healthy answer on; ended at the end. What it logged is shown
        if anything fails."""
        port = _free_port()
        kept = {
            name: os.environ[name]
            for name in ("PATH", "HOME", "LANG", "TMPDIR")
            if name in os.environ
        }
        started = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", *self.arguments, "--port", str(port)),
            cwd=self.folder,
            env={**kept, **self.environment},
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        logged = asyncio.create_task(process.stderr.read())
        failed = True
        try:
            async with asyncio.timeout(START_SECONDS):
                while not await load.get(port, "/health"):
                    if process.returncode is not None:
                        raise RuntimeError(
                            f"{self.arguments[0]} ended with the code {process.returncode}"
                        )
                    await asyncio.sleep(POLL_SECONDS)
            yield Server(process.pid, port, time.perf_counter() - started)
            failed = False
        finally:
            if process.returncode is None:
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()
            if failed:
                print((await logged).decode(), file=sys.stderr)


def cpu_ns(pid: int) -> int:
    """Nanoseconds of CPU time that a process has used."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text(encoding="ascii").split()[0]) for task in tasks)


def upstream() -> Program:
    """The scripted upstream."""
    return Program(("benchmarks.upstream",), ROOT, {})


def reference(upstream_port: int) -> Program:
    """P, the naive hop."""
    return Program(("benchmarks.reference", "--upstream", _address(upstream_port)), ROOT, {})


def service(upstream_port: int, folder: Path) -> Program:
    """The service as an operator runs it from `folder`, with an agent per model of the upstream and
    all else by default."""
    agents = [
        {
            "agent_id": model,
            "model": model,
            "provider": "openai",
            "system_prompt": "You answer briefly.",
        }
        for model in ("plain", "paced", "open")
    ]
    tool = {
        **agents[0],
        "agent_id": "tool",
        "model": "tool",
        "allowed_regular_tools": ["calculate"],
    }
    (folder / "agent_config.json").write_text(json.dumps([*agents, tool]), encoding="utf-8")
    # The default limit of 100 runs would refuse the row of a thousand open streams.
    environment = {
        "OPENAI_BASE_URL": _address(upstream_port),
        "OPENAI_API_KEY": "x",
        "MAX_CONCURRENT_REQUESTS": "10000",
    }
    return Program(("app.main",), folder, environment)


def service_with_memory(upstream_port: int, folder: Path) -> Program:
    """The service with one agent, that remembers, and all else by default: a database of SQLite in
    `folder`."""
    agent = {
        "agent_id": "remembering",
        "model": "plain",
        "provider": "openai",
        "system_prompt": "You answer briefly.",
        "resources": ["memory"],
    }
    (folder / "agent_config.json").write_text(json.dumps([agent]), encoding="utf-8")
    return Program(
        ("app.main",), folder, {"OPENAI_BASE_URL": _address(upstream_port), "OPENAI_API_KEY": "x"}
    )


def mcp_server() -> Program:
    """The MCP server over HTTP."""
    return Program(("benchmarks.mcp_server",), ROOT, {})


def service_with_mcp(upstream_port: int, mcp_port: int, folder: Path) -> Program:
    """The service with an agent per way to the MCP server, and one whose tool is built in."""
    own = {"provider": "openai", "system_prompt": "You answer briefly."}
    agents: list[dict[str, object]] = [
        {**own, "agent_id": "tool", "model": "tool", "allowed_regular_tools": ["calculate"]}
    ]
    agents += (
        {**own, "agent_id": f"mcp-{label}", "model": f"mcp-{label}", "allowed_mcp_servers": [label]}
        for label in ("stdio", "http")
    )
    (folder / "agent_config.json").write_text(json.dumps(agents), encoding="utf-8")
    mcp = [
        {
            "server_label": "stdio",
            "command": sys.executable,
            "args": ["-m", "benchmarks.mcp_server"],
            "cwd": str(ROOT),
        },
        {"server_label": "http", "server_url": f"http://127.0.0.1:{mcp_port}/mcp"},
    ]
    (folder / "mcp.json").write_text(json.dumps(mcp), encoding="utf-8")
    return Program(
        ("app.main",), folder, {"OPENAI_BASE_URL": _address(upstream_port), "OPENAI_API_KEY": "x"}
    )


def _address(port: int) -> str:
    return f"http://127.0.0.1:{port}/v1"


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port
