"""What has the service read its files anew while it runs: the signal SIGHUP, and a change of the
files where RELOAD_CONFIG says so."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

from ai_agent_service.config.fingerprint import hash_files
from ai_agent_service.core.errors import ServiceError
from ai_agent_service.runtime.service import Service

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""Between two looks at the files."""

QUIET_SECONDS = 0.25
"""For so long files have to stay as they are before they are read, so that what is half written is
not."""

MAX_POLLS = 20
"""Looks after which files are read that change all the time."""

HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""None on Windows, which has no such signal."""


class ControllingTerminal:
    """The terminal that the process was started in; it tells of its end by SIGHUP too, which means
    to stop then, as ever.

    Processes that are to outlive it ignore the signal from their start (`nohup`).
    """

    def __init__(self) -> None:
        self._is_controlling = (
            HANGUP is not None and signal.getsignal(HANGUP) is signal.SIG_DFL and _has_terminal()
        )

    def is_gone(self) -> bool:
        """Whether it was closed, and the process is to end with it."""
        return self._is_controlling and not _has_terminal()


@contextmanager
def watch_hangups() -> Generator[asyncio.Event, None, None]:
    """An event that is set whenever SIGHUP comes; in another thread than the main one no signal
    does."""
    told = asyncio.Event()
    if HANGUP is None or threading.current_thread() is not threading.main_thread():
        yield told
        return
    terminal = ControllingTerminal()

    def handle_hangup() -> None:
        if terminal.is_gone():
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            told.set()

    before = signal.getsignal(HANGUP)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(HANGUP, handle_hangup)
    try:
        yield told
    finally:
        loop.remove_signal_handler(HANGUP)
        signal.signal(HANGUP, before)


@asynccontextmanager
async def watch_reload_triggers(
    service: Service, told: asyncio.Event
) -> AsyncGenerator[None, None]:
    """Has `service` reload whenever `told` is set, and when its files change where RELOAD_CONFIG
    says so."""
    tasks = [asyncio.create_task(_reload_on_signal(service, told))]
    if service.settings.reload_config:
        tasks.append(asyncio.create_task(_reload_on_change(service)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _reload_on_signal(service: Service, told: asyncio.Event) -> None:
    while True:
        await told.wait()
        told.clear()
        await _reload(service)


async def _reload_on_change(service: Service) -> None:
    settings = service.settings

    async def read_current() -> bytes:
        return await asyncio.to_thread(
            hash_files, settings.agent_config_file, settings.mcp_config_file, settings.prompts_dir
        )

    tried: bytes | None = (
        None  # what the service was started with may be older than what is there now
    )
    while True:
        found = await read_current()
        if found != tried:
            for _ in range(MAX_POLLS):
                await asyncio.sleep(QUIET_SECONDS)
                before, found = found, await read_current()
                if found == before:
                    break
            if found != tried:
                tried = found
                await _reload(service)
        await asyncio.sleep(POLL_SECONDS)


async def _reload(service: Service) -> None:
    """Reloads; whatever comes of it, the service goes on, and its log says why."""
    try:
        await service.reload()
    except ServiceError as error:
        logger.debug("config.not_reloaded", extra={"code": error.code})  # its faults were told
    except Exception:
        logger.exception("config.reload_failed")


def _has_terminal() -> bool:
    """Whether the process has a terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
