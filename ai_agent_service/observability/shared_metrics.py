"""The metrics of several worker processes as one: each leaves its own in a folder that they
share."""

import fcntl
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from ai_agent_service.observability.metrics import FAMILIES, BucketCounts, Labels, Snapshot, Values

ENDED_FILE = "ended"
"""The file with what the counters of processes that are gone came to."""


class _Series(msgspec.Struct, array_like=True):
    name: str
    labels: Labels
    values: list[float]


_KINDS = {family.name: family.kind for family in FAMILIES}
_AGGREGATIONS = {family.name: family.across for family in FAMILIES}
_decode = msgspec.msgpack.Decoder(list[_Series]).decode


class SharedMetrics:
    """The metrics of the processes that share `folder`, which their parent makes and deletes; this
    one's own among them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own = folder / str(os.getpid())

    def save(self, snapshot: Snapshot) -> None:
        """Leaves this process's metrics for the others."""
        with self._lock():
            _write(self._own, snapshot)

    def merge(self, snapshot: Snapshot) -> Snapshot:
        """Those of all processes; `snapshot` is this one's, and is left for the others, so that no
        counter ever seems to go back.

        Of a process that is gone its counters are kept and its gauges are not.
        """
        with self._lock():
            _write(self._own, snapshot)
            ended: list[Path] = []
            living: list[Path] = []
            for file in self._folder.iterdir():
                if file.name.isdecimal():
                    (living if _is_alive(int(file.name)) else ended).append(file)
            gone = merge_snapshots(_read(file) for file in (*ended, self._folder / ENDED_FILE))
            gone.values = {
                name: values for name, values in gone.values.items() if _KINDS[name] == "counter"
            }
            if ended:
                _write(self._folder / ENDED_FILE, gone)
                for file in ended:
                    file.unlink()
            return merge_snapshots((gone, *(_read(file) for file in living)))

    def _lock(self) -> "_Lock":
        return _Lock(self._folder / "lock")


class _Lock:
    """Held by one process at a time, and given back by the system if that one dies."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._descriptor = -1

    def __enter__(self) -> None:
        self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def merge_snapshots(snapshots: Iterable[Snapshot]) -> Snapshot:
    """The snapshots of several processes as one."""
    values: dict[str, Values] = {}
    histograms: dict[str, BucketCounts] = {}
    for snapshot in snapshots:
        for name, found in snapshot.values.items():
            together = values.setdefault(name, {})
            across = _AGGREGATIONS[name]
            for labels, value in found.items():
                before = together.get(labels)
                if before is None:
                    together[labels] = value
                else:
                    together[labels] = (
                        before + value
                        if across == "sum"
                        else max(before, value)
                        if across == "max"
                        else min(before, value)
                    )
        for name, counted in snapshot.histograms.items():
            all_counts = histograms.setdefault(name, {})
            for labels, counts in counted.items():
                earlier = all_counts.get(labels)
                all_counts[labels] = (
                    counts
                    if earlier is None
                    else [one + other for one, other in zip(earlier, counts, strict=True)]
                )
    return Snapshot(values, histograms)


def _write(file: Path, snapshot: Snapshot) -> None:
    series = [
        _Series(name, labels, [value])
        for name, found in snapshot.values.items()
        for labels, value in found.items()
    ]
    series += [
        _Series(name, labels, counts)
        for name, found in snapshot.histograms.items()
        for labels, counts in found.items()
    ]
    written = file.with_suffix(".new")
    written.write_bytes(msgspec.msgpack.encode(series))
    written.replace(file)  # a process that is killed while it writes leaves the last one whole


def _read(file: Path) -> Snapshot:
    """What is there; nothing where there is no file."""
    found = Snapshot({}, {})
    with suppress(FileNotFoundError):
        for series in _decode(file.read_bytes()):
            if _KINDS[series.name] == "histogram":
                found.histograms.setdefault(series.name, {})[series.labels] = series.values
            else:
                found.values.setdefault(series.name, {})[series.labels] = series.values[0]
    return found


def _is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError, PermissionError):  # another user's process is none of ours
        os.kill(pid, 0)
        return True
    return False
