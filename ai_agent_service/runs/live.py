"""The runs in progress in this process, which equal requests may join."""

import asyncio
from collections.abc import AsyncGenerator

from ai_agent_service.core.events import RunEvent


class LiveRuns:
    """The runs that are under way in this process, for requests that repeat one of them to join
    it."""

    def __init__(self) -> None:
        self._runs: dict[str, _LiveRun] = {}

    def begin(self, run_id: str) -> "_LiveRun":
        """Lets others join the run of this id, until it is ended."""
        run = self._runs[run_id] = _LiveRun()
        return run

    def end(self, run_id: str) -> None:
        """Lets nobody join any more; those who have are told what there is, and that it ended."""
        self._runs.pop(run_id).close()

    def is_live(self, run_id: str) -> bool:
        """Whether the run of this id is under way."""
        return run_id in self._runs

    def find(self, run_id: str) -> "_LiveRun | None":
        """The run of this id, if it is under way."""
        return self._runs.get(run_id)


class _LiveRun:
    def __init__(self) -> None:
        self._events: list[RunEvent] = []
        self._changed: asyncio.Event | None = None
        self._ended = False

    def publish(self, event: RunEvent) -> None:
        self._events.append(event)
        self._wake()

    def close(self) -> None:
        self._ended = True
        self._wake()

    async def follow(self) -> AsyncGenerator[RunEvent, None]:
        """All its events, those that were told already first; they end early if the run is
        stopped."""
        told = 0
        while True:
            while told < len(self._events):
                yield self._events[told]
                told += 1
            if self._ended:
                return
            self._changed = self._changed or asyncio.Event()
            await self._changed.wait()

    def _wake(self) -> None:
        if self._changed is not None:
            changed, self._changed = self._changed, None
            changed.set()
