"""Sends a run to its caller: stops it when the caller leaves, keeps the answer alive, and frames
its events for the wire."""

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ai_agent_service.api.http.errors import build_internal_error
from ai_agent_service.core.errors import InternalError, ServiceError
from ai_agent_service.core.events import (
    RunEvent,
    RunFailed,
    RunFinished,
)
from ai_agent_service.runs.lifecycle import Cancel, Command, Fail
from ai_agent_service.runs.record import RunRecord
from ai_agent_service.runs.run import Emit, Run
from ai_agent_service.runtime.shutdown import build_stopping_error

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 15.0
STOP_GRACE_SECONDS = 1.0
"""How long the last event of a failed run, or a stopped run, may take."""

DONE = b"data: [DONE]\n\n"


class Frames(ABC):
    """How one surface writes a run as server-sent events; each method gives whole events, or
    nothing."""

    @abstractmethod
    def render_event(self, event: RunEvent) -> bytes:
        """The events for one that is not RunFinished; none for RunFailed."""

    @abstractmethod
    def render_finish(self, event: RunFinished) -> bytes:
        """The last events of a run that came to its end."""

    @abstractmethod
    def render_error(self, error: ServiceError) -> bytes:
        """The last event of a run that broke."""


class RunResponse(Response, ABC):
    """Drives a run while the caller stays; `build_emit` says how its events are sent. The report of
    the run is left in the request's state as `run`."""

    is_streamed: ClassVar[bool]

    def __init__(self, run: Run, *, keep_alive_seconds: float = KEEP_ALIVE_SECONDS) -> None:
        self.run = run
        self._keep_alive_seconds = keep_alive_seconds
        self._client_left = False
        self._started = False
        self._complete = False
        self.background = None

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end and its last event was sent."""
        return self.run.lifecycle.outcome == "answered"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response; raises a ServiceError only before anything is sent.

        The run has a separate task, which a chunk of the provider wakes without passing through the
        frames of the framework.
        """
        try:
            await self.run.admit()
        except ServiceError as error:
            self._end(scope, Fail(error.code))
            raise
        driving = asyncio.create_task(self._drive(send))
        stopping = False
        try:
            await self._watch(receive, send, driving)
        except asyncio.CancelledError:
            # only the end of the service cancels a request from outside; its caller is told so
            stopping = True
        finally:
            driving.cancel()
            try:
                await asyncio.wait((driving,), timeout=STOP_GRACE_SECONDS if stopping else None)
                # at the end of the service its caller is told also while a database that hangs
                # keeps it from its own
                driving.cancel()
            finally:
                if driving.cancelled() and not (stopping or self._client_left):
                    self._end(scope, Fail(InternalError.default_code))
                self._end(scope, Cancel("left" if self._client_left else "stopped"))
                await self.run.settle()
        if stopping:
            if not self._complete:
                scope["state"]["error"] = build_stopping_error().code
                await self._fail(build_stopping_error(), send)
        elif not driving.cancelled():
            driving.result()
        elif self._client_left:
            logger.info("run.client_left", extra=self._log_fields)
        else:
            await self._fail(asyncio.CancelledError("the agent cancelled its own run"), send)

    async def _drive(self, send: Send) -> None:
        """Drives the run to its end, whatever that is."""
        try:
            end = await self.run.drive(self.build_emit(send))
            if isinstance(end, RunFailed):
                raise end.error
        # an agent type may be a plug-in and raise anything; `_fail` logs it
        except (Exception, SystemExit) as error:  # noqa: BLE001
            await self._fail(error, send)

    def _end(self, scope: Scope, command: Command) -> None:
        self.run.apply(command)
        scope["state"]["run"] = self.run.report(is_streamed=self.is_streamed)

    @property
    def _log_fields(self) -> dict[str, str]:
        return {"run_id": self.run.context.run_id, "agent_id": self.run.context.agent_id}

    @abstractmethod
    def build_emit(self, send: Send) -> Emit:
        """Return what sends an event; nothing is sent for RunFailed, see `end_with`."""

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
        if self.run.record.is_without_memory:
            headers.append((b"x-memory", b"unavailable"))
        headers += self.run.headers
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _fail(self, error: BaseException, send: Send) -> None:
        """Tells the caller of `error`: by the answer's last event if it has begun, else by raising
        what has a status."""
        if not isinstance(error, ServiceError):
            logger.exception("run.crashed", extra=self._log_fields, exc_info=error)
            error = build_internal_error(self.run.context.request_id)
        self.run.apply(Fail(error.code))
        if not self._started:
            raise error
        if self._complete:
            return
        # A caller that does not read its answer would hold this up for as long as it stays.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_GRACE_SECONDS):
                await self.end_with(error, send)

    async def _watch(self, receive: Receive, send: Send, driving: asyncio.Task[None]) -> None:
        """Waits until `driving` has ended or the caller has left, and keeps the answer alive
        meanwhile."""
        waiting: asyncio.Timeout | None = None

        def wake(_: object) -> None:
            if waiting is not None and not waiting.expired():
                waiting.reschedule(0)

        driving.add_done_callback(wake)
        while not driving.done():
            try:
                async with asyncio.timeout(self._keep_alive_seconds) as waiting:
                    message = await receive()
            except TimeoutError:
                await self._keep_alive_while(driving, send)
                continue
            finally:
                waiting = None
            if message["type"] == "http.disconnect":
                if self._complete:  # servers say the same once the last byte is sent
                    await asyncio.wait((driving,))
                self._client_left = not self._complete
                return

    async def _keep_alive_while(self, driving: asyncio.Task[None], send: Send) -> None:
        """Call `keep_alive`, but not past the end of `driving`: a caller that does not read would
        hold the run for as long as it stays."""
        if driving.done():
            return
        sending = asyncio.ensure_future(self.keep_alive(send))
        try:
            await asyncio.wait((sending, driving), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            sending.cancel()


class StreamedRun(RunResponse):
    """A run as server-sent events. An error before the first event is answered with its status; a
    later one is the last event."""

    is_streamed = True

    def __init__(
        self, run: Run, frames: Frames, *, keep_alive_seconds: float = KEEP_ALIVE_SECONDS
    ) -> None:
        super().__init__(run, keep_alive_seconds=keep_alive_seconds)
        self._frames = frames
        self._sent_since_check = False

    def build_emit(self, send: Send) -> Emit:
        """Return what sends an event in one write: one coroutine a chunk, with nothing to look
        up."""
        render = self._frames.render_event

        async def emit(event: RunEvent) -> None:
            if isinstance(event, RunFinished):
                await self._send(send, self._frames.render_finish(event) + DONE, more=False)
            elif frame := render(event):
                if not self._started:
                    await self.start(send, b"text/event-stream; charset=utf-8")
                self._sent_since_check = True
                await send({"type": "http.response.body", "body": frame, "more_body": True})

        return emit

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

    def __init__(self, run: Run, render: Callable[[RunRecord, RunFinished], bytes]) -> None:
        super().__init__(run)
        self._render = render

    def build_emit(self, send: Send) -> Emit:
        """Return what sends the answer once the run has ended."""

        async def emit(event: RunEvent) -> None:
            if isinstance(event, RunFinished):
                body = self._render(self.run.record, event)
                await self.start(send, b"application/json", len(body))
                self._complete = True
                await send({"type": "http.response.body", "body": body})

        return emit

    async def keep_alive(self, send: Send) -> None:
        """A JSON answer cannot be kept alive: whatever is sent early would be part of it."""

    async def end_with(self, error: ServiceError, send: Send) -> None:
        """An answer is sent whole, so nothing can follow its beginning."""
