"""Processes that the service starts have their pipes and nothing else of it."""

import ast
import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ai_agent_service
from tests.support.events import wait_until
from tests.support.mcp_rogue import ROGUE
from tests.support.processes import serving

PACKAGE = Path(ai_agent_service.__file__).parent
SECRET = "canary-41c7e09b-d0fa9c33"

STARTS = {
    ("maintenance/postgres_backup.py", "subprocess.run"),
    ("mcp/process_guard.py", "os.execvp"),
    ("mcp/process_guard.py", "os.fork"),
    ("mcp/stdio.py", "asyncio.create_subprocess_exec"),
    ("server/workers.py", "self._context.Process"),
}
"""The places of the package that start a process."""

STARTER = re.compile(
    r"subprocess\.\w+|\w*\.?create_subprocess_\w+|\w+\.subprocess_(exec|shell)|os\.(popen|system|fork"
    r"|forkpty|exec\w+|spawn\w+|posix_spawn\w*)|pty\.(fork|spawn)|Popen|.*\.Process"
    r"|anyio\.(open|run)_process|stdio_client|.*ProcessPoolExecutor"
)

UNSAFE = ("close_fds", "pass_fds", "preexec_fn", "shell", "fds_to_pass")
"""Options by which a child may get more than its pipes."""


@pytest.mark.parametrize(
    "workers",
    [1, pytest.param(2, marks=[pytest.mark.slow, pytest.mark.timeout(180)])],
)
def test_a_command_has_its_pipes_and_neither_sockets_nor_secrets(
    tmp_path: Path, workers: int
) -> None:
    agent = {"agent_id": "a", "system_prompt": "x", "allowed_mcp_servers": {"rogue": {}}}
    (tmp_path / "agents.json").write_text(json.dumps([agent]), encoding="utf-8")
    server = {
        "server_label": "rogue",
        "command": sys.executable,
        "args": [ROGUE, "spies", str(tmp_path)],
    }
    (tmp_path / "mcp.json").write_text(json.dumps([server]), encoding="utf-8")
    variables = {"AGENT_CONFIG_FILE": "agents.json", "API_KEYS": SECRET}
    with serving(tmp_path, "--workers", str(workers), **variables) as (_, process):
        wait_until(lambda: len(list(tmp_path.glob("spied-*"))) == workers, 90)
        assert not any(SECRET.encode() in each for each in read_environments(process.pid))
    for file in tmp_path.glob("spied-*"):
        found = json.loads(file.read_text(encoding="utf-8"))
        assert found["accepting"] == []
        assert sorted(found["descriptors"]) == ["0", "1", "2"]
        assert {target.partition(":")[0] for target in found["descriptors"].values()} == {"pipe"}
        if os.geteuid() != 0:  # root may read everything
            assert SECRET not in found["environments"]


def read_environments(pid: int) -> Iterator[bytes]:
    """Yield what the children of a process, and theirs, were started with."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
        with contextlib.suppress(PermissionError):
            yield Path(f"/proc/{child}/environ").read_bytes()
        yield from read_environments(int(child))


def find_calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Yield each call in the package: its file and what is called."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield str(file.relative_to(PACKAGE)), ast.unparse(node.func), node


def test_every_place_that_starts_a_process_is_known_and_passes_no_descriptor() -> None:
    starts = [each for each in find_calls() if STARTER.fullmatch(each[1])]
    assert {(file, name) for file, name, _ in starts} == STARTS
    options = {option.arg for _, _, call in starts for option in call.keywords}
    assert options.isdisjoint(UNSAFE)


def test_nothing_is_made_inheritable() -> None:
    made = [
        (file, ast.unparse(call))
        for file, name, call in find_calls()
        if name.endswith("set_inheritable") and ast.unparse(call.args[-1]) != "False"
    ]
    assert made == []
