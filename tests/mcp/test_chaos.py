"""MCP servers that die, hang, flood, lie and cling: a call ends, the next one works, and nothing
stays behind."""

import asyncio
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from ai_agent_service.core.errors import ToolError
from ai_agent_service.core.messages import ToolCall
from ai_agent_service.tools.toolset import Toolset
from tests.support.events import until
from tests.support.mcp_connections import call, connected, context, opened
from tests.support.mcp_rogue import ROGUE, alive, carried_out, define_rogue, pids
from tests.support.mcp_rogue_http import HttpRogue

ROOT = Path(__file__).parents[2]
SECRET = "canary-5f3a9b"


async def test_a_server_killed_in_the_middle_of_a_call_fails_it_and_serves_the_next(
    tmp_path: Path,
) -> None:
    async with connected(define_rogue("well", tmp_path)) as connection:
        before = await call(connection, "pid")
        began = time.monotonic()
        with pytest.raises(ToolError, match="not known whether it was carried out"):
            await call(connection, "die")
        assert time.monotonic() - began < 5
        assert connection.error is not None
        assert "was ended by SIGKILL" in connection.error
        assert await call(connection, "pid") != before
        assert (connection.status.state, connection.status.error, connection.status.restarts) == (
            "ready",
            None,
            1,
        )
    assert [line.split()[0] for line in carried_out(tmp_path)] == ["pid", "die", "pid"]


async def test_a_server_that_is_killed_while_nobody_calls_is_started_again(tmp_path: Path) -> None:
    async with connected(define_rogue("well", tmp_path)) as connection:
        before = await call(connection, "pid")
        os.kill(int(before), signal.SIGKILL)
        await until(lambda: connection.status.restarts == 1 and connection.state == "ready")
        assert await call(connection, "pid") != before


async def test_a_server_that_dies_at_every_call_is_not_started_in_a_frenzy(tmp_path: Path) -> None:
    async with connected(define_rogue("well", tmp_path)) as connection:
        async with asyncio.timeout(30):
            while connection.state != "down":
                with suppress(ToolError):
                    await call(connection, "die")
                await asyncio.sleep(0.01)
        began = time.monotonic()
        with pytest.raises(ToolError, match="not available"):
            await call(connection, "echo")
        assert time.monotonic() - began < 0.5
        while time.monotonic() - began < 2:
            with suppress(ToolError):
                await call(connection, "die")
            await asyncio.sleep(0.01)
        assert len(pids(tmp_path)) <= 7


async def test_last_words_and_code_of_a_server_that_exits_are_told_without_its_secrets(
    tmp_path: Path,
) -> None:
    definition = define_rogue("exits", tmp_path, env={"ROGUE_SECRET": SECRET}, secrets=(SECRET,))
    async with opened(definition) as servers:
        await until(lambda: servers["rogue"].state == "down")
        assert (
            servers["rogue"].error
            == "it exited with code 3: first words | no licence for [redacted]"
        )
    assert alive(tmp_path) == []


async def test_a_server_that_exits_at_once_is_started_again_after_pauses_that_grow(
    tmp_path: Path,
) -> None:
    async with opened(define_rogue("exits", tmp_path, env={"ROGUE_SECRET": SECRET})):
        await until(lambda: len(pids(tmp_path)) >= 4, 30)
    starts = sorted(path.stat().st_mtime for path in tmp_path.glob("pid-*"))
    pauses = [after - before for before, after in pairwise(starts)]
    assert [pause >= least for pause, least in zip(pauses, (0.25, 0.5, 1.0), strict=False)] == [
        True
    ] * 3
    assert alive(tmp_path) == []


async def test_what_a_server_says_on_stderr_is_logged_at_debug_under_its_label(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "ai_agent_service.mcp")
    async with connected(
        define_rogue("talks-on-stderr", tmp_path, env={"ROGUE_SECRET": SECRET}, secrets=(SECRET,))
    ):
        await until(lambda: any(record.message == "mcp.stderr" for record in caplog.records))
    [record] = [record for record in caplog.records if record.message == "mcp.stderr"]
    assert (record.levelno, vars(record)["server"], vars(record)["line"]) == (
        logging.DEBUG,
        "rogue",
        "hello, [redacted]",
    )
    assert SECRET not in caplog.text


@pytest.mark.parametrize("behaviour", ["floods-stderr", "floods-stderr-without-newlines"])
async def test_a_flood_on_stderr_neither_fills_memory_nor_stops_the_loop(
    tmp_path: Path, behaviour: str
) -> None:
    async with connected(define_rogue(behaviour, tmp_path)) as connection:
        before = _resident_kb()
        spent = time.process_time()
        lags = []
        for number in range(100):
            began = time.monotonic()
            await asyncio.sleep(0.01)
            lags.append(time.monotonic() - began - 0.01)
            if number % 10 == 0:
                assert await call(connection, "echo", str(number)) == str(number)
        assert _resident_kb() - before < 32 * 1024
        assert sorted(lags)[90] < 0.2
        assert time.process_time() - spent < 0.8


def _resident_kb() -> int:
    return int(
        re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))[0]
    )


async def test_some_junk_on_stdout_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(define_rogue("prints-some-junk", tmp_path)) as connection:
        assert await call(connection, "echo", "hi") == "hi"
        assert connection.status.restarts == 0
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_lines_that_a_server_prints_beside_its_answers_never_end_a_call_under_way(
    tmp_path: Path,
) -> None:
    async with connected(define_rogue("prints-a-line-at-every-call", tmp_path)) as connection:
        waiting = asyncio.ensure_future(call(connection, "hang"))
        for number in range(1100):
            assert await call(connection, "echo", str(number)) == str(number)
        assert not waiting.done()
        assert connection.status.restarts == 0
        waiting.cancel()


async def test_a_server_that_prints_nothing_but_junk_is_given_up_and_told_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(define_rogue("prints-junk", tmp_path)) as servers:
        await until(
            lambda: "that are not messages of the protocol" in (servers["rogue"].error or ""), 40
        )
    assert alive(tmp_path) == []
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("behaviour", "processes"), [("clings", 1), ("has-children", 2), ("has-children-and-leaves", 2)]
)
async def test_nothing_of_a_server_that_clings_to_life_is_left(
    tmp_path: Path, behaviour: str, processes: int
) -> None:
    async with connected(define_rogue(behaviour, tmp_path)) as connection:
        assert await call(connection, "echo", "hi") == "hi"
        assert alive(tmp_path)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    await until(lambda: alive(tmp_path) == [], 2)  # whoever reaps it may take a moment
    assert len(pids(tmp_path)) == processes


async def test_nothing_of_a_server_that_is_stopped_is_left(tmp_path: Path) -> None:
    async with connected(define_rogue("well", tmp_path)) as connection:
        os.kill(int(await call(connection, "pid")), signal.SIGSTOP)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert alive(tmp_path) == []


async def test_a_server_that_hangs_in_initialize_delays_nobody_and_is_down_in_time(
    tmp_path: Path,
) -> None:
    began = time.monotonic()
    async with opened(define_rogue("hangs-in-initialize", tmp_path), connect_seconds=1) as servers:
        assert time.monotonic() - began < 0.5
        await until(lambda: servers["rogue"].state == "down")
        assert servers["rogue"].error == "it did not answer within 1 seconds"
    assert alive(tmp_path) == []


async def test_closing_does_not_wait_for_a_server_that_hangs_in_initialize(tmp_path: Path) -> None:
    async with opened(define_rogue("hangs-in-initialize", tmp_path), connect_seconds=60) as servers:
        await until(lambda: bool(pids(tmp_path)))
        assert servers["rogue"].state == "starting"
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert alive(tmp_path) == []


async def test_a_call_that_hangs_ends_in_time_and_is_cancelled_at_the_server(
    tmp_path: Path,
) -> None:
    async with connected(define_rogue("well", tmp_path)) as connection:
        toolset = Toolset(connection.tools, default_timeout=0.3)
        hanging = asyncio.ensure_future(
            toolset.execute(ToolCall("c", "rogue__hang", "{}"), context())
        )
        assert await call(connection, "echo", "meanwhile") == "meanwhile"
        result = await hanging
        assert (result.is_error, result.content) == (
            True,
            "Error: the tool did not answer within 0.3 seconds and was stopped",
        )
        await until((tmp_path / "cancelled").exists)
        assert await call(connection, "echo", "after") == "after"
        assert connection.status.restarts == 0


async def test_a_server_that_is_stopped_fails_calls_in_time_and_serves_once_it_goes_on(
    tmp_path: Path,
) -> None:
    async with connected(define_rogue("well", tmp_path)) as connection:
        pid = int(await call(connection, "pid"))
        toolset = Toolset(connection.tools, default_timeout=0.3)
        os.kill(pid, signal.SIGSTOP)
        try:
            result = await toolset.execute(ToolCall("c", "rogue__echo", '{"text": "x"}'), context())
            assert result.is_error
        finally:
            os.kill(pid, signal.SIGCONT)
        assert await call(connection, "pid") == str(pid)


async def test_a_server_that_reads_no_more_fails_calls_in_time_though_its_pipe_is_full(
    tmp_path: Path,
) -> None:
    async with connected(define_rogue("well", tmp_path)) as connection:
        pid = int(await call(connection, "pid"))
        toolset = Toolset(connection.tools, default_timeout=0.3)
        large = json.dumps({"text": "x" * 1_000_000})
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            results = await asyncio.gather(
                *(toolset.execute(ToolCall("c", "rogue__echo", large), context()) for _ in range(3))
            )
            assert [result.is_error for result in results] == [True] * 3
            assert time.monotonic() - began < 5
        finally:
            os.kill(pid, signal.SIGCONT)
        assert await call(connection, "pid") == str(pid)


async def test_twenty_calls_at_once_each_get_their_own_answer(tmp_path: Path) -> None:
    async with connected(define_rogue("well", tmp_path)) as connection:
        answers = await asyncio.gather(
            *(call(connection, "later", str(number)) for number in range(20))
        )
    assert answers == [str(number) for number in range(20)]


async def test_a_lost_session_fails_all_its_calls_and_none_is_made_again(tmp_path: Path) -> None:
    async with connected(define_rogue("well", tmp_path)) as connection:
        pid = int(await call(connection, "pid"))
        waiting = [
            asyncio.ensure_future(call(connection, "hang", str(number))) for number in range(20)
        ]
        await until(lambda: len(carried_out(tmp_path)) == 21)
        os.kill(pid, signal.SIGKILL)
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(
            isinstance(result, ToolError) and "not known" in str(result) for result in results
        )
        assert await call(connection, "echo", "after") == "after"
    assert len(carried_out(tmp_path)) == 22


async def test_fifty_rounds_leave_no_process_task_or_descriptor(tmp_path: Path) -> None:
    async with connected(define_rogue("well", tmp_path)):
        pass  # what is loaded once is loaded now
    before = _held()
    for number in range(10):
        async with opened(
            *(define_rogue("well", tmp_path, server_label=f"s{label}") for label in range(5))
        ) as servers:
            await until(
                lambda servers=servers: all(  # type: ignore[misc]
                    status.state == "ready" for status in servers.statuses
                ),
                40,
            )
            assert await call(servers["s0"], "echo", str(number)) == str(number)
    await until(lambda: _held() == before, 10)
    assert (len(pids(tmp_path)), alive(tmp_path)) == (51, [])


def _held() -> tuple[int, int, int]:
    """How many descriptors, tasks and children there are."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    return len(list(Path("/proc/self/fd").iterdir())), len(asyncio.all_tasks()), len(children)


HOLDER = """
import asyncio, json, os, sys
from ai_agent_service.config.server_definition import ServerDefinition
from ai_agent_service.mcp.supervisor import open_servers

async def main():
    definitions = [ServerDefinition.model_validate(entry) for entry in json.loads(sys.argv[1])]
    labels = {definition.server_label for definition in definitions}
    async with open_servers(
        definitions, os.environ, wanted=labels, connect_seconds=30, tools_seconds=3600
    ) as servers:
        await servers.wait_for_start(30)
        print([status.state for status in servers.statuses], flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_no_server_outlives_a_process_of_ours_that_is_killed(tmp_path: Path) -> None:
    behaviours = ("well", "clings", "has-children")
    entries = [
        {
            "server_label": name,
            "command": sys.executable,
            "args": [ROGUE, name, str(tmp_path)],
            "env": {"PYTHONPATH": str(ROOT)},
        }
        for name in behaviours
    ]
    command = [sys.executable, "-c", HOLDER, json.dumps(entries)]
    holder = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert holder.stdout is not None
    try:
        async with asyncio.timeout(40):
            assert await holder.stdout.readline() == b"['ready', 'ready', 'ready']\n"
        assert len(alive(tmp_path)) == 4
    finally:
        holder.kill()
        await holder.communicate()
    await until(lambda: alive(tmp_path) == [], 20)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 0)])
async def test_no_server_outlives_the_service(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    behaviours = ("well", "clings", "has-children")
    agent = {
        "agent_id": "a",
        "system_prompt": "x",
        "provider": "demo",
        "allowed_mcp_servers": {name: {} for name in behaviours},
    }
    (tmp_path / "agent_config.json").write_text(json.dumps([agent]), encoding="utf-8")
    servers = {
        name: {"command": sys.executable, "args": [ROGUE, name, str(tmp_path)]}
        for name in behaviours
    }
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": servers}), encoding="utf-8")
    command = [sys.executable, "-m", "app.main", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    service = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await until(lambda: len(alive(tmp_path)) == 4, 40)
        service.send_signal(number)
        async with asyncio.timeout(30):
            assert await service.wait() == code
    finally:
        with suppress(ProcessLookupError):
            service.kill()
    await until(lambda: alive(tmp_path) == [], 20)


@pytest.fixture
async def http_rogue() -> AsyncGenerator[HttpRogue, None]:
    """One that runs."""
    server = HttpRogue()
    await server.start()
    yield server
    await server.stop()


async def test_an_http_server_restarted_between_calls_serves_the_next_one_once(
    http_rogue: HttpRogue,
) -> None:
    async with connected(http_rogue.definition) as connection:
        assert await call(connection, "echo", "one") == "one"
        await http_rogue.stop()
        await http_rogue.start()
        assert await call(connection, "echo", "two") == "two"
        assert connection.status.restarts == 1
    assert http_rogue.calls == ["one", "two"]


async def test_an_http_server_that_is_gone_fails_calls_at_once_and_comes_back_by_itself(
    http_rogue: HttpRogue,
) -> None:
    async with connected(http_rogue.definition) as connection:
        await http_rogue.stop()
        with pytest.raises(ToolError, match="not available"):
            await call(connection, "echo", "one")
        await until(lambda: connection.state == "down")
        began = time.monotonic()
        with pytest.raises(ToolError, match="not available"):
            await call(connection, "echo", "two")
        assert time.monotonic() - began < 0.5
        assert connection.error is not None
        assert connection.error.startswith("it cannot be reached")
        await http_rogue.start()
        await until(lambda: connection.state == "ready", 30)
        assert await call(connection, "echo", "three") == "three"
    assert http_rogue.calls == ["three"]


async def test_an_http_server_that_accepts_and_never_answers_is_down_in_time(
    http_rogue: HttpRogue,
) -> None:
    http_rogue.silent = True
    async with opened(http_rogue.definition, connect_seconds=1) as servers:
        await until(lambda: servers["rogue"].state == "down")
        assert servers["rogue"].error == "it did not answer within 1 seconds"
        began = time.monotonic()
    assert time.monotonic() - began < 10


async def test_twenty_calls_at_once_over_http_each_get_their_own_answer(
    http_rogue: HttpRogue,
) -> None:
    async with connected(http_rogue.definition) as connection:
        answers = await asyncio.gather(
            *(call(connection, "later", str(number)) for number in range(20))
        )
    assert answers == [str(number) for number in range(20)]


async def test_a_lost_http_session_fails_all_its_calls_and_none_is_made_again(
    http_rogue: HttpRogue,
) -> None:
    never = asyncio.Event()

    async def wait(_: str) -> None:
        await never.wait()

    async with connected(http_rogue.definition) as connection:
        http_rogue.on_call = wait
        waiting = [
            asyncio.ensure_future(call(connection, "echo", str(number))) for number in range(20)
        ]
        await until(lambda: len(http_rogue.calls) == 20)
        http_rogue.stop_listening()
        async with asyncio.timeout(5):
            results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(
            isinstance(result, ToolError) and "not known" in str(result) for result in results
        )
        http_rogue.on_call = None
        never.set()
        await http_rogue.start()
        await until(lambda: connection.state == "ready", 30)
        assert await call(connection, "echo", "after") == "after"
    assert len(http_rogue.calls) == 21


async def test_fifty_rounds_over_http_leave_no_task_or_descriptor(http_rogue: HttpRogue) -> None:
    async with connected(http_rogue.definition):
        pass
    await until(lambda: not http_rogue.connections)
    before = _held()
    for number in range(50):
        async with connected(http_rogue.definition) as connection:
            assert await call(connection, "echo", str(number)) == str(number)
    await until(lambda: not http_rogue.connections and _held() == before, 10)
