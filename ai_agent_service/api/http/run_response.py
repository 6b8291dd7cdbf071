"""Sends a run to its caller: drives the events, stops them when the caller leaves or time is up,
frames them for the wire."""

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import aclosing
from typing import ClassVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ai_agent_service.agents.base import Turn
from ai_agent_service.api.http.errors import build_internal_error
from ai_agent_service.core.errors import InternalError, RunTimeoutError, ServiceError
from ai_agent_service.core.events import (
    MemorySkipped,
    ReasoningDelta,
    RefusalDelta,
    RunEvent,
    RunFailed,
    RunFinished,
    TextDelta,
    ToolFinished,
    ToolProgress,
    ToolsMissing,
    ToolStarted,
)
from ai_agent_service.core.messages import ToolCall, ToolResult
from ai_agent_service.runs.admission import CountedRun
from ai_agent_service.runtime.shutdown import build_stopping_error

logger = logging.getLogger(__name__)

_TEXT_EVENTS = frozenset((TextDelta, ReasoningDelta, RefusalDelta))
"""What nearly all events are, of which nothing is noted."""

KEEP_ALIVE_SECONDS = 15.0
DEADLINE_GRACE = 1.0
"""Seconds past its deadline after which a run that does not end by itself is ended here."""

DONE = b"data: [DONE]\n\n"


class Frames(ABC):
    """How one surface writes a run as server-sent events; each method gives whole events, or
    nothing."""

    @abstractmethod
    def render_event(self, event: RunEvent) -> bytes:
        """The events for one that is not the last."""

    @abstractmethod
    def render_finish(self, event: RunFinished) -> bytes:
        """The last events of a run that came to its end."""

    @abstractmethod
    def render_error(self, error: ServiceError) -> bytes:
        """The last event of a run that broke."""


class CollectedEvents:
    """A whole run, put together from its events."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.refusal: list[str] = []
        self.calls: list[ToolCall] = []
        self.results: list[ToolResult] = []

    def add(self, event: RunEvent) -> None:
        """Takes one event that is not the last."""
        match event:
            case TextDelta(text=text):
                self.text.append(text)
            case ReasoningDelta(text=text):
                self.reasoning.append(text)
            case RefusalDelta(text=text):
                self.refusal.append(text)
            case ToolStarted(call=call):
                self.calls.append(call)
            case ToolFinished(result=result):
                self.results.append(result)
            case ToolProgress() | ToolsMissing() | MemorySkipped() | RunFinished() | RunFailed():
                pass


class RunResponse(Response, ABC):
    """Drives a run while the caller stays; `respond` says what is sent. What came of it is left in
    the request's state as `run`."""

    is_streamed: ClassVar[bool]

    def __init__(self, run: CountedRun, *, keep_alive_seconds: float = KEEP_ALIVE_SECONDS) -> None:
        self._counted = run
        self._context = run.context
        self._events = run.events
        self._keep_alive_seconds = keep_alive_seconds
        self._client_left = False
        self._started = False
        self._complete = False
        self.is_finished = False
        """Whether the run came to its end and its last event was sent."""

        self._without_memory = False
        self._error: ServiceError | None = None
        self.background = None

    @property
    def turn(self) -> Turn:
        """What is asked."""
        return self._counted.turn

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response; raises a ServiceError only before anything is sent.

        The run has a task of its own, which a piece of the provider's answer wakes without going
        through the framework's frames.
        """
        try:
            await self._counted.begin()
        except ServiceError as error:
            self._report(scope, error.code)
            raise
        self._events = self._counted.events
        run = asyncio.create_task(self._run(send))
        stopping = False
        try:
            await self._watch(receive, send, run)
        except asyncio.CancelledError:
            # only the end of the service cancels a request from outside; its caller is told so
            stopping = True
        finally:
            run.cancel()
            try:
                await asyncio.wait((run,), timeout=DEADLINE_GRACE if stopping else None)
                # at the end of the service its caller is told also while a database that hangs
                # keeps it from its own
                run.cancel()
            finally:
                is_cancelled_by_itself = run.cancelled() and not (stopping or self._client_left)
                outcome = (
                    InternalError.default_code
                    if is_cancelled_by_itself
                    else self._describe_outcome()
                )
                self._report(scope, outcome)
                await self._counted.finish(outcome)
        if stopping:
            if not self._complete:
                scope["state"]["error"] = build_stopping_error().code
                await self._fail(build_stopping_error(), send)
        elif not run.cancelled():
            run.result()
        elif self._client_left:
            logger.info(
                "run.client_left",
                extra={"run_id": self._context.run_id, "agent_id": self._context.agent_id},
            )
        else:
            await self._fail(asyncio.CancelledError("the agent cancelled its own run"), send)

    async def _run(self, send: Send) -> None:
        """Takes the events to their end, whatever that is."""
        limit = asyncio.timeout(self._context.seconds_left + DEADLINE_GRACE)
        try:
            with self._counted.hold_slot():
                async with limit, aclosing(self._events):
                    await self.respond(send)
                    if not self._complete:
                        raise RuntimeError(
                            "the agent's events ended without RunFinished or RunFailed"
                        )
        except TimeoutError as error:
            late = RunTimeoutError(
                "The run took longer than REQUEST_TIMEOUT allows and was stopped."
            )
            await self._fail(late if limit.expired() else error, send)
        # an agent type may be a plug-in and raise anything; `_fail` logs it
        except (Exception, SystemExit) as error:  # noqa: BLE001
            await self._fail(error, send)

    def _report(self, scope: Scope, outcome: str) -> None:
        scope["state"]["run"] = self._counted.report(outcome, is_streamed=self.is_streamed)

    def _describe_outcome(self) -> str:
        """What came of the run, in a word for the log: an error's code, or one of these."""
        if self._error is not None:
            return self._error.code
        return "answered" if self._complete else "left" if self._client_left else "stopped"

    @abstractmethod
    async def respond(self, send: Send) -> None:
        """Takes the events and sends the answer."""

    @abstractmethod
    async def keep_alive(self, send: Send) -> None:
        """Called when nothing was sent for a while."""

    @abstractmethod
    async def end_with(self, error: ServiceError, send: Send) -> None:
        """Ends an answer that has begun with `error`."""

    async def start(self, send: Send, media_type: bytes, length: int | None = None) -> None:
        """Sends the status line and the headers."""
        self._started = True
        headers = [(b"content-type", media_type)]
        if length is None:
            headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        else:
            headers.append((b"content-length", str(length).encode()))
        if self._without_memory:
            headers.append((b"x-memory", b"unavailable"))
        headers += self._counted.headers
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _fail(self, error: BaseException, send: Send) -> None:
        """Tells the caller of `error`: by the answer's last event if it has begun, else by raising
        what has a status."""
        if not isinstance(error, ServiceError):
            logger.exception(
                "run.crashed",
                extra={"run_id": self._context.run_id, "agent_id": self._context.agent_id},
                exc_info=error,
            )
            error = build_internal_error(self._context.request_id)
        self._error = error
        if not self._started:
            raise error
        # A caller that does not read its answer would hold this up for as long as it stays.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DEADLINE_GRACE):
                await self.end_with(error, send)

    async def _watch(self, receive: Receive, send: Send, run: asyncio.Task[None]) -> None:
        """Waits until `run` has ended or the caller has left, and keeps the answer alive
        meanwhile."""
        waiting: asyncio.Timeout | None = None

        def wake(_: object) -> None:
            if waiting is not None and not waiting.expired():
                waiting.reschedule(0)

        run.add_done_callback(wake)
        while not run.done():
            try:
                async with asyncio.timeout(self._keep_alive_seconds) as waiting:
                    message = await receive()
            except TimeoutError:
                if not run.done():
                    await self.keep_alive(send)
                continue
            finally:
                waiting = None
            if message["type"] == "http.disconnect":
                if self._complete:  # servers say the same once the last byte is sent
                    await asyncio.wait((run,))
                self._client_left = not self._complete
                return


class StreamedRun(RunResponse):
    """A run as server-sent events. An error before the first event is answered with its status; a
    later one is the last event."""

    is_streamed = True

    def __init__(
        self, run: CountedRun, frames: Frames, *, keep_alive_seconds: float = KEEP_ALIVE_SECONDS
    ) -> None:
        super().__init__(run, keep_alive_seconds=keep_alive_seconds)
        self._frames = frames
        self._sent_since_check = False

    async def respond(self, send: Send) -> None:
        """Sends each event as it comes, in one write."""
        frames = self._frames
        async for event in self._events:
            if type(event) not in _TEXT_EVENTS:
                self._counted.observe(event)
                if isinstance(event, RunFinished):
                    await self._send(send, frames.render_finish(event) + DONE, more=False)
                    self.is_finished = True
                    return
                if isinstance(event, RunFailed):
                    raise event.error
                if isinstance(event, MemorySkipped):
                    self._without_memory = True
            if frame := frames.render_event(event):
                await self._send(send, frame)

    async def keep_alive(self, send: Send) -> None:
        """Sends a comment when nothing else was sent, so that no proxy takes the stream for
        dead."""
        if not self._sent_since_check and not self._complete:
            await self._send(send, b": keep-alive\n\n")
        self._sent_since_check = False

    async def end_with(self, error: ServiceError, send: Send) -> None:
        """Sends the error as the last event but `[DONE]`."""
        await self._send(send, self._frames.render_error(error) + DONE, more=False)

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        if not self._started:
            await self.start(send, b"text/event-stream; charset=utf-8")
        self._sent_since_check = True
        self._complete = not more
        await send({"type": "http.response.body", "body": body, "more_body": more})


class CollectedRun(RunResponse):
    """A run as one JSON answer: the stream, collected."""

    is_streamed = False

    def __init__(
        self, run: CountedRun, render: Callable[[CollectedEvents, RunFinished], bytes]
    ) -> None:
        super().__init__(run)
        self._render = render

    async def respond(self, send: Send) -> None:
        """Sends the answer once the run has ended."""
        collected = CollectedEvents()
        async for event in self._events:
            if type(event) not in _TEXT_EVENTS:
                self._counted.observe(event)
            if isinstance(event, RunFailed):
                raise event.error
            if isinstance(event, RunFinished):
                body = self._render(collected, event)
                await self.start(send, b"application/json", len(body))
                self._complete = True
                await send({"type": "http.response.body", "body": body})
                self.is_finished = True
                return
            if isinstance(event, MemorySkipped):
                self._without_memory = True
            collected.add(event)

    async def keep_alive(self, send: Send) -> None:
        """A JSON answer cannot be kept alive: whatever is sent early would be part of it."""

    async def end_with(self, error: ServiceError, send: Send) -> None:
        """An answer is sent whole, so nothing can follow its beginning."""
