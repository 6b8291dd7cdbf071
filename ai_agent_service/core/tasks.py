"""Work, and what is kept open, that outlives the request that asked for it, owned by the
service."""

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")
logger = logging.getLogger(__name__)

CANCEL_GRACE_SECONDS = 5.0
"""How long what was cancelled has to clean up, where `grace` is shorter."""


class Tasks:
    """Tasks that run until the end of the service, which waits `grace` seconds for them and cancels
    the rest."""

    def __init__(self, *, grace: float = 5.0) -> None:
        self._grace = grace
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.finish()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """The task that does `work`; an error that nobody asks it for is logged."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._handle_done)
        return task

    def run(self, work: Coroutine[Any, Any, object]) -> None:
        """As `start`, for work that nobody waits for."""
        _ = self.start(work)

    async def wait_for_running(self, seconds: float) -> None:
        """Returns once those that are under way now have ended, or after `seconds`."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=seconds)

    async def finish(self) -> None:
        """Waits for the tasks, and cancels those that do not end in time."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._grace)
        left = list(self._tasks)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=max(self._grace, CANCEL_GRACE_SECONDS))

    def _handle_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("background.failed", exc_info=error)


class ContextHolder(Generic[T]):
    """A context that a task of its own keeps open, so that any task may close it: some libraries
    bear no other than the one that opened."""

    def __init__(self, context: AbstractAsyncContextManager[T]) -> None:
        self._closing = asyncio.Event()
        self._opened: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._hold_open(context))

    async def wait_until_open(self) -> T:
        """What the context gives; raises what it raises, and closes it if this is cancelled."""
        try:
            return await self._opened
        except asyncio.CancelledError:
            self._task.cancel()
            await asyncio.wait((self._task,))
            raise

    async def close(self) -> None:
        """Leaves the context; what it raises is logged."""
        self._closing.set()
        await asyncio.wait((self._task,))

    async def _hold_open(self, context: AbstractAsyncContextManager[T]) -> None:
        try:
            async with context as value:
                if not self._opened.done():
                    self._opened.set_result(value)
                await self._closing.wait()
        except Exception as error:
            if not self._opened.done():
                self._opened.set_exception(error)
            else:
                logger.exception("background.not_closed")
        finally:
            if (
                not self._opened.done()
            ):  # a library may let a cancellation out that nobody asked for
                self._opened.set_exception(
                    RuntimeError("what was to be opened was cancelled by itself")
                )
                self._opened.exception()  # whoever asked for it may be gone
