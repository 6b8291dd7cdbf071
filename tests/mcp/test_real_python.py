"""Servers that others wrote in Python, run as commands."""

import subprocess
import sys
from pathlib import Path

import pytest

from ai_agent_service.config.server_definition import ServerDefinition
from ai_agent_service.core.errors import ToolError
from tests.support.fake_upstream import Upstream, reply
from tests.support.mcp_connections import connected, run

WITHOUT_NODE = {"PATH": "/nowhere"}
"""With node and npm at hand, the library that the server reads pages with would install packages
from the network."""


def python_server(
    module: str, *arguments: str, env: dict[str, str] | None = None
) -> ServerDefinition:
    """The server that `module` is."""
    entry = {
        "server_label": "server",
        "command": sys.executable,
        "args": ["-m", module, *arguments],
        "env": env or {},
    }
    return ServerDefinition.model_validate(entry)


async def test_mcp_server_time_tells_the_time() -> None:
    async with connected(
        python_server("mcp_server_time", "--local-timezone", "Europe/Paris")
    ) as server:
        assert [tool.remote.name for tool in server.tools] == ["get_current_time", "convert_time"]
        converted = await run(
            server,
            "convert_time",
            source_timezone="Asia/Tokyo",
            time="09:30",
            target_timezone="UTC",
        )
        assert "T00:30:00+00:00" in converted.content
        with pytest.raises(ToolError, match="No time zone found with key Mars"):
            await run(server, "get_current_time", timezone="Mars")


async def test_mcp_server_git_reads_and_writes_a_repository(tmp_path: Path) -> None:
    for command in (
        ["init", "--quiet"],
        ["config", "user.name", "Ada"],
        ["config", "user.email", "ada@example.org"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)  # noqa: ASYNC221
    (tmp_path / "poem.txt").write_text("roses are red\n", encoding="utf-8")
    async with connected(python_server("mcp_server_git", "--repository", str(tmp_path))) as server:
        assert {"git_status", "git_add", "git_commit", "git_log"} <= {
            tool.remote.name for tool in server.tools
        }
        assert "poem.txt" in (await run(server, "git_status", repo_path=str(tmp_path))).content
        await run(server, "git_add", repo_path=str(tmp_path), files=["poem.txt"])
        await run(server, "git_commit", repo_path=str(tmp_path), message="Add a poem")
        assert "Add a poem" in (await run(server, "git_log", repo_path=str(tmp_path))).content
        with pytest.raises(ToolError, match="is outside the allowed repository"):
            await run(server, "git_status", repo_path=str(tmp_path.parent))
    log = subprocess.run(  # noqa: ASYNC221
        ["git", "log", "--format=%an %s"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert log.stdout == "Ada Add a poem\n"


async def test_mcp_server_fetch_reads_a_page_and_tells_of_one_that_is_not_there() -> None:
    page = reply(
        body=b"<html><body><h1>Roses</h1><p>They are red.</p></body></html>",
        content_type="text/html",
    )
    async with (
        Upstream(page, reply(404)) as site,
        connected(
            python_server(
                "mcp_server_fetch", "--allow-private-ips", "--ignore-robots-txt", env=WITHOUT_NODE
            )
        ) as server,
    ):
        fetched = await run(server, "fetch", url=f"{site.url}/roses")
        assert "They are red." in fetched.content
        assert [request.path for request in site.requests] == ["/roses"]
        with pytest.raises(ToolError, match="status code 404"):
            await run(server, "fetch", url=f"{site.url}/tulips")
        assert [tool.remote.name for tool in server.tools] == ["fetch"]
