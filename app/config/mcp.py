"""Reads which MCP servers mcp.json defines."""

from pathlib import Path

from app.config.files import read_json
from app.core.errors import Fault


def read_server_labels(path: Path) -> tuple[frozenset[str], list[Fault]]:
    """The labels of the servers in `path`, in either form that MCP hosts write, and what is wrong with the file; an absent file has none.

    The forms are a list of objects with `server_label`, and an object whose `mcpServers` maps labels to objects.
    """
    if not path.exists():
        return frozenset(), []
    value, faults = read_json(path)
    if faults:
        return frozenset(), faults
    if isinstance(value, dict) and isinstance(value.get("mcpServers"), dict):
        return frozenset(value["mcpServers"]), []
    if isinstance(value, list) and all(isinstance(entry, dict) and isinstance(entry.get("server_label"), str) for entry in value):
        return frozenset(entry["server_label"] for entry in value), []
    return frozenset(), [
        Fault(
            file=str(path),
            problem="this is neither a list of servers with a server_label nor an object with mcpServers",
            remedy='Write [{"server_label": ..., "server_url": ...}] or {"mcpServers": {...}}',
        )
    ]
