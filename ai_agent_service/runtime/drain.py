"""Counts what is under way, so that what it may use is closed only once it has ended."""

import asyncio
from collections.abc import Iterable


class DrainTracker:
    """A stretch of time; what begins in it is counted by `begin` and `end`. `before` are earlier
    ones, which `over` waits for too."""

    def __init__(self, before: "Iterable[DrainTracker]" = ()) -> None:
        self.in_progress = 0
        self._before = tuple(period for period in before if period.in_progress)
        self._ended: asyncio.Event | None = None

    def begin(self) -> None:
        """Counts what begins now."""
        self.in_progress += 1

    def end(self) -> None:
        """Counts what ends now; call it once for each `begin`."""
        self.in_progress -= 1
        if not self.in_progress and self._ended is not None:
            self._ended.set()

    def start_next(self) -> "DrainTracker":
        """The period that follows: nothing begins in this one any more."""
        return DrainTracker((*self._before, self))

    async def wait_until_drained(self) -> None:
        """Returns once all has ended that began in this period, which has been followed by another,
        or before it."""
        for period in (*self._before, self):
            if period.in_progress:
                period._ended = period._ended or asyncio.Event()
                await period._ended.wait()
