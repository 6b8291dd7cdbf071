"""Counts the requests in progress, so that a revision closes only after the last of them."""

import asyncio
from collections.abc import Iterable


class DrainTracker:
    """Counts the requests that begin while one revision is in effect.

    `before` are the trackers of earlier revisions, which `wait_until_drained` waits for too.
    """

    def __init__(self, before: "Iterable[DrainTracker]" = ()) -> None:
        self.in_progress = 0
        self._before = tuple(tracker for tracker in before if tracker.in_progress)
        self._ended: asyncio.Event | None = None

    def begin(self) -> None:
        """Count a request that begins."""
        self.in_progress += 1

    def end(self) -> None:
        """Count a request that ends; call it once for each `begin`."""
        self.in_progress -= 1
        if not self.in_progress and self._ended is not None:
            self._ended.set()

    def start_next(self) -> "DrainTracker":
        """Return the tracker of the next revision; nothing begins in this one any more."""
        return DrainTracker((*self._before, self))

    async def wait_until_drained(self) -> None:
        """Return once all requests of this tracker and of those before it have ended."""
        for tracker in (*self._before, self):
            if tracker.in_progress:
                tracker._ended = tracker._ended or asyncio.Event()
                await tracker._ended.wait()
