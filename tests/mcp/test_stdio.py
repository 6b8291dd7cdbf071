"""Commands: what they write beyond bounds, a guard that is killed, and what a restart leaves."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from ai_agent_service.core.errors import ToolError
from ai_agent_service.mcp import connection as module
from tests.support.events import until
from tests.support.mcp_connections import call, connected, opened
from tests.support.mcp_rogue import alive, define_rogue, is_running, pids, read_stat

ENDLESS = "(b'x' * 65536 for _ in iter(int, 1))"


async def test_a_line_without_end_ends_the_session_and_leaves_others_their_time(
    tmp_path: Path,
) -> None:
    async with connected(define_rogue("well", tmp_path)) as connection:
        lags = []

        async def measure() -> None:
            while True:
                began = time.monotonic()
                await asyncio.sleep(0.005)
                lags.append(time.monotonic() - began - 0.005)

        measuring = asyncio.create_task(measure())
        with pytest.raises(ToolError, match="not known whether it was carried out"):
            await call(connection, "write", ENDLESS)
        measuring.cancel()
        assert sorted(lags)[len(lags) // 2] < 0.02
        assert connection.error is not None
        assert "longer than 64 MiB (max_message_bytes)" in connection.error
        await until(lambda: connection.state == "ready")
        assert await call(connection, "echo", "next") == "next"
    assert alive(tmp_path) == []


async def test_the_limit_of_a_line_is_that_of_the_server(tmp_path: Path) -> None:
    definition = define_rogue("well", tmp_path, max_message_bytes=100_000)
    async with connected(definition) as connection:
        assert len(await call(connection, "echo", "x" * 90_000)) == 90_000
        with pytest.raises(ToolError):
            await call(connection, "echo", "x" * 100_000)
        assert connection.error is not None
        assert "longer than 100000 bytes" in connection.error


async def test_the_end_of_a_guard_is_noticed_though_a_child_of_the_command_lives(
    tmp_path: Path,
) -> None:
    async with connected(define_rogue("has-children", tmp_path)) as connection:
        first = pids(tmp_path)
        os.kill(int(read_stat(int(await call(connection, "pid")))[1]), signal.SIGKILL)
        await until(lambda: connection.status.restarts == 1 and connection.state == "ready")
        await until(lambda: not any(map(is_running, first)))
        assert await call(connection, "echo", "next") == "next"
    assert alive(tmp_path) == []


async def test_a_daemon_that_a_server_leaves_ends_with_the_session(tmp_path: Path) -> None:
    async with connected(define_rogue("leaves-a-daemon", tmp_path)):
        await until(lambda: len(alive(tmp_path)) == 2)
    assert alive(tmp_path) == []


async def test_fifty_restarts_of_a_server_that_crashes_leave_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(module, "MAX_PAUSE", 0.001)
    definition = define_rogue("exits", tmp_path, env={"ROGUE_SECRET": "x"})
    async with opened(definition) as servers:
        await until(lambda: servers["rogue"].status.restarts >= 2)
    before = _count_descriptors()
    async with opened(definition) as servers:
        await until(lambda: servers["rogue"].status.restarts >= 50, 120)
    await until(lambda: _count_descriptors() <= before)
    assert alive(tmp_path) == []


@pytest.mark.parametrize(
    ("user", "is_root", "reason"),
    [
        ("no-such-user", True, "The user 'no-such-user' is not known on this machine"),
        ("nobody", False, "Only root can run a command as the user 'nobody'"),
    ],
)
async def test_a_server_whose_user_cannot_be_taken_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str, is_root: bool, reason: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0 if is_root else 1000)
    async with opened(define_rogue("well", tmp_path, user=user)) as servers:
        assert servers["rogue"].state == "off"
        assert (servers["rogue"].error or "").startswith(reason)


def _count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
