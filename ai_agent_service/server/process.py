"""The processes that serve, and how they end: not ready at once, open requests in peace, the rest told, everything closed, code 0."""

import asyncio
import faulthandler
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any, cast

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from ai_agent_service.core.errors import ConfigError
from ai_agent_service.runtime.shutdown import Stopping
from ai_agent_service.server.http1 import CLOSE, BoundedProtocol
from ai_agent_service.server.reload_triggers import HANGUP, Terminal

logger = logging.getLogger(__name__)

LAST_WORDS_SECONDS = 3
"""How long requests that are cancelled at the end have to tell their callers."""

CLOSING_SECONDS = 30.0
"""How long it may take after that to close what the service holds open; it takes far less unless something hangs."""

HURRY_SECONDS = 10.0
"""How long the end may take once it was asked for twice."""

CUT_OFF = 1
"""The exit code where the end took longer than it may."""

CHECK_SECONDS = 0.5
"""How often it is looked whether each worker is alive."""

RETRY_SECONDS = 5.0
"""How long a worker is not started again that could not start, while others serve."""

POLL_SECONDS = 0.05


class Patience:
    """How long the end may take: `drain` seconds in which all is served as before, `shutdown` seconds for what is open then."""

    def __init__(self, drain: float, shutdown: float) -> None:
        self.drain = drain
        self.shutdown = shutdown

    @property
    def most(self) -> float:
        """After so many seconds the process is gone, whatever hangs."""
        return self.drain + self.shutdown + LAST_WORDS_SECONDS + CLOSING_SECONDS


class Server(uvicorn.Server):
    """uvicorn with our end; `when_ready` is called with it once it serves.

    Told to stop (SIGTERM, SIGINT), it is not ready any more and serves on for DRAIN_SECONDS, in which load balancers notice. Then it takes
    no new requests, and those that are open have SHUTDOWN_TIMEOUT. Told once more, it ends at once. That it was told is no failure, so the
    signal is not raised again as uvicorn would.
    """

    def __init__(self, config: uvicorn.Config, patience: Patience, when_ready: Callable[["Server"], Awaitable[None]] | None = None) -> None:
        super().__init__(config)
        self._patience = patience
        self._when_ready = when_ready
        self._is_hurried = False

    @property
    def state(self) -> Any:
        """What the application holds."""
        return cast(Any, self.config.loaded_app).state

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts, and tells."""
        await super().startup(sockets)
        if self.started:
            tell_manager("READY=1")
        if self.started and self._when_ready is not None:
            await self._when_ready(self)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins the end, or has it hurry."""
        if self.should_exit:
            self.hurry()
        else:
            self.stop()

    def stop(self) -> None:
        """Begins the end."""
        self.should_exit = True
        if self.started:
            self._announce()

    def hurry(self) -> None:
        """Waits for nothing any more, and ends the process if that takes too long."""
        if not self._is_hurried:
            self.should_exit = self._is_hurried = True
            self.config.timeout_graceful_shutdown = 1
            _end_within(HURRY_SECONDS)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends in the way that the class tells."""
        stopping = self._announce()
        await self._while(lambda: True, self._patience.drain)
        stopping.is_closed = True
        for connection in list(self.server_state.connections):
            # Where there was no request yet, the first is on its way: it is told.
            if not isinstance(connection, BoundedProtocol) or connection.cycle is not None:
                connection.shutdown()  # at once where it rests, else after its answer
        await self._while(lambda: bool(self.server_state.tasks), self._patience.shutdown)
        for task in self.server_state.tasks:
            task.cancel()
        if not self._is_hurried:
            _end_within(LAST_WORDS_SECONDS + CLOSING_SECONDS)
        await super().shutdown(sockets)

    def _announce(self) -> Stopping:
        """Has health say that the service stops, and callers open another connection for their next request."""
        stopping = cast(Stopping, self.state.stopping)
        stopping.has_begun = True
        self.state.service.is_stopping = True
        if CLOSE not in self.server_state.default_headers:
            self.server_state.default_headers = [*self.server_state.default_headers, CLOSE]
        return stopping

    async def _while(self, goes_on: Callable[[], bool], seconds: float) -> None:
        """Waits while `goes_on`, `seconds` at most."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while goes_on() and loop.time() < end and not self._is_hurried:  # noqa: ASYNC110 - uvicorn tells of no end of a task
            await asyncio.sleep(min(POLL_SECONDS, end - loop.time()))


class _WorkerServer(Server):
    """A worker's server. The supervisor, a terminal and a service manager may all tell it to stop, so that only SIGQUIT has it hurry."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins the end."""
        self.stop()


def _work(config: uvicorn.Config, listening: socket.socket, patience: Patience) -> None:
    """What a worker process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the server takes it
    server = _WorkerServer(config, patience)
    signal.signal(signal.SIGQUIT, lambda _, __: server.hurry())
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    config.configure_logging()
    try:
        server.run([listening])
    except ConfigError as error:  # the files were changed since the start
        for fault in error.faults:
            sys.stderr.write(f"{fault}\n")  # how its log is to be written stands in what it could not read
        sys.exit(STARTUP_FAILURE)


def _end_with_parent() -> None:
    """Ends this process in order once its parent is gone: nobody else would, and it would keep the port."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


class Workers:
    """Processes that share the port, each replaced when it dies. Told to stop, all end as the only process does; told once more, at once.
    SIGHUP has each of them read its files anew.

    uvicorn's own supervisor does not hear a second signal, waits without end, ends with 0 where no worker can start, and kills workers
    that take more than five seconds to start.
    """

    def __init__(self, config: uvicorn.Config, listening: socket.socket, patience: Patience) -> None:
        self._config = config
        self._listening = listening
        self._patience = patience
        self._told = 0
        self._hangups = 0
        self._failed: dict[int, float] = {}
        """When the worker at a place last could not start."""

        self._terminal = Terminal()
        self.workers: list[SpawnProcess] = []

    def run(self, welcome: Callable[[], None]) -> int:
        """Serves until it is told to stop; gives the exit code. `welcome` is called once it can be told."""
        for told in (signal.SIGTERM, signal.SIGINT):
            signal.signal(told, self._stop)
        if HANGUP is not None:
            signal.signal(HANGUP, self._hang_up)
        welcome()
        self.workers = [self._started() for _ in range(self._config.workers)]
        looked = time.monotonic()
        code = 0
        while not self._told and not code:
            time.sleep(POLL_SECONDS)
            if HANGUP is not None and self._hangups:
                # One that is just starting ends by it and is started again, with the files that there are then.
                self._hangups = 0
                self.tell(HANGUP)
            if time.monotonic() - looked >= CHECK_SECONDS:
                code = self._replaced()
                looked = time.monotonic()
        return self._ended() or code

    def tell(self, told: signal.Signals) -> None:
        """Sends a signal to every worker."""
        for worker in self.workers:
            if worker.pid is not None and worker.is_alive():
                os.kill(worker.pid, told)

    def _hang_up(self, sig: int, frame: FrameType | None) -> None:
        if self._terminal.is_gone():
            self._told += 1
        else:
            self._hangups += 1

    def _stop(self, sig: int, frame: FrameType | None) -> None:
        self._told += 1

    def _started(self) -> SpawnProcess:
        worker = multiprocessing.get_context("spawn").Process(target=_work, args=(self._config, self._listening, self._patience))
        worker.start()
        return worker

    def _replaced(self) -> int:
        """Has each worker that died followed by another; gives an exit code where none can start."""
        now = time.monotonic()
        for place, worker in enumerate(self.workers):
            if self._told or worker.is_alive():
                continue
            if worker.exitcode == STARTUP_FAILURE:
                if place not in self._failed:
                    logger.error("worker.failed_to_start")
                failed_at = self._failed.setdefault(place, now)
                if not any(each.is_alive() for each in self.workers):
                    return STARTUP_FAILURE
                if now - failed_at < RETRY_SECONDS:
                    continue
                del self._failed[place]
            else:
                logger.error("worker.died", extra={"exit_code": worker.exitcode})
            self.workers[place] = self._started()
        return 0

    def _ended(self) -> int:
        """Ends every worker; gives the exit code."""
        self._listening.close()
        self.tell(signal.SIGTERM)
        end = time.monotonic() + self._patience.most
        is_hurried = False
        while any(worker.is_alive() for worker in self.workers):
            if self._told > 1 and not is_hurried:
                is_hurried = True
                end = time.monotonic() + HURRY_SECONDS
                self.tell(signal.SIGQUIT)
            if time.monotonic() > end + 1:  # they end by themselves a moment before
                self.tell(signal.SIGKILL)
                return CUT_OFF
            time.sleep(POLL_SECONDS)
        return CUT_OFF if any(worker.exitcode == CUT_OFF for worker in self.workers) else 0


def tell_manager(state: str) -> None:
    """Tells systemd, where it is what started the service and waits for it (`Type=notify`). Source: sd_notify(3).

    Each of several workers tells it; the first has it know that the service is up, and the others change nothing.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
    except OSError as error:
        logger.warning("manager.not_told", extra={"error": str(error)})


def _end_within(seconds: float) -> None:
    """Ends the process with CUT_OFF if it is still there then, and writes where it hangs; this works whatever hangs."""
    faulthandler.dump_traceback_later(seconds, exit=True)
