"""Entries of mcp.json for commands that run in a folder."""

import contextlib
import json
import socket
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

TIME = {
    "server_label": "time",
    "command": sys.executable,
    "args": ["-m", "mcp_server_time", "--local-timezone", "UTC"],
}
KEYLESS = {
    "server_label": "wiki",
    "server_url": "https://wiki.invalid/mcp",
    "header": {"Authorization": "Bearer ${NO_SUCH_WIKI_KEY}"},
}


@contextlib.contextmanager
def dead_server() -> Generator[dict[str, str], None, None]:
    """Reserve an address at which no server listens; yield its entry, `dead`."""
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        yield {
            "server_label": "dead",
            "server_url": f"http://127.0.0.1:{nobody_listens.getsockname()[1]}/mcp",
        }


def configure(folder: Path, *servers: dict[str, Any], **allowed: Any) -> dict[str, str]:
    """Write `servers` and one agent that is `allowed` to use them; return the command's
    environment."""
    agent = {"agent_id": "a", "system_prompt": "x", "allowed_mcp_servers": allowed}
    (folder / "agents.json").write_text(json.dumps([agent]), encoding="utf-8")
    (folder / "mcp.json").write_text(json.dumps(servers), encoding="utf-8")
    return {"AGENT_CONFIG_FILE": "agents.json"}
