"""Run worker processes that share a port."""

import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from types import FrameType

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from ai_agent_service.core.errors import ConfigError
from ai_agent_service.core.process_privacy import (
    hide_memory,
    is_memory_hidden,
    keep_descriptors,
    without_secrets,
)
from ai_agent_service.server.process import (
    EXIT_FORCED,
    FORCED_SHUTDOWN_SECONDS,
    POLL_SECONDS,
    GracefulServer,
    ShutdownTimeouts,
    exit_within,
)
from ai_agent_service.server.reload_triggers import HANGUP, ControllingTerminal

logger = logging.getLogger(__name__)

WORKER_CHECK_SECONDS = 0.5
"""How often each worker is checked."""

WORKER_RETRY_SECONDS = 5.0
"""How long a worker that failed to start is not started again while others serve."""

SUPERVISOR_SECONDS = 3.0
"""How much longer than its workers the supervisor may take to end."""


class _WorkerServer(GracefulServer):
    """A worker's server. The supervisor, a terminal and a service manager may all send it a signal
    to stop, so that only SIGQUIT forces it."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the shutdown."""
        self.stop()


def _run_worker(
    config: uvicorn.Config,
    listening: socket.socket,
    patience: ShutdownTimeouts,
    ready: Event,
    hides_memory: bool,
    secrets: dict[str, str],
) -> None:
    """Serve in a worker process, which sets `ready` once it does; `secrets` are the variables that
    it was started without."""
    keep_descriptors()  # the socket among them, which the parent passed
    if hides_memory:
        hide_memory()
    os.environ.update(secrets)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the server handles it

    async def announce(_: GracefulServer) -> None:
        ready.set()

    server = _WorkerServer(config, patience, announce)
    signal.signal(signal.SIGQUIT, lambda _, __: server.force_shutdown())
    threading.Thread(target=_exit_with_parent, name="parent", daemon=True).start()
    config.configure_logging()
    try:
        server.run([listening])
    except ConfigError as error:  # the files were changed since the start
        # Without the settings it does not know the format of its log.
        sys.stderr.writelines(f"{fault}\n" for fault in error.faults)
        sys.exit(STARTUP_FAILURE)


def _exit_with_parent() -> None:
    """Shut this process down once its parent is gone, so that it does not keep the port."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


class WorkerPool:
    """Processes that share the port, each replaced when it dies. After a signal to stop, all shut
    down as a single process does; after a second one, at once. SIGHUP makes each read its files
    again.

    uvicorn's own supervisor ignores a second signal, waits without a limit, exits with 0 where no
    worker can start, and kills workers that take more than five seconds to start.
    """

    def __init__(
        self, config: uvicorn.Config, listening: socket.socket, patience: ShutdownTimeouts
    ) -> None:
        self._config = config
        self._listening = listening
        self._timeouts = patience
        self._stop_requests = 0
        self._hangups = 0
        self._failed: dict[int, float] = {}
        """When the worker at a place last failed to start."""

        self._context = multiprocessing.get_context("spawn")
        with without_secrets():  # the first event starts multiprocessing's own helper
            self._ready = [self._context.Event() for _ in range(config.workers)]
        self._terminal = ControllingTerminal()
        self.workers: list[SpawnProcess] = []

    def run(self, welcome: Callable[[], None]) -> int:
        """Serve until a signal to stop and return the exit code. `welcome` is called once all
        workers serve."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle_stop)
        if HANGUP is not None:
            signal.signal(HANGUP, self._handle_hangup)
        self.workers = [self._start_worker(ready) for ready in self._ready]
        looked = time.monotonic()
        code = 0
        is_welcome = False
        while not self._stop_requests and not code:
            time.sleep(POLL_SECONDS)
            if not is_welcome and all(ready.is_set() for ready in self._ready):
                is_welcome = True
                welcome()
            if HANGUP is not None and self._hangups:
                # A worker that is just starting ends by it and is started again.
                self._hangups = 0
                self.send_signal(HANGUP)
            if time.monotonic() - looked >= WORKER_CHECK_SECONDS:
                code = self._replace_dead_workers()
                looked = time.monotonic()
        return self._stop_workers() or code

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to every worker."""
        for worker in self.workers:
            if worker.pid is not None and worker.is_alive():
                os.kill(worker.pid, number)

    def _handle_hangup(self, sig: int, frame: FrameType | None) -> None:
        if self._terminal.is_gone():
            self._handle_stop(sig, frame)
        else:
            self._hangups += 1

    def _handle_stop(self, sig: int, frame: FrameType | None) -> None:
        self._stop_requests += 1
        if self._stop_requests <= 2:
            seconds = self._timeouts.total if self._stop_requests == 1 else FORCED_SHUTDOWN_SECONDS
            exit_within(seconds + SUPERVISOR_SECONDS)

    def _start_worker(self, ready: Event) -> SpawnProcess:
        with without_secrets() as secrets:  # multiprocessing's own helper gets none of them either
            worker = self._context.Process(
                target=_run_worker,
                args=(
                    *(self._config, self._listening, self._timeouts, ready),
                    *(is_memory_hidden(), secrets),
                ),
            )
            worker.start()
        return worker

    def _replace_dead_workers(self) -> int:
        """Replace each worker that died; return an exit code if none can start."""
        now = time.monotonic()
        for place, worker in enumerate(self.workers):
            if self._stop_requests or worker.is_alive():
                continue
            if worker.exitcode == STARTUP_FAILURE:
                if place not in self._failed:
                    logger.error("worker.failed_to_start")
                failed_at = self._failed.setdefault(place, now)
                if not any(each.is_alive() for each in self.workers):
                    return STARTUP_FAILURE
                if now - failed_at < WORKER_RETRY_SECONDS:
                    continue
                del self._failed[place]
            else:
                logger.error("worker.died", extra={"exit_code": worker.exitcode})
            self.workers[place] = self._start_worker(self._ready[place])
        return 0

    def _stop_workers(self) -> int:
        """End every worker and return the exit code."""
        self._listening.close()
        self.send_signal(signal.SIGTERM)
        end = time.monotonic() + self._timeouts.total
        is_hurried = False
        while any(worker.is_alive() for worker in self.workers):
            if self._stop_requests > 1 and not is_hurried:
                is_hurried = True
                end = time.monotonic() + FORCED_SHUTDOWN_SECONDS
                self.send_signal(signal.SIGQUIT)
            if time.monotonic() > end + 1:  # they end themselves a moment earlier
                self.send_signal(signal.SIGKILL)
                return EXIT_FORCED
            time.sleep(POLL_SECONDS)
        forced = (EXIT_FORCED, -signal.SIGALRM)
        return EXIT_FORCED if any(worker.exitcode in forced for worker in self.workers) else 0
