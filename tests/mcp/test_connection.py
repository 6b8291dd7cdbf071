"""One server's connection: how it comes up, what becomes of it and of the calls made through it,
and what its tools are meanwhile."""

import asyncio
import logging
import time
from typing import Any

import msgspec
import pytest

from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import ToolError
from ai_agent_service.mcp import connection as module
from ai_agent_service.mcp.base import ServerConnectionError
from ai_agent_service.tools.base import ToolOutput
from tests.support.events import until
from tests.support.mcp_sessions import (
    LISTEN,
    LOOK,
    ScriptedOpener,
    ScriptedSession,
    called,
    connection_to,
    fails,
    says,
    supervised,
    waits,
)

CHANGED = msgspec.structs.replace(
    LOOK, parameters={"type": "object", "properties": {"where": {"type": "string"}}}
)
REWORDED = msgspec.structs.replace(LOOK, description="Looks, and tells everybody.")
NOT_SENT = ServerConnectionError("it forgot us", not_sent=True)
BROKE = ServerConnectionError("it broke")
CONTEXT = RunContext(run_id="run_1", agent_id="a", deadline=time.monotonic() + 600)


def told(
    caplog: pytest.LogCaptureFixture, event: str, *, at_least: int = logging.INFO
) -> list[dict[str, Any]]:
    """The extras of the lines `event` in the log."""
    return [
        vars(record)
        for record in caplog.records
        if record.getMessage() == event and record.levelno >= at_least
    ]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that a test can sit out."""
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(module, "MAX_PAUSE", 0.02)
    monkeypatch.setattr(module, "REFRESH_PAUSE", 0.01)


# Coming up


async def test_a_server_has_its_tools_once_it_is_ready() -> None:
    may_open = asyncio.Event()
    connection = connection_to()
    async with supervised(connection, ScriptedOpener(may_open, ScriptedSession(LOOK, LISTEN))):
        assert (connection.state, connection.tools) == ("starting", ())
        assert connection.unavailable == "the tools of eyes (it is just starting)"
        may_open.set()
        await until(lambda: connection.state == "ready")
        assert [tool.spec.name for tool in connection.tools] == ["eyes__look", "eyes__listen"]
        assert connection.unavailable == ""
        assert await called(connection) == "seen"


async def test_a_start_that_fails_leaves_the_server_down_with_the_reason() -> None:
    connection = connection_to()
    async with supervised(connection, ScriptedOpener(ServerConnectionError("it is not there"))):
        await until(lambda: connection.state != "starting")
        assert (connection.state, connection.error) == ("down", "it is not there")
        assert connection.unavailable == "the tools of eyes"


async def test_a_server_that_does_not_tell_its_tools_is_down_and_its_session_closed() -> None:
    session = ScriptedSession()
    session.listing = fails(ServerConnectionError("it does not tell its tools"))
    connection = connection_to()
    async with supervised(connection, ScriptedOpener(session)):
        await until(lambda: connection.state == "down")
        assert connection.error == "it does not tell its tools"
        assert session.closed.is_set()


@pytest.mark.parametrize(
    "opening", [ScriptedSession(), ServerConnectionError("no")], ids=["well", "badly"]
)
async def test_settled_waits_for_the_first_start_however_it_ends(
    opening: ScriptedSession | ServerConnectionError,
) -> None:
    may_open = asyncio.Event()
    connection = connection_to()
    async with supervised(connection, ScriptedOpener(may_open, opening)):
        settled = asyncio.ensure_future(connection.wait_for_start())
        await until(lambda: connection.state == "starting")
        assert not settled.done()
        may_open.set()
        await asyncio.wait_for(settled, 15)
        assert connection.state in ("ready", "down")


async def test_a_server_that_is_off_is_settled_and_refuses_calls() -> None:
    connection = connection_to(off="KEY is not set.")
    await asyncio.wait_for(connection.wait_for_start(), 15)
    assert (connection.state, connection.error, connection.unavailable) == (
        "off",
        "KEY is not set.",
        "",
    )


# Trying again


async def test_pauses_double_while_a_server_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.02)
    opener = ScriptedOpener(ServerConnectionError("no"))
    async with supervised(connection_to(), opener):
        await until(lambda: len(opener.began) >= 6)
    pauses = [
        later - earlier for earlier, later in zip(opener.began, opener.began[1:], strict=False)
    ]
    assert all(pause >= 0.02 * 2**number / 2 * 0.95 for number, pause in enumerate(pauses)), pauses


async def test_pauses_do_not_grow_beyond_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(module, "MAX_PAUSE", 0.02)
    opener = ScriptedOpener(ServerConnectionError("no"))
    async with supervised(connection_to(), opener):
        await until(
            lambda: len(opener.began) >= 14
        )  # with the twelfth pause alone it would take 10 seconds more


async def test_pauses_vary_so_that_servers_are_not_tried_all_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 100.0)
    monkeypatch.setattr(module, "MAX_PAUSE", 100.0)
    for _ in range(10):
        connection = connection_to()
        async with supervised(connection, ScriptedOpener(ServerConnectionError("no"))):
            await until(
                lambda connection=connection: connection.state == "down"  # type: ignore[misc]
            )
    pauses = [line["again_in_seconds"] for line in told(caplog, "mcp.down")]
    assert len(pauses) == 10
    assert len(set(pauses)) > 1
    assert all(50 <= pause <= 100 for pause in pauses)


async def test_a_reason_that_stays_the_same_is_told_once(
    quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    opener = ScriptedOpener(
        ServerConnectionError("no"),
        ServerConnectionError("no"),
        ServerConnectionError("no"),
        ServerConnectionError("no, really"),
    )
    async with supervised(connection_to(), opener):
        await until(lambda: len(opener.began) >= 6)
    assert [line["reason"] for line in told(caplog, "mcp.down", at_least=logging.WARNING)] == [
        "no",
        "no, really",
    ]


async def test_a_server_that_comes_back_is_ready_again(quick: None) -> None:
    connection = connection_to()
    async with supervised(
        connection,
        ScriptedOpener(ServerConnectionError("no"), ServerConnectionError("no"), ScriptedSession()),
    ):
        await until(lambda: connection.state == "ready")
        assert (connection.error, await called(connection)) == (None, "seen")


@pytest.mark.parametrize(
    "error",
    [RuntimeError("what"), ExceptionGroup("many", [ValueError("what")]), asyncio.CancelledError()],
)
async def test_what_nobody_expected_of_an_opener_leaves_the_server_down_and_not_dead(
    quick: None, error: BaseException
) -> None:
    may_open = asyncio.Event()
    connection = connection_to()
    async with supervised(connection, ScriptedOpener(error, may_open, ScriptedSession())):
        await until(lambda: connection.error is not None)
        assert connection.error == f"it failed unexpectedly ({type(error).__name__})"
        may_open.set()
        await until(lambda: connection.state == "ready")


async def test_what_nobody_expected_of_a_session_takes_it_out_of_use(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.01)
    first = ScriptedSession()
    first.pinging = fails(ValueError("what"))
    may_open = asyncio.Event()
    connection = connection_to()
    opener = ScriptedOpener(first, may_open, ScriptedSession(answer=says("seen by the second")))
    async with supervised(connection, opener):
        await until(lambda: len(opener.began) == 2)
        call = asyncio.ensure_future(called(connection))
        await until(lambda: call.done() or connection.state == "starting")
        may_open.set()
        assert (await call, first.calls) == ("seen by the second", [])


# A session that is lost


async def test_a_lost_session_is_replaced_and_a_call_waits_for_that(
    caplog: pytest.LogCaptureFixture,
) -> None:
    second = ScriptedSession(answer=says("seen by the second"))
    may_open = asyncio.Event()
    opener = ScriptedOpener(ScriptedSession(), may_open, second)
    connection = connection_to()
    async with supervised(connection, opener):
        await until(lambda: connection.state == "ready")
        assert opener.listener is not None
        opener.listener.handle_session_end("it exited with code 1")
        await until(lambda: len(opener.began) == 2)
        call = asyncio.ensure_future(called(connection))
        await asyncio.sleep(0)
        assert (
            connection.state,
            connection.error,
            [tool.remote.name for tool in connection.tools],
        ) == (
            "starting",
            "it exited with code 1",
            ["look"],
        )
        assert not call.done()
        may_open.set()
        assert await call == "seen by the second"
    assert [line["reason"] for line in told(caplog, "mcp.down", at_least=logging.WARNING)] == [
        "it exited with code 1"
    ]


@pytest.mark.parametrize(
    ("level", "reason"),
    [
        (logging.INFO, "it exited with code 1"),
        (logging.DEBUG, "it exited with code 1: canary of a call"),
    ],
)
async def test_the_last_words_of_a_server_that_may_have_been_called_are_told_at_debug_level_only(
    caplog: pytest.LogCaptureFixture, level: int, reason: str
) -> None:
    caplog.set_level(level, "ai_agent_service.mcp")
    connection, opener = connection_to(), ScriptedOpener(ScriptedSession(), ScriptedSession())
    async with supervised(connection, opener):
        await until(lambda: connection.state == "ready")
        assert opener.listener is not None
        opener.listener.handle_session_end("it exited with code 1: canary of a call")
        await until(lambda: bool(told(caplog, "mcp.down")))
    assert [line["reason"] for line in told(caplog, "mcp.down")] == [reason]


async def test_a_call_does_not_wait_longer_than_its_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "RECONNECT_WAIT_SECONDS", 0.05)
    opener = ScriptedOpener(ScriptedSession(), asyncio.Event(), ScriptedSession())
    connection = connection_to()
    async with supervised(connection, opener):
        await until(lambda: connection.state == "ready")
        connection.handle_session_end("gone")
        await until(lambda: len(opener.began) == 2)
        with pytest.raises(ToolError, match="eyes is not available at the moment"):
            await called(connection)
        assert connection.state == "starting"


async def test_a_server_that_is_down_fails_calls_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECONNECT_WAIT_SECONDS", 60.0)
    connection = connection_to()
    async with supervised(
        connection, ScriptedOpener(ScriptedSession(), ServerConnectionError("no"))
    ):
        await until(lambda: connection.state == "ready")
        connection.handle_session_end("gone")
        await until(lambda: connection.state == "down")
        with pytest.raises(ToolError, match="eyes is not available at the moment"):
            await called(connection)


async def test_a_server_that_is_down_fails_calls_at_once_while_it_is_tried_again(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECONNECT_WAIT_SECONDS", 60.0)
    opener = ScriptedOpener(
        ScriptedSession(), ServerConnectionError("no"), asyncio.Event(), ScriptedSession()
    )
    connection = connection_to()
    async with supervised(connection, opener):
        await until(lambda: connection.state == "ready")
        connection.handle_session_end("gone")
        await until(lambda: len(opener.began) == 3)
        with pytest.raises(ToolError, match="eyes is not available at the moment"):
            await called(connection)


async def test_a_session_that_is_lost_during_a_check_is_replaced_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.01)
    first = ScriptedSession(answer=fails(NOT_SENT))
    first.pinging = waits(asyncio.Event())
    connection = connection_to()
    async with supervised(
        connection, ScriptedOpener(first, ScriptedSession(answer=says("seen by the second")))
    ):
        await until(lambda: first.pings == 1)
        assert await called(connection) == "seen by the second"


async def test_a_server_that_nobody_calls_is_looked_after(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.01)
    first, second = ScriptedSession(), ScriptedSession()
    first.pinging = fails(ServerConnectionError("it does not answer"))
    opener = ScriptedOpener(first, second)
    connection = connection_to()
    async with supervised(connection, opener):
        await until(lambda: second.pings >= 2)
        assert (connection.state, len(opener.began), first.closed.is_set()) == ("ready", 2, True)


async def test_a_server_that_hangs_is_given_up_in_the_end_though_calls_of_it_are_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.01)
    first = ScriptedSession(answer=waits(asyncio.Event()))
    first.pinging = fails(ServerConnectionError("it does not answer"))
    first.listing = says("")
    connection = connection_to()
    async with supervised(
        connection, ScriptedOpener(first, ScriptedSession(answer=says("seen by the second")))
    ):
        await until(lambda: connection.state == "ready")
        call = asyncio.ensure_future(called(connection))
        await until(lambda: first.calls == ["look"])
        first.listing = fails(ServerConnectionError("it does not tell its tools"))
        await until(lambda: first.closed.is_set(), 20)
        assert await called(connection) == "seen by the second"
        call.cancel()


async def test_cancelling_closes_the_session() -> None:
    session = ScriptedSession()
    connection = connection_to()
    async with supervised(connection, ScriptedOpener(session)):
        await until(lambda: connection.state == "ready")
        assert not session.closed.is_set()
    assert session.closed.is_set()


# Calls


async def test_a_call_that_was_not_sent_is_made_again() -> None:
    first, second = ScriptedSession(answer=fails(NOT_SENT)), ScriptedSession()
    connection = connection_to()
    async with supervised(connection, ScriptedOpener(first, second)):
        await until(lambda: connection.state == "ready")
        assert await called(connection) == "seen"
    assert (first.calls, second.calls) == (["look"], ["look"])


async def test_a_call_is_made_again_only_once() -> None:
    sessions = [ScriptedSession(answer=fails(NOT_SENT)) for _ in range(3)]
    connection = connection_to()
    async with supervised(connection, ScriptedOpener(*sessions)):
        await until(lambda: connection.state == "ready")
        with pytest.raises(ToolError, match="eyes is not available at the moment"):
            await called(connection)
    assert [session.calls for session in sessions] == [["look"], ["look"], []]


async def test_a_call_of_which_nothing_is_known_is_never_made_again() -> None:
    first, second = ScriptedSession(answer=fails(BROKE)), ScriptedSession()
    connection = connection_to()
    async with supervised(connection, ScriptedOpener(first, second)):
        await until(lambda: connection.state == "ready")
        with pytest.raises(
            ToolError, match="broke during the call, and it is not known whether it was carried out"
        ):
            await called(connection)
        await until(lambda: connection.state == "ready")
        assert await called(connection) == "seen"
    assert (first.calls, second.calls) == (["look"], ["look"])


async def test_the_words_of_the_server_are_passed_on_and_its_session_kept() -> None:
    session = ScriptedSession(answer=fails(ToolError("look closer")))
    opener = ScriptedOpener(session)
    connection = connection_to()
    async with supervised(connection, opener):
        await until(lambda: connection.state == "ready")
        with pytest.raises(ToolError, match=r"^look closer$"):
            await called(connection)
        session.answer = says("seen")
        assert await called(connection) == "seen"
    assert len(opener.began) == 1


async def test_calls_that_lose_one_session_together_share_the_next() -> None:
    together = asyncio.Barrier(20)

    async def lose() -> str:
        await together.wait()
        raise NOT_SENT

    opener = ScriptedOpener(
        ScriptedSession(answer=lose), ScriptedSession(), ServerConnectionError("a third session")
    )
    connection = connection_to()
    async with supervised(connection, opener):
        await until(lambda: connection.state == "ready")
        assert await asyncio.gather(*(called(connection) for _ in range(20))) == ["seen"] * 20
        assert (len(opener.began), connection.state) == (2, "ready")


async def test_a_call_that_breaks_late_does_not_harm_the_session_after_it() -> None:
    late = asyncio.Event()

    class Slow(ScriptedSession):
        async def call(
            self, name: str, arguments: dict[str, object], context: RunContext
        ) -> ToolOutput:
            self.calls.append(name)
            await late.wait()
            raise BROKE

    first = Slow()
    opener = ScriptedOpener(first, ScriptedSession())
    connection = connection_to()
    async with supervised(connection, opener):
        await until(lambda: connection.state == "ready")
        slow = asyncio.ensure_future(called(connection))
        await until(lambda: first.calls == ["look"])
        connection.handle_session_end("it exited")
        await until(lambda: connection.status.restarts == 1 and connection.state == "ready")
        late.set()
        with pytest.raises(ToolError, match="it is not known whether it was carried out"):
            await slow
        assert (connection.state, await called(connection), len(opener.began)) == (
            "ready",
            "seen",
            2,
        )


async def test_a_call_that_is_cancelled_leaves_the_session_to_the_others() -> None:
    session = ScriptedSession(answer=waits(asyncio.Event()))
    opener = ScriptedOpener(session)
    connection = connection_to()
    async with supervised(connection, opener):
        await until(lambda: connection.state == "ready")
        call = asyncio.ensure_future(called(connection))
        await until(lambda: session.calls == ["look"])
        call.cancel()
        await asyncio.wait((call,), timeout=15)
        session.answer = says("seen")
        assert await called(connection) == "seen"
    assert len(opener.began) == 1


# The list of tools


async def refreshed(connection: module.Connection, session: ScriptedSession) -> None:
    """Makes the connection list the tools once more and take what it gets."""
    for _ in range(2):  # when the second listing begins, the first was taken
        before = len(session.listed)
        connection.handle_tools_changed()
        await until(lambda before=before: len(session.listed) > before)  # type: ignore[misc]


async def test_tools_that_the_server_says_are_others_are_listed_again(quick: None) -> None:
    session = ScriptedSession(LOOK)
    opener = ScriptedOpener(session)
    connection = connection_to()
    async with supervised(connection, opener):
        await until(lambda: connection.state == "ready")
        session.tools = [LISTEN]
        assert opener.listener is not None
        opener.listener.handle_tools_changed()
        await until(lambda: [tool.remote for tool in connection.tools] == [LISTEN])
    assert len(opener.began) == 1


async def test_a_storm_of_changes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFRESH_PAUSE", 0.05)
    session = ScriptedSession()
    connection = connection_to()

    def after_another_change() -> bool:
        connection.handle_tools_changed()
        return len(session.listed) >= 6

    async with supervised(connection, ScriptedOpener(session)):
        await until(after_another_change)
    pauses = [
        later - earlier for earlier, later in zip(session.listed, session.listed[1:], strict=False)
    ]
    assert all(pause >= 0.05 * 0.95 for pause in pauses), pauses


async def test_the_last_change_of_a_storm_is_not_missed(quick: None) -> None:
    session = ScriptedSession(LOOK)
    may_list = asyncio.Event()
    connection = connection_to()
    async with supervised(connection, ScriptedOpener(session)):
        await until(lambda: connection.state == "ready")
        session.listing = waits(may_list)
        connection.handle_tools_changed()
        await until(lambda: len(session.listed) == 2)
        connection.handle_tools_changed()
        may_list.set()
        await until(lambda: len(session.listed) == 3)


async def test_old_lists_are_refreshed_in_the_background(quick: None) -> None:
    session = ScriptedSession(LOOK)
    connection = connection_to(tools_seconds=0.05)
    async with supervised(connection, ScriptedOpener(session)):
        await until(lambda: connection.state == "ready")
        session.tools = [LOOK, LISTEN]
        await until(lambda: [tool.remote for tool in connection.tools] == [LOOK, LISTEN])
    assert session.calls == []


async def test_nothing_is_listed_on_the_way_of_a_call() -> None:
    session = ScriptedSession()
    connection = connection_to()
    async with supervised(connection, ScriptedOpener(session)):
        await until(lambda: connection.state == "ready")
        for _ in range(5):
            await called(connection)
    assert len(session.listed) == 1


@pytest.mark.parametrize("asked", ["listing", "pinging"])
async def test_a_server_that_is_too_busy_with_calls_to_answer_is_left_at_work(
    quick: None, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.01)
    may_answer = asyncio.Event()
    session = ScriptedSession(answer=waits(may_answer, "done"))
    opener = ScriptedOpener(session)
    connection = connection_to()
    failures = 0

    async def fail() -> str:
        nonlocal failures
        failures += 1
        raise ServerConnectionError("it did not answer")

    async with supervised(connection, opener):
        await until(lambda: connection.state == "ready")
        call = asyncio.ensure_future(called(connection))
        await until(lambda: session.calls == ["look"])
        setattr(session, asked, fail)
        connection.handle_tools_changed()
        await until(lambda: failures >= 2 if asked == "pinging" else failures >= 1)
        setattr(session, asked, says(""))
        await until(lambda pings=session.pings: session.pings > pings)  # type: ignore[misc]
        may_answer.set()
        assert (await call, connection.state, len(opener.began)) == ("done", "ready", 1)


async def test_a_change_whose_listing_failed_is_not_forgotten(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.01)
    session = ScriptedSession(LOOK, answer=waits(asyncio.Event()))
    connection = connection_to()
    async with supervised(connection, ScriptedOpener(session)):
        await until(lambda: connection.state == "ready")
        call = asyncio.ensure_future(called(connection))
        await until(lambda: session.calls == ["look"])
        session.listing = fails(ServerConnectionError("it did not answer"))
        connection.handle_tools_changed()
        await until(lambda: len(session.listed) == 2)
        session.tools, session.listing = [LISTEN], says("")
        call.cancel()
        await until(lambda: [tool.remote for tool in connection.tools] == [LISTEN], 5)


async def test_a_list_without_changes_stays_the_same_object(quick: None) -> None:
    session = ScriptedSession(LOOK, LISTEN)
    connection = connection_to()
    async with supervised(connection, ScriptedOpener(session)):
        await until(lambda: connection.state == "ready")
        before = connection.tools
        await refreshed(connection, session)
        assert connection.tools is before


async def test_a_tool_that_did_not_change_stays_the_same_object_beside_those_that_did(
    quick: None,
) -> None:
    session = ScriptedSession(LOOK, LISTEN)
    connection = connection_to()
    async with supervised(connection, ScriptedOpener(session, session)):
        await until(lambda: connection.state == "ready")
        look, listen = connection.tools
        session.tools = [CHANGED, LISTEN]
        await refreshed(connection, session)
        assert connection.tools[0] is not look
        assert connection.tools[0].spec.parameters == CHANGED.parameters
        assert connection.tools[1] is listen


async def test_tools_survive_a_restart_of_their_server(quick: None) -> None:
    connection = connection_to()
    async with supervised(connection, ScriptedOpener(ScriptedSession(), ScriptedSession())):
        await until(lambda: connection.state == "ready")
        before = connection.tools
        connection.handle_session_end("gone")
        await until(lambda: connection.status.restarts == 1 and connection.state == "ready")
        assert connection.tools is before


async def test_a_tool_that_is_listed_twice_is_taken_once(quick: None) -> None:
    connection = connection_to()
    async with supervised(connection, ScriptedOpener(ScriptedSession(LOOK, LISTEN, CHANGED))):
        await until(lambda: connection.state == "ready")
        assert [tool.remote for tool in connection.tools] == [LOOK, LISTEN]
        assert connection.status.schema_changes == 0


# Tools that change


@pytest.mark.parametrize(("changed", "what"), [(CHANGED, "parameters"), (REWORDED, "description")])
@pytest.mark.parametrize("pinned", [False, True])
async def test_a_change_is_counted_and_told_once(
    quick: None, caplog: pytest.LogCaptureFixture, changed: Any, what: str, pinned: bool
) -> None:
    session = ScriptedSession(LOOK)
    connection = connection_to(pin_tools=pinned)
    async with supervised(connection, ScriptedOpener(session)):
        await until(lambda: connection.state == "ready")
        session.tools = [changed]
        for _ in range(3):
            await refreshed(connection, session)
        assert connection.status.schema_changes == 1
    assert [
        (line["server"], line["tool"], line["changed"]) for line in told(caplog, "mcp.tool_changed")
    ] == [("eyes", "look", what)]


async def test_each_change_counts(quick: None) -> None:
    session = ScriptedSession(LOOK)
    connection = connection_to()
    async with supervised(connection, ScriptedOpener(session)):
        await until(lambda: connection.state == "ready")
        for changed in (CHANGED, REWORDED):
            session.tools = [changed]
            await refreshed(connection, session)
        assert connection.status.schema_changes == 2


async def test_a_change_over_a_restart_is_noticed(quick: None) -> None:
    connection = connection_to()
    async with supervised(
        connection, ScriptedOpener(ScriptedSession(LOOK), ScriptedSession(CHANGED))
    ):
        await until(lambda: connection.state == "ready")
        connection.handle_session_end("gone")
        await until(lambda: connection.status.restarts == 1 and connection.state == "ready")
        assert connection.status.schema_changes == 1


async def test_without_pins_a_changed_tool_is_used_as_it_is(quick: None) -> None:
    session = ScriptedSession(LOOK)
    connection = connection_to()
    async with supervised(connection, ScriptedOpener(session)):
        await until(lambda: connection.state == "ready")
        session.tools = [CHANGED]
        await refreshed(connection, session)
        assert ([tool.remote for tool in connection.tools], await called(connection)) == (
            [CHANGED],
            "seen",
        )
        assert connection.status.quarantined == ()


async def test_a_pinned_tool_that_changed_is_withheld_until_it_is_what_it_was(quick: None) -> None:
    session = ScriptedSession(LOOK, LISTEN)
    connection = connection_to(pin_tools=True)
    async with supervised(connection, ScriptedOpener(session)):
        await until(lambda: connection.state == "ready")
        session.tools = [CHANGED, LISTEN]
        await refreshed(connection, session)
        assert (connection.status.tools, connection.status.quarantined) == (("listen",), ("look",))
        session.tools = [LOOK, LISTEN]
        await refreshed(connection, session)
        assert (connection.status.tools, connection.status.quarantined) == (("look", "listen"), ())
        assert await called(connection) == "seen"


async def test_a_pinned_tool_that_changed_is_withheld_from_a_run_that_still_has_it(
    quick: None,
) -> None:
    session = ScriptedSession(LOOK)
    connection = connection_to(pin_tools=True)
    async with supervised(connection, ScriptedOpener(session)):
        await until(lambda: connection.state == "ready")
        (old,) = connection.tools
        session.tools = [CHANGED]
        await refreshed(connection, session)
        with pytest.raises(ToolError, match="withheld until the operator has looked at it"):
            await connection.call(old, {}, CONTEXT)
    assert session.calls == []


async def test_a_tool_that_is_new_is_not_taken_for_a_change(quick: None) -> None:
    session = ScriptedSession(LOOK)
    connection = connection_to(pin_tools=True)
    async with supervised(connection, ScriptedOpener(session)):
        await until(lambda: connection.state == "ready")
        session.tools = [LOOK, LISTEN]
        await refreshed(connection, session)
        assert (connection.status.tools, connection.status.schema_changes) == (
            ("look", "listen"),
            0,
        )


# What is told of it


async def test_the_status_tells_what_is_known(quick: None) -> None:
    connection = connection_to()
    new = connection.status
    assert (
        new.label,
        new.transport,
        new.state,
        new.tools,
        new.error,
        new.restarts,
        new.connect_seconds,
    ) == (
        *("eyes", "stdio", "starting", (), None, 0),
        None,
    )
    session = ScriptedSession(LOOK, LISTEN)
    session.transport = "sse"
    async with supervised(connection, ScriptedOpener(ServerConnectionError("no"), session)):
        await until(lambda: connection.state == "ready")
        ready = connection.status
    assert (ready.transport, ready.state, ready.tools, ready.error, ready.restarts) == (
        "sse",
        "ready",
        ("look", "listen"),
        None,
        1,
    )
    assert ready.since > new.since
    assert ready.connect_seconds is not None
    assert 0 <= ready.connect_seconds < 15
