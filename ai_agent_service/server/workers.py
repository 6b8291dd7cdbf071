"""Worker processes that share a port."""

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
from types import FrameType

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from ai_agent_service.core.errors import ConfigError
from ai_agent_service.server.process import CUT_OFF, HURRY_SECONDS, POLL_SECONDS, Patience, Server
from ai_agent_service.server.reload_triggers import HANGUP, Terminal

logger = logging.getLogger(__name__)

CHECK_SECONDS = 0.5
"""How often it is looked whether each worker is alive."""

RETRY_SECONDS = 5.0
"""How long a worker is not started again that could not start, while others serve."""


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
