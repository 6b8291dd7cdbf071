"""Probes that ask one dependency at a time and keep the answer."""

import asyncio
import math
import shutil
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from ai_agent_service.core.tasks import Tasks

K = TypeVar("K")

T = TypeVar("T")

PROBE_TIMEOUT_SECONDS = 30.0
"""After which a question that hangs is put anew."""


class DiskAnswer(msgspec.Struct, frozen=True):
    """How many bytes are free where the service writes; `error` is why that cannot be told."""

    free_bytes: int | None = None
    total_bytes: int | None = None
    error: str | None = None


class Probe(Generic[T]):
    """What `ask` comes to: asked by one task of `tasks` at a time, and kept for `kept_seconds`.

    A question that hangs is not put again before it is given up, so that a part which hangs is not
    asked ever more.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[T]], tasks: Tasks, *, kept_seconds: float
    ) -> None:
        self._ask = ask
        self._tasks = tasks
        self._kept_seconds = kept_seconds
        self._answered_at = -math.inf
        self._task: asyncio.Task[T | None] | None = None

    async def wait_for_answer(self, within: float) -> T | None:
        """The answer; None if there is none within that many seconds."""
        task = self._task
        if task is None or (
            task.done() and time.monotonic() - self._answered_at >= self._kept_seconds
        ):
            task = self._task = self._tasks.start(self._run())
        await asyncio.wait((task,), timeout=within)
        return task.result() if task.done() and not task.cancelled() else None

    async def _run(self) -> T | None:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                return await self._ask()
        except TimeoutError:
            return None
        finally:
            self._answered_at = time.monotonic()


async def _collect_answers(probes: dict[K, Probe[T]], within: float) -> dict[K, T | None]:
    answers = await asyncio.gather(*(probe.wait_for_answer(within) for probe in probes.values()))
    return dict(zip(probes, answers, strict=True))


class _DiskProbe:
    """A folder whose room is looked up in a thread of its own, as a network drive may hang: then
    nothing else should."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._looking: asyncio.Future[DiskAnswer] | None = None

    async def measure_usage(self) -> DiskAnswer:
        """How much is free."""
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_future()
            threading.Thread(
                target=self._read_usage,
                args=(asyncio.get_running_loop(), self._looking),
                name="disk",
                daemon=True,
            ).start()
        return await asyncio.shield(self._looking)

    def _read_usage(
        self, loop: asyncio.AbstractEventLoop, future: "asyncio.Future[DiskAnswer]"
    ) -> None:
        try:
            usage = shutil.disk_usage(self._path)
            answer = DiskAnswer(usage.free, usage.total)
        except OSError as error:
            answer = DiskAnswer(error=f"{type(error).__name__}: {error.strerror}")

        def set_answer() -> None:
            self._looking = None
            if not future.done():
                future.set_result(answer)

        try:
            loop.call_soon_threadsafe(set_answer)
        except RuntimeError:
            return  # the event loop is closed: nobody waits any more
