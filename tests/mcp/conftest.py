"""What the tests of MCP need of the machine: node, and the servers that are written for it."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.support.mcp_rogue_http import HttpRogue

FOLDER = Path(__file__).with_name("npm")


@pytest.fixture(scope="session")
def node_servers() -> Path:
    """The folder of the npm packages of tests/mcp/npm, installed as package-lock.json says."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        problem = "node and npm are needed to test MCP servers that are written for them"
        if os.environ.get("CI"):
            pytest.fail(problem)
        pytest.skip(problem)
    modules = FOLDER / "node_modules"
    installed, locked = (
        modules / ".installed",
        hashlib.sha256((FOLDER / "package-lock.json").read_bytes()).hexdigest(),
    )
    with (FOLDER / "package.json").open(encoding="utf-8") as held:
        fcntl.flock(
            held, fcntl.LOCK_EX
        )  # another process of the same run may be about to do the same
        if not installed.exists() or installed.read_text(encoding="ascii") != locked:
            command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
            done = subprocess.run(
                command, cwd=FOLDER, capture_output=True, text=True, check=False, timeout=150
            )
            assert done.returncode == 0, done.stderr
            installed.write_text(locked, encoding="ascii")
    return modules / "@modelcontextprotocol"


@pytest.fixture
async def rogue() -> AsyncGenerator[HttpRogue, None]:
    """A server that runs."""
    server = HttpRogue()
    await server.start()
    yield server
    await server.stop()
