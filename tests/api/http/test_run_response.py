"""How a run is sent: leaving clients, time limits, load shedding, keep-alive comments."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import pytest
from fastapi import FastAPI
from starlette.types import Message

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.api.http.run_response import StreamedRun
from ai_agent_service.api.openai.chat_stream import ChunkFrames
from ai_agent_service.auth.principal import LOCAL, Principal
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import ServerBusyError
from ai_agent_service.core.events import RunEvent, RunFinished, TextDelta
from ai_agent_service.core.turn import Turn
from ai_agent_service.limits.limiter import InProcessLimiter
from ai_agent_service.runtime.opening import open_service
from ai_agent_service.server.application import create_app
from ai_agent_service.server.http1 import BoundedProtocol
from ai_agent_service.tools.function import FunctionTool, tool
from tests.support.agents import CancelsItself
from tests.support.clients import (
    CHAT,
    Watched,
    asking,
    connected,
    join_deltas,
    read_chunks,
    read_completion,
    read_error,
    read_stream,
)
from tests.support.fake_provider import Script, calls, says
from tests.support.openai_schema import checked_stream
from tests.support.service import AGENT, configuration, open_client, serving

STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
WAIT = 10.0
"""Seconds after which a wait has failed."""


@contextlib.asynccontextmanager
async def one_at_a_time(
    folder: Path, script: Watched, **settings: Any
) -> AsyncGenerator[tuple[str, httpx2.AsyncClient], None]:
    """A real server that takes one run at a time, its address and a client of it."""
    app = create_app(configuration(folder, script, max_concurrent_requests=1, **settings))
    async with (
        asyncio.timeout(3 * WAIT),
        serving(app) as address,
        httpx2.AsyncClient(base_url=address, timeout=WAIT) as client,
    ):
        yield address, client


async def leave(writer: asyncio.StreamWriter) -> None:
    """Closes the connection as a client that gives up."""
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


# The client leaves


@STREAMED
async def test_a_client_that_leaves_before_the_first_token_stops_the_provider(
    tmp_path: Path, stream: bool
) -> None:
    script = Watched([asyncio.Event()], says("Hi"))
    async with one_at_a_time(tmp_path, script) as (address, client):
        _, writer = await connected(address, asking(stream=stream))
        await script.waiting.wait()
        read_error(await client.post(CHAT, json=asking()), 429)
        await leave(writer)
        async with asyncio.timeout(1):
            await script.ended.wait()
        read_completion(await client.post(CHAT, json=asking()))


async def test_a_client_that_leaves_mid_stream_stops_the_provider(tmp_path: Path) -> None:
    script = Watched([TextDelta("Half"), asyncio.Event()], says("Hi"))
    async with one_at_a_time(tmp_path, script) as (_, client):
        async with client.stream("POST", CHAT, json=asking(stream=True)) as response:
            async for line in response.aiter_lines():
                if '"Half"' in line:
                    break
            assert not script.ended.is_set()
        async with asyncio.timeout(1):
            await script.ended.wait()
        read_completion(await client.post(CHAT, json=asking()))


async def test_a_client_that_leaves_mid_answer_of_a_whole_reply_stops_the_provider(
    tmp_path: Path,
) -> None:
    script = Watched([TextDelta("Half"), asyncio.Event()], says("Hi"))
    async with one_at_a_time(tmp_path, script) as (address, client):
        _, writer = await connected(address, asking())
        await script.waiting.wait()
        await leave(writer)
        async with asyncio.timeout(1):
            await script.ended.wait()
        read_completion(await client.post(CHAT, json=asking()))


@STREAMED
async def test_a_client_that_leaves_stops_the_tools(tmp_path: Path, stream: bool) -> None:
    slow, begun, stopped = a_slow_tool()
    agent = {**AGENT, "allowed_regular_tools": ["slow"]}
    script = Watched(calls(("slow", {"number": 1}), ("slow", {"number": 2})), says("Hi"))
    async with one_at_a_time(tmp_path, script, agents=[agent], tools=[slow]) as (address, client):
        _, writer = await connected(address, asking(stream=stream))
        await begun.wait()
        await leave(writer)
        async with asyncio.timeout(1):
            await stopped.wait()
        read_completion(await client.post(CHAT, json=asking()))


@STREAMED
async def test_a_client_of_the_agents_api_that_leaves_stops_the_run(
    tmp_path: Path, stream: bool
) -> None:
    script = Watched([TextDelta("Half"), asyncio.Event()], says("Hi"))
    async with one_at_a_time(tmp_path, script) as (address, client):
        _, writer = await connected(
            address, {"message": "Hello", "stream": stream}, "/agents/helper/chat"
        )
        await script.waiting.wait()
        await leave(writer)
        async with asyncio.timeout(1):
            await script.ended.wait()
        assert (
            await client.post("/agents/helper/chat", json={"message": "Hello"})
        ).status_code == 200


async def test_the_connection_serves_on_after_an_answer(tmp_path: Path) -> None:
    script = Watched(says("Hi"))
    async with one_at_a_time(tmp_path, script) as (_, client):
        for _ in range(3):
            read_chunks(await client.post(CHAT, json=asking(stream=True)))
            read_completion(await client.post(CHAT, json=asking()))
    assert script.closed == 6


def a_slow_tool() -> tuple[FunctionTool, asyncio.Event, asyncio.Event]:
    """A tool that never ends, what is set once two of its calls have begun, and what is set once
    both were stopped."""
    counts = {"begun": 0, "stopped": 0}
    begun, stopped = asyncio.Event(), asyncio.Event()

    @tool
    async def slow(number: int) -> str:
        """Takes for ever."""
        counts["begun"] += 1
        if counts["begun"] == 2:
            begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            counts["stopped"] += 1
            if counts["stopped"] == 2:
                stopped.set()
        return str(number)

    return slow, begun, stopped


# Load


@STREAMED
async def test_runs_over_the_limit_are_shed_and_the_next_is_taken_once_one_has_ended(
    tmp_path: Path, stream: bool
) -> None:
    gate = asyncio.Event()
    script = Watched([TextDelta("Slow"), gate, *says("ly")], says("Hi"))
    async with one_at_a_time(tmp_path, script) as (_, client):
        first = asyncio.create_task(client.post(CHAT, json=asking(stream=stream)))
        await script.waiting.wait()
        for path, body in (
            (CHAT, asking(stream=stream)),
            ("/agents/helper/chat", {"message": "Hello", "stream": stream}),
        ):
            response = await client.post(path, json=body)
            error = read_error(response, 429)
            assert (error["type"], error["code"]) == ("rate_limit_error", "server_busy")
            assert response.headers["retry-after"] == "1"
        assert (await client.get("/health")).status_code == 200
        gate.set()
        text = (
            join_deltas(read_chunks(await first))
            if stream
            else read_completion(await first)["choices"][0]["message"]["content"]
        )
        assert text == "Slowly"
        read_completion(await client.post(CHAT, json=asking()))
    assert len(script.requests) == 2


async def test_a_request_that_is_refused_takes_no_slot(tmp_path: Path) -> None:
    async with one_at_a_time(tmp_path, Watched(says("Hi"))) as (_, client):
        for _ in range(2):
            read_error(await client.post(CHAT, json=asking(n=2)), 400)
            read_error(await client.post(CHAT, json=asking(model="nobody")), 404)
            read_completion(await client.post(CHAT, json=asking()))


# Time


class Endless(BaseAgent):
    """An agent that knows no deadline."""

    type: ClassVar[str] = "endless"

    async def run(self, turn: Turn, context: RunContext) -> AsyncGenerator[RunEvent, None]:
        """Says half a sentence and waits for ever."""
        yield TextDelta("Half")
        await asyncio.Event().wait()
        yield RunFinished("stop", None)


def create_endless(folder: Path, script: Script, kind: str, *, seconds: float) -> FastAPI:
    """Return the service with an agent of the type `kind` that has `seconds` for a run."""
    return create_app(
        configuration(
            folder,
            script,
            agents=[{**AGENT, "type": kind}],
            agent_types=[Endless],
            request_timeout=seconds,
        )
    )


ENDLESS = pytest.mark.parametrize("kind", ["agent", "endless"])


@ENDLESS
async def test_a_run_that_takes_too_long_is_a_504(tmp_path: Path, kind: str) -> None:
    script = Watched([TextDelta("Half"), asyncio.Event()])
    app = create_endless(tmp_path, script, kind, seconds=0.05)
    async with asyncio.timeout(WAIT), open_client(app) as client:
        error = read_error(await client.post(CHAT, json=asking()), 504)
    assert (error["type"], error["code"]) == ("timeout_error", "run_timeout")
    assert script.closed == len(script.requests)


@ENDLESS
async def test_a_stream_that_takes_too_long_ends_with_an_error(tmp_path: Path, kind: str) -> None:
    script = Watched([TextDelta("Half"), asyncio.Event()])
    app = create_endless(tmp_path, script, kind, seconds=0.5)
    async with asyncio.timeout(WAIT), open_client(app) as client:
        chunks, error = read_stream(await client.post(CHAT, json=asking(stream=True)))
    assert join_deltas(chunks) == "Half"
    assert error is not None
    assert error["code"] == "run_timeout"
    assert script.closed == len(script.requests)


async def test_a_run_that_is_out_of_time_after_a_tool_asks_the_model_no_more(
    tmp_path: Path,
) -> None:
    slow, _, _ = a_slow_tool()
    script = Watched(calls(("slow", {"number": 1})), says("Hi"))
    agent = {**AGENT, "allowed_regular_tools": ["slow"]}
    async with (
        asyncio.timeout(WAIT),
        open_client(
            create_app(
                configuration(tmp_path, script, agents=[agent], tools=[slow], request_timeout=0.5)
            )
        ) as client,
    ):
        assert read_error(await client.post(CHAT, json=asking()), 504)["code"] == "run_timeout"
    assert len(script.requests) == 1


# Keep-alive


class Caller:
    """The other end of a response, without a network: what it was sent, and when it leaves."""

    def __init__(
        self, until: Callable[[bytes], bool] = lambda body: False, *, slow_at_the_end: bool = False
    ) -> None:
        self.body = b""
        self.messages: list[Message] = []
        self.reached = asyncio.Event()
        """Set once `until` holds for the body so far."""
        self.left = asyncio.Event()
        self.released = asyncio.Event()
        self.last_is_on_its_way = asyncio.Event()
        self._until = until
        self._slow_at_the_end = slow_at_the_end

    async def receive(self) -> Message:
        """Nothing until the caller leaves."""
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Takes a message; the last one only when `released`, if it is a slow caller."""
        self.messages.append(message)
        self.body += message.get("body", b"")
        if self._until(self.body):
            self.reached.set()
        if (
            self._slow_at_the_end
            and message["type"] == "http.response.body"
            and not message.get("more_body")
        ):
            self.last_is_on_its_way.set()
            await self.released.wait()


class Prepared(BaseAgent):
    """An agent whose events are prepared."""

    type: ClassVar[str] = "prepared"
    events: AsyncGenerator[RunEvent, None]

    def run(self, turn: Turn, context: RunContext) -> AsyncGenerator[RunEvent, None]:
        """Return the events."""
        return self.events


@contextlib.asynccontextmanager
async def responding(
    folder: Path, events: AsyncGenerator[RunEvent, None]
) -> AsyncGenerator[StreamedRun, None]:
    """A response that streams `events`, kept alive every hundredth of a second."""
    async with asyncio.timeout(WAIT), open_service(configuration(folder)) as service:
        frames = ChunkFrames("helper", include_usage=False)
        helper = service.catalog.get("helper")
        agent = Prepared(helper.definition, helper.parts)
        agent.events = events
        run = service.create_run(
            agent, Turn(messages=()), Principal(LOCAL), limiter=InProcessLimiter()
        )
        yield StreamedRun(run, frames, keep_alive_seconds=0.01)
        assert service.slots.in_use == 0


async def test_a_quiet_stream_is_kept_alive_by_comments_that_clients_pass_over(
    tmp_path: Path,
) -> None:
    caller = Caller(lambda body: body.count(b": keep-alive\n\n") >= 3)

    async def events() -> AsyncGenerator[RunEvent, None]:
        yield TextDelta("Slow")
        await caller.reached.wait()
        yield TextDelta("ly")
        yield RunFinished("stop", None)

    async with responding(tmp_path, events()) as response:
        await response({"type": "http", "state": {}}, caller.receive, caller.send)
    chunks, error = checked_stream(caller.body.decode())
    assert (join_deltas(chunks), error) == ("Slowly", None)


async def test_a_stream_that_is_quiet_from_the_start_is_begun_by_a_comment(tmp_path: Path) -> None:
    caller = Caller(lambda body: b"keep-alive" in body)

    async def events() -> AsyncGenerator[RunEvent, None]:
        await caller.reached.wait()
        raise ServerBusyError("Not now.")
        yield TextDelta("")

    async with responding(tmp_path, events()) as response:
        await response({"type": "http", "state": {}}, caller.receive, caller.send)
    assert caller.messages[0]["status"] == 200
    chunks, error = checked_stream(caller.body.decode())
    assert chunks == []
    assert error == {
        "message": "Not now.",
        "type": "rate_limit_error",
        "param": None,
        "code": "server_busy",
    }


async def test_nothing_follows_the_last_event_however_long_it_takes_to_send(tmp_path: Path) -> None:
    caller = Caller(slow_at_the_end=True)
    checks = asyncio.Event()

    async def events() -> AsyncGenerator[RunEvent, None]:
        yield RunFinished("stop", None)

    async def receive() -> Message:
        if caller.last_is_on_its_way.is_set():
            counted.append(None)
            if len(counted) > 5:
                checks.set()
        return await caller.receive()

    counted: list[None] = []
    async with responding(tmp_path, events()) as response:
        sending = asyncio.create_task(response({"type": "http", "state": {}}, receive, caller.send))
        await checks.wait()
        caller.released.set()
        await sending
    assert caller.body.endswith(b"data: [DONE]\n\n")
    assert [message.get("more_body") for message in caller.messages[-2:]] == [None, False]


async def test_a_caller_who_leaves_is_sent_nothing_more(tmp_path: Path) -> None:
    caller = Caller()
    closed = asyncio.Event()

    async def events() -> AsyncGenerator[RunEvent, None]:
        yield TextDelta("Half")
        caller.left.set()
        try:
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with responding(tmp_path, events()) as response:
        await response({"type": "http", "state": {}}, caller.receive, caller.send)
    assert closed.is_set()
    assert b"[DONE]" not in caller.body


async def test_the_end_of_the_service_is_the_last_event_of_a_stream(tmp_path: Path) -> None:
    caller = Caller(lambda body: b"Half" in body)

    async def events() -> AsyncGenerator[RunEvent, None]:
        yield TextDelta("Half")
        await asyncio.Event().wait()

    state: dict[str, object] = {}
    async with responding(tmp_path, events()) as response:
        sending = asyncio.create_task(
            response({"type": "http", "state": state}, caller.receive, caller.send)
        )
        await caller.reached.wait()
        sending.cancel()
        await asyncio.wait_for(sending, WAIT)
    assert b'"code":"shutting_down"' in caller.body
    assert state["error"] == "shutting_down"
    assert caller.body.endswith(b"data: [DONE]\n\n")


async def test_an_agent_that_cancels_itself_ends_with_an_error(tmp_path: Path) -> None:
    agents = [{**AGENT, "type": "cancels_itself"}]
    async with open_client(
        create_app(configuration(tmp_path, agents=agents, agent_types=[CancelsItself]))
    ) as client:
        streamed = await client.post(CHAT, json=asking(stream=True))
        collected = await client.post(CHAT, json=asking())
    assert '"code":"internal_error"' in streamed.text
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert collected.status_code == 500


@pytest.mark.parametrize(
    ("site", "status"), [("cross-site", 403), ("same-origin", 200), ("none", 200)]
)
async def test_web_pages_of_other_sites_are_refused(tmp_path: Path, site: str, status: int) -> None:
    async with open_client(create_app(configuration(tmp_path, Watched(says("Hi"))))) as client:
        response = await client.post(CHAT, json=asking(), headers={"Sec-Fetch-Site": site})
    assert response.status_code == status
    assert "x-request-id" in response.headers


class Impatient(BoundedProtocol):
    """The protocol that waits a moment for a caller to read."""

    HEAD_SECONDS = 0.3
    WRITE_SECONDS = 0.3


def flood() -> list[Any]:
    """Return an answer that fills the buffers of a caller that does not read."""
    return [TextDelta("x" * 100_000)] * 400


async def test_a_caller_that_never_reads_is_disconnected(tmp_path: Path) -> None:
    script = Watched(flood(), says("Hi"))
    app = create_app(configuration(tmp_path, script, max_concurrent_requests=1))
    async with (
        asyncio.timeout(WAIT),
        serving(app, Impatient) as address,
        httpx2.AsyncClient(base_url=address, timeout=WAIT) as client,
    ):
        reader, writer = await connected(address, asking(stream=True))
        reader._transport.pause_reading()  # type: ignore[attr-defined]  # as one that never reads
        await script.ended.wait()
        read_completion(await client.post(CHAT, json=asking()))
        writer.close()


async def test_a_run_ends_at_its_deadline_though_its_caller_never_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = StreamedRun.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "keep_alive_seconds", 0.1)
    script = Watched(flood(), says("Hi"))
    app = create_app(configuration(tmp_path, script, max_concurrent_requests=1, request_timeout=1))
    async with (
        asyncio.timeout(WAIT),
        serving(app) as address,
        httpx2.AsyncClient(base_url=address, timeout=WAIT) as client,
    ):
        began = asyncio.get_running_loop().time()
        reader, writer = await connected(address, asking(stream=True))
        reader._transport.pause_reading()  # type: ignore[attr-defined]  # as one that never reads
        await script.ended.wait()
        read_completion(await client.post(CHAT, json=asking()))
        assert asyncio.get_running_loop().time() - began < 6
        writer.close()
