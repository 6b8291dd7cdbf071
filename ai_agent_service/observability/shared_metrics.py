"""Merge the metrics of several worker processes, which share them in a folder."""

import fcntl
import operator
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from ai_agent_service.observability.metrics import (
    FAMILIES,
    Aggregation,
    BucketCounts,
    Snapshot,
    Values,
)

ENDED_FILE = "ended"
"""The file with the sums of the counters of processes that have ended."""

FOLDER_PREFIX = "ai-agent-service-metrics-"
OWNER_FILE = "owner"
"""The file that the parent of the workers holds a lock on for as long as it runs."""

_FAMILIES = {family.name: family for family in FAMILIES}
_MERGERS: dict[Aggregation, Callable[[float, float], float]] = {
    "sum": operator.add,
    "max": max,
    "min": min,
}
_decode = msgspec.msgpack.Decoder(Snapshot).decode


@contextmanager
def open_metrics_folder() -> Generator[Path, None, None]:
    """Yield a new folder for the metrics of workers, which is deleted at the end, together with
    those of processes that were killed."""
    parent = Path(tempfile.gettempdir())
    for folder in parent.glob(f"{FOLDER_PREFIX}*"):
        with suppress(OSError), _hold_lock(folder / OWNER_FILE, os.O_RDWR):
            if folder.lstat().st_uid == os.geteuid():
                shutil.rmtree(folder)
    with (
        tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, ignore_cleanup_errors=True) as name,
        _hold_lock(Path(name) / OWNER_FILE, os.O_RDWR | os.O_CREAT),
    ):
        yield Path(name)


@contextmanager
def _hold_lock(file: Path, flags: int) -> Generator[None, None, None]:
    """Hold the lock of `file`, which the system releases if this process dies; raises OSError if
    another process has it."""
    descriptor = os.open(file, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


class SharedMetrics:
    """The metrics of the processes that share `folder`, which their parent creates and deletes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own = folder / str(os.getpid())

    def save(self, snapshot: Snapshot) -> None:
        """Publish this process's metrics to the others."""
        with self._lock():
            _write(self._own, snapshot)

    def merge(self, snapshot: Snapshot) -> Snapshot:
        """Return the metrics of all processes; `snapshot` is this one's.

        It is published first, so that no counter ever decreases. Of a process that has ended, the
        counters are kept and the gauges dropped.
        """
        with self._lock():
            _write(self._own, snapshot)
            ended: list[Path] = []
            living: list[Path] = []
            for file in self._folder.iterdir():
                if file.name.isdecimal():
                    (living if _is_alive(int(file.name)) else ended).append(file)
            gone = merge_snapshots(_read(file) for file in (*ended, self._folder / ENDED_FILE))
            for name in [name for name in gone.values if _FAMILIES[name].kind != "counter"]:
                del gone.values[name]
            if ended:
                _write(self._folder / ENDED_FILE, gone)
                for file in ended:
                    file.unlink()
            return merge_snapshots((gone, *map(_read, living)))

    @contextmanager
    def _lock(self) -> Generator[None, None, None]:
        """Hold the folder's lock, which the system releases if this process dies."""
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def merge_snapshots(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Return the snapshots of several processes as one."""
    values: dict[str, Values] = {}
    histograms: dict[str, BucketCounts] = {}
    for snapshot in snapshots:
        for name, found in snapshot.values.items():
            merge = _MERGERS[_FAMILIES[name].across]
            merged = values.setdefault(name, {})
            for labels, value in found.items():
                merged[labels] = merge(merged[labels], value) if labels in merged else value
        for name, counted in snapshot.histograms.items():
            sums = histograms.setdefault(name, {})
            for labels, counts in counted.items():
                sums[labels] = (
                    list(map(operator.add, sums[labels], counts)) if labels in sums else counts
                )
    return Snapshot(values, histograms)


def _write(file: Path, snapshot: Snapshot) -> None:
    written = file.with_suffix(".new")
    written.write_bytes(msgspec.msgpack.encode(snapshot))
    written.replace(file)  # a process that is killed here leaves the previous file whole


def _read(file: Path) -> Snapshot:
    """Return the snapshot in `file`; an empty one if there is no file."""
    try:
        return _decode(file.read_bytes())
    except FileNotFoundError:
        return Snapshot({}, {})


def _is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError, PermissionError):  # that of another user is not ours
        os.kill(pid, 0)
        return True
    return False
