"""Work that outlives the request that asked for it, owned by the service."""

import asyncio
import logging
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Tasks:
    """Tasks that run until the end of the service, which waits `grace` seconds for them and cancels the rest."""

    def __init__(self, *, grace: float = 5.0) -> None:
        self._grace = grace
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.finish()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """The task that does `work`; an error that nobody asks it for is logged."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def run(self, work: Coroutine[Any, Any, object]) -> None:
        """As `start`, for work that nobody waits for."""
        _ = self.start(work)

    async def finish(self) -> None:
        """Waits for the tasks, and cancels those that do not end in time."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._grace)
        left = list(self._tasks)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=self._grace)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("background.failed", exc_info=error)
