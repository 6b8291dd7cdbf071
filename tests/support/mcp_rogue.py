"""The misbehaving stdio server as an entry of mcp.json, and the processes that it leaves."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from ai_agent_service.config.server_definition import ServerDefinition

ROGUE = str(Path(__file__).with_name("mcp_rogue_stdio.py"))


def define_rogue(behaviour: str, folder: Path, **changes: Any) -> ServerDefinition:
    """Define mcp_rogue_stdio.py as a server."""
    entry = {
        "server_label": "rogue",
        "command": sys.executable,
        "args": [ROGUE, behaviour, str(folder)],
        **changes,
    }
    return ServerDefinition.model_validate(entry)


def carried_out(folder: Path) -> list[str]:
    """Return the calls that the server carried out."""
    calls = folder / "calls"
    return calls.read_text(encoding="utf-8").split("\n")[:-1] if calls.exists() else []


def pids(folder: Path) -> list[int]:
    """Return the processes that servers started in `folder`."""
    return [int(path.name.removeprefix("pid-")) for path in folder.glob("pid-*")]


def alive(folder: Path) -> list[int]:
    """Return those of `pids` that run."""
    return [pid for pid in pids(folder) if is_running(pid)]


def is_running(pid: int) -> bool:
    """Return whether a process runs; one that ended and was not waited for does not."""
    with suppress(OSError):
        return read_stat(pid)[0] != "Z"
    return False


def read_stat(pid: int) -> list[str]:
    """Return the state of a process, its parent and more; see proc_pid_stat(5)."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
