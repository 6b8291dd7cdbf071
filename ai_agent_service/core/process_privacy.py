"""Keep what this process holds from other processes: descriptors, environment and memory."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Generator

from ai_agent_service.core.redaction import find_secrets

_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4


def keep_descriptors() -> None:
    """Make every descriptor but the standard ones non-inheritable.

    A process may be started with inheritable ones, as multiprocessing starts a worker with the
    listening socket, and uvloop ignores `close_fds`.
    """
    try:
        numbers = [int(entry.name) for entry in os.scandir("/dev/fd")]
    except OSError:  # a container without it
        numbers = list(range(4096))
    for number in numbers:
        if number > 2:
            with contextlib.suppress(OSError):  # the one that listed them is closed
                os.set_inheritable(number, False)


def hide_memory() -> None:
    """Keep other processes of this user from reading this one's environment and memory, on Linux.

    It also prevents core dumps and debuggers. A process with CAP_SYS_PTRACE, as root has, is not
    kept out. Children do not inherit it. Source: PR_SET_DUMPABLE(2const).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


@contextlib.contextmanager
def without_secrets() -> Generator[dict[str, str], None, None]:
    """Remove variables with secrets from the environment while a process is started, and yield
    them: what a process is started with can be read until it hides its memory."""
    secrets = find_secrets(os.environ)
    removed = {
        name: value
        for name, value in os.environ.items()
        if any(secret in value for secret in secrets)
    }
    for name in removed:
        del os.environ[name]
    try:
        yield removed
    finally:
        os.environ.update(removed)


def is_memory_hidden() -> bool:
    """Return whether `hide_memory` was called."""
    return sys.platform == "linux" and not ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)
