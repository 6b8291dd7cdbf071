"""Secrets that servers repeat reach neither a model nor a client."""

import json
from pathlib import Path

import pytest

from ai_agent_service.core.errors import ToolError
from ai_agent_service.core.messages import Link
from ai_agent_service.mcp.wording import add_known_secrets, redact_output
from ai_agent_service.tools.base import ToolOutput
from tests.support.events import until
from tests.support.mcp_connections import call, connected, opened
from tests.support.mcp_rogue import define_rogue
from tests.support.mcp_rogue_http import HttpRogue

SECRET = "canary-9d2f4c1b"
OTHER = "canary-71e0aa35"


async def test_a_key_of_the_service_is_redacted_in_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    async with connected(define_rogue("well", tmp_path)) as connection:
        assert await call(connection, "echo", f"got {SECRET}!") == "got [redacted]!"


async def test_a_key_of_another_server_is_redacted_in_a_result(tmp_path: Path) -> None:
    other = define_rogue("well", tmp_path, server_label="other", credentials=(OTHER,))
    async with opened(define_rogue("well", tmp_path), other) as servers:
        await until(lambda: all(status.state == "ready" for status in servers.statuses))
        assert await call(servers["rogue"], "echo", OTHER) == "[redacted]"


async def test_a_key_of_the_service_is_redacted_in_an_error(
    rogue: HttpRogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    async with connected(rogue.definition) as connection:
        rogue.error = {"code": -32000, "message": f"no access with {SECRET}"}
        with pytest.raises(ToolError, match=r"^no access with \[redacted\]$"):
            await call(connection, "echo")
        rogue.error = None
        rogue.result = json.dumps(
            {"content": [{"type": "text", "text": f"bad {SECRET}"}], "isError": True}
        )
        with pytest.raises(ToolError, match=r"^bad \[redacted\]$"):
            await call(connection, "echo")


async def test_links_are_redacted_too(tmp_path: Path) -> None:
    definition = add_known_secrets(
        define_rogue("well", tmp_path), {"SOME_TOKEN": SECRET, "SHORT_TOKEN": "abc123"}, []
    )
    link = Link(f"https://x/?key={SECRET}", f"a {SECRET}", f"b {SECRET}", "text/plain")
    found = redact_output(ToolOutput("abc123", links=(link,)), definition)
    clean = Link("https://x/?key=[redacted]", "a [redacted]", "b [redacted]", "text/plain")
    assert found == ToolOutput("abc123", links=(clean,))
