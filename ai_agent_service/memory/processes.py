"""Decides which of the service's processes are gone: by heartbeats that stop, never by how old one
is, and at once for those that the own host's process table no longer has."""

import os
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import msgspec

from ai_agent_service.core.ids import generate_id

HEARTBEAT_SECONDS = 5.0

PROCESS_STALE_SECONDS = 20.0
"""A process without a heartbeat for so long is gone."""

MAX_STEP_SECONDS = HEARTBEAT_SECONDS * 1.5
"""How much silence two successive looks can show: between them the database may have been away,
for the other processes too."""


def identify_host() -> str:
    """Return a name that only processes share which see each other in the process table.

    A host's name alone does not say so: containers may have the same one.
    """
    parts = [socket.gethostname()]
    with suppress(OSError):  # elsewhere than on Linux the heartbeats alone decide
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts += (str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("pid", "time"))
    return " ".join(parts)


def generate_process_id() -> str:
    """Return an id of this process: its host, number, start and a random part."""
    pid = os.getpid()
    return f"{socket.gethostname()}:{pid}:{_read_start(pid) or 0}:{generate_id('')[:8]}"


def has_exited(host: str, process_id: str, own_host: str) -> bool:
    """Return whether a process of this host has ended, as far as can be seen from here."""
    numbers = process_id.split(":")[-3:-1]
    is_visible = "pid:" in host and host == own_host
    if not is_visible or len(numbers) != 2 or not all(map(str.isdigit, numbers)):
        return False
    pid, start = map(int, numbers)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    found = _read_start(pid)
    return found == 0 or (found is not None and start != 0 and found != start)


def _read_start(pid: int) -> int | None:
    """Return when a process started, in ticks since the boot: 0 for one that has ended and was not
    waited for, None where that cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()
    except OSError:
        return None
    return 0 if fields[0] in "ZX" else int(fields[19])


class _Heard(msgspec.Struct):
    """A process's last heartbeat, and the silence since."""

    seen_at: datetime
    silence: float = 0.0


class ProcessWatch:
    """Observes the heartbeats of all processes.

    Only that a heartbeat differs from the one before counts, and how long it does not is measured
    by `clock`, in seconds that never go back. So the database's clock may jump by days.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._looked_at = clock()
        self._heard: dict[str, _Heard] = {}

    def find_silent(self, heartbeats: Iterable[tuple[str, datetime]]) -> set[str]:
        """Return the processes whose heartbeat has not changed for PROCESS_STALE_SECONDS; call it
        with each heartbeat of this process."""
        now = self._clock()
        step, self._looked_at = min(now - self._looked_at, MAX_STEP_SECONDS), now
        before, self._heard = self._heard, {}
        for process_id, seen_at in heartbeats:
            known = before.get(process_id)
            silence = known.silence + step if known and known.seen_at == seen_at else 0.0
            self._heard[process_id] = _Heard(seen_at, silence)
        return {
            process_id
            for process_id, heard in self._heard.items()
            if heard.silence >= PROCESS_STALE_SECONDS
        }
