"""Serve in one process, and shut it down gracefully: readiness first, then open requests, then the
service."""

import asyncio
import faulthandler
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Any, cast

import uvicorn

from ai_agent_service.auth.access import Access
from ai_agent_service.core.tasks import Tasks
from ai_agent_service.runtime.shutdown import DEFAULT_DRAIN_SECONDS, ShutdownState
from ai_agent_service.server.certificate import watch_certificate
from ai_agent_service.server.http1 import CONNECTION_CLOSE, BoundedProtocol

logger = logging.getLogger(__name__)

CANCEL_GRACE_SECONDS = 3
"""How long requests that a shutdown cancels have to send an error."""

CLOSE_TIMEOUT_SECONDS = 30.0
"""How long closing the service may take after that."""

FORCED_SHUTDOWN_SECONDS = 10.0
"""How long a shutdown may take after a second signal."""

EXIT_FORCED = 1
"""The exit code of a shutdown that took too long."""

ALARM_SECONDS = 2.0
"""How much later the kernel's timer ends a process whose forced shutdown hangs as well."""

POLL_SECONDS = 0.05
STDERR = 2
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class ShutdownTimeouts:
    """The time limits of a shutdown: for `drain` seconds (None: see ShutdownState) all is served as
    before, and requests that are open then have `shutdown` seconds."""

    def __init__(self, drain: float | None, shutdown: float) -> None:
        self.drain = drain
        self.shutdown = shutdown

    @property
    def total(self) -> float:
        """Seconds after which the process is gone, whatever hangs."""
        drain = DEFAULT_DRAIN_SECONDS if self.drain is None else self.drain
        return drain + self.shutdown + CANCEL_GRACE_SECONDS + CLOSE_TIMEOUT_SECONDS


class GracefulServer(uvicorn.Server):
    """uvicorn with a graceful shutdown; it calls `when_ready` with itself once it serves.

    After SIGTERM or SIGINT it reports that it is not ready and serves for DRAIN_SECONDS, so that
    load balancers notice. Then it takes no new requests, and open ones have SHUTDOWN_TIMEOUT. A
    second signal ends it at once. Unlike uvicorn it does not raise the signal again, since a
    shutdown is not a failure.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        patience: ShutdownTimeouts,
        when_ready: Callable[["GracefulServer"], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(config)
        self._timeouts = patience
        self._when_ready = when_ready
        self._is_forced = False
        self._tasks = Tasks(grace=0)

    @property
    def state(self) -> Any:
        """The state of the application."""
        return cast(Any, self.config.loaded_app).state

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and announce that it serves once the database was prepared or found to be away."""
        await super().startup(sockets)
        if self.started:
            self._tasks.run(self._announce_start())
        config = self.config
        if self.started and config.ssl is not None and config.ssl_certfile and config.ssl_keyfile:
            files = Path(config.ssl_certfile), Path(config.ssl_keyfile)
            self._tasks.run(watch_certificate(config.ssl, *files))

    async def _announce_start(self) -> None:
        await cast(Access, self.state.access).wait_until_known()
        notify_systemd("READY=1")
        if self._when_ready is not None:
            await self._when_ready(self)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the shutdown, or force it."""
        # In one step: the next signal may come within any call.
        is_second, self.should_exit = self.should_exit, True
        if is_second:
            self.force_shutdown()
        else:
            self._begin_shutdown()

    def stop(self) -> None:
        """Begin the shutdown."""
        self.should_exit = True
        self._begin_shutdown()

    def _begin_shutdown(self) -> None:
        """Set a deadline, which holds even if the event loop never gets to the shutdown."""
        exit_within(self._timeouts.total)
        if self.started:
            self._announce_stop()

    def force_shutdown(self) -> None:
        """Stop waiting for requests, and end the process if closing takes too long."""
        if not self._is_forced:
            self.should_exit = self._is_forced = True
            self.config.timeout_graceful_shutdown = 1
            exit_within(FORCED_SHUTDOWN_SECONDS)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down as the class describes."""
        stopping = self._announce_stop()
        await self._tasks.finish()
        await self._wait_while(lambda: True, stopping.choose_drain_seconds(self._timeouts.drain))
        stopping.is_closed = True
        for connection in list(self.server_state.connections):
            # A connection without a request yet stays open, so that its first one gets an answer.
            if not isinstance(connection, BoundedProtocol) or connection.cycle is not None:
                connection.shutdown()  # at once if it is idle, else after its answer
        await self._wait_while(lambda: bool(self.server_state.tasks), self._timeouts.shutdown)
        for task in self.server_state.tasks:
            task.cancel()
        if not self._is_forced:
            exit_within(CANCEL_GRACE_SECONDS + CLOSE_TIMEOUT_SECONDS)
        await super().shutdown(sockets)

    def _announce_stop(self) -> ShutdownState:
        """Report that the service stops, and have callers connect again for their next request."""
        stopping = cast(ShutdownState, self.state.stopping)
        stopping.has_begun = True
        if CONNECTION_CLOSE not in self.server_state.default_headers:
            headers = self.server_state.default_headers
            self.server_state.default_headers = [*headers, CONNECTION_CLOSE]
        return stopping

    async def _wait_while(self, goes_on: Callable[[], bool], seconds: float) -> None:
        """Wait while `goes_on()`, `seconds` at most."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        # uvicorn does not announce the end of a task
        while goes_on() and loop.time() < end and not self._is_forced:  # noqa: ASYNC110
            await asyncio.sleep(min(POLL_SECONDS, end - loop.time()))


def notify_systemd(state: str) -> None:
    """Send `state` to systemd if it started the service with `Type=notify`. Source: sd_notify(3).

    Every worker does so; only the first notification has an effect.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = f"\0{address[1:]}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.sendto(state.encode(), address)
    except OSError as error:
        logger.warning("manager.not_told", extra={"error": str(error)})


def exit_within(seconds: float) -> None:
    """End the process with EXIT_FORCED if it still runs then, and write where it hangs.

    The earliest deadline counts.
    It needs neither the interpreter's lock nor a reader of standard error: the report is left out
    if it would block, and the kernel's timer ends what hangs even so.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # they may set one as well
    try:
        left, _ = signal.getitimer(signal.ITIMER_REAL)
        if not 0 < left <= seconds + ALARM_SECONDS:
            faulthandler.dump_traceback_later(seconds, exit=True, file=_open_report())
            signal.setitimer(signal.ITIMER_REAL, seconds + ALARM_SECONDS)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _open_report() -> int:
    """Return standard error, opened again so that a write to it never blocks, if that is
    possible. It stays open until the process ends."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(f"/proc/self/fd/{STDERR}", flags)
    except OSError:  # a socket, a file of another user, or not Linux
        return STDERR
