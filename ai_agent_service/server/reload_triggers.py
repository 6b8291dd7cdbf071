"""Reload the configuration at SIGHUP, and after a change of the files if RELOAD_CONFIG is set.

SIGHUP reopens the audit file too."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

from ai_agent_service.config.fingerprint import hash_files
from ai_agent_service.core.errors import ServiceError
from ai_agent_service.observability.audit import reopen_audit_file
from ai_agent_service.runtime.service import Service

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""Between two checks of the files."""

QUIET_SECONDS = 0.25
"""How long files must not change before they are read, so that none is half written."""

MAX_POLLS = 20
"""Checks after which files that change all the time are read."""

HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""None on Windows, which does not have it."""


class ControllingTerminal:
    """The terminal that the process was started in. When it closes, it sends SIGHUP too, which then
    means to stop.

    Processes that outlive it ignore the signal from their start (`nohup`).
    """

    def __init__(self) -> None:
        self._is_controlling = (
            HANGUP is not None and signal.getsignal(HANGUP) is signal.SIG_DFL and _has_terminal()
        )

    def is_gone(self) -> bool:
        """Return whether it was closed, so that the process has to stop."""
        return self._is_controlling and not _has_terminal()


@contextmanager
def watch_hangups() -> Generator[asyncio.Event, None, None]:
    """Yield an event that is set at each SIGHUP; only the main thread receives signals."""
    requested = asyncio.Event()
    if HANGUP is None or threading.current_thread() is not threading.main_thread():
        yield requested
        return
    terminal = ControllingTerminal()

    def handle_hangup() -> None:
        if terminal.is_gone():
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            requested.set()

    before = signal.getsignal(HANGUP)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(HANGUP, handle_hangup)
    try:
        yield requested
    finally:
        loop.remove_signal_handler(HANGUP)
        signal.signal(HANGUP, before)


@asynccontextmanager
async def watch_reload_triggers(
    service: Service, requested: asyncio.Event
) -> AsyncGenerator[None, None]:
    """Reload `service` whenever `requested` is set, and when its files change if RELOAD_CONFIG is
    set."""
    tasks = [asyncio.create_task(_reload_on_signal(service, requested))]
    if service.settings.reload_config:
        tasks.append(asyncio.create_task(_reload_on_change(service)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _reload_on_signal(service: Service, requested: asyncio.Event) -> None:
    while True:
        await requested.wait()
        requested.clear()
        reopen_audit_file()
        await _reload(service)


async def _reload_on_change(service: Service) -> None:
    settings = service.settings

    async def read_current() -> bytes:
        return await asyncio.to_thread(
            hash_files, settings.agent_config_file, settings.mcp_config_file, settings.prompts_dir
        )

    # The files may have changed since the service was started.
    tried: bytes | None = None
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
    """Reload; after a failure the service continues, and its log has the reason."""
    try:
        await service.reload()
    except ServiceError as error:
        logger.debug("config.not_reloaded", extra={"code": error.code})  # its faults are logged
    except Exception:
        logger.exception("config.reload_failed")


def _has_terminal() -> bool:
    """Return whether the process has a terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
