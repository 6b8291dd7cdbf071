"""The processes that serve, and how they end: not ready at once, open requests in peace, the rest
told, everything closed, code 0."""

import asyncio
import faulthandler
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any, cast

import uvicorn

from ai_agent_service.runtime.shutdown import ShutdownState
from ai_agent_service.server.http1 import CONNECTION_CLOSE, BoundedProtocol

logger = logging.getLogger(__name__)

CANCEL_GRACE_SECONDS = 3
"""How long requests that are cancelled at the end have to tell their callers."""

CLOSE_TIMEOUT_SECONDS = 30.0
"""How long it may take after that to close what the service holds open; it takes far less unless
something hangs."""

FORCED_SHUTDOWN_SECONDS = 10.0
"""How long the end may take once it was asked for twice."""

EXIT_FORCED = 1
"""The exit code where the end took longer than it may."""

POLL_SECONDS = 0.05


class ShutdownTimeouts:
    """How long the end may take: `drain` seconds in which all is served as before, `shutdown`
    seconds for what is open then."""

    def __init__(self, drain: float, shutdown: float) -> None:
        self.drain = drain
        self.shutdown = shutdown

    @property
    def total(self) -> float:
        """After so many seconds the process is gone, whatever hangs."""
        return self.drain + self.shutdown + CANCEL_GRACE_SECONDS + CLOSE_TIMEOUT_SECONDS


class GracefulServer(uvicorn.Server):
    """uvicorn with our end; `when_ready` is called with it once it serves.

    Told to stop (SIGTERM, SIGINT), it is not ready any more and serves on for DRAIN_SECONDS, in
    which load balancers notice. Then it takes no new requests, and those that are open have
    SHUTDOWN_TIMEOUT. Told once more, it ends at once. That it was told is no failure, so the signal
    is not raised again as uvicorn would.
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

    @property
    def state(self) -> Any:
        """What the application holds."""
        return cast(Any, self.config.loaded_app).state

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts, and tells."""
        await super().startup(sockets)
        if self.started:
            notify_systemd("READY=1")
        if self.started and self._when_ready is not None:
            await self._when_ready(self)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins the end, or has it hurry."""
        if self.should_exit:
            self.force_shutdown()
        else:
            self.stop()

    def stop(self) -> None:
        """Begins the end."""
        self.should_exit = True
        if self.started:
            self._announce_stop()

    def force_shutdown(self) -> None:
        """Waits for nothing any more, and ends the process if that takes too long."""
        if not self._is_forced:
            self.should_exit = self._is_forced = True
            self.config.timeout_graceful_shutdown = 1
            _exit_within(FORCED_SHUTDOWN_SECONDS)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends in the way that the class tells."""
        stopping = self._announce_stop()
        await self._wait_while(lambda: True, self._timeouts.drain)
        stopping.is_closed = True
        for connection in list(self.server_state.connections):
            # Where there was no request yet, the first is on its way: it is told.
            if not isinstance(connection, BoundedProtocol) or connection.cycle is not None:
                connection.shutdown()  # at once where it rests, else after its answer
        await self._wait_while(lambda: bool(self.server_state.tasks), self._timeouts.shutdown)
        for task in self.server_state.tasks:
            task.cancel()
        if not self._is_forced:
            _exit_within(CANCEL_GRACE_SECONDS + CLOSE_TIMEOUT_SECONDS)
        await super().shutdown(sockets)

    def _announce_stop(self) -> ShutdownState:
        """Has health say that the service stops, and callers open another connection for their next
        request."""
        stopping = cast(ShutdownState, self.state.stopping)
        stopping.has_begun = True
        if CONNECTION_CLOSE not in self.server_state.default_headers:
            self.server_state.default_headers = [
                *self.server_state.default_headers,
                CONNECTION_CLOSE,
            ]
        return stopping

    async def _wait_while(self, goes_on: Callable[[], bool], seconds: float) -> None:
        """Waits while `goes_on`, `seconds` at most."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        # uvicorn tells of no end of a task
        while goes_on() and loop.time() < end and not self._is_forced:  # noqa: ASYNC110
            await asyncio.sleep(min(POLL_SECONDS, end - loop.time()))


def notify_systemd(state: str) -> None:
    """Tells systemd, where it is what started the service and waits for it (`Type=notify`). Source:
    sd_notify(3).

    Each of several workers tells it; the first has it know that the service is up, and the others
    change nothing.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.sendto(
                state.encode(), "\0" + address[1:] if address.startswith("@") else address
            )
    except OSError as error:
        logger.warning("manager.not_told", extra={"error": str(error)})


def _exit_within(seconds: float) -> None:
    """Ends the process with CUT_OFF if it is still there then, and writes where it hangs; this
    works whatever hangs."""
    faulthandler.dump_traceback_later(seconds, exit=True)
