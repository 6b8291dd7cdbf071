"""Ask one dependency at a time and keep its answer."""

import asyncio
import math
import shutil
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Generic, Literal, TypeVar

import msgspec

from ai_agent_service.core.tasks import Tasks

K = TypeVar("K")
T = TypeVar("T")

PROBE_TIMEOUT_SECONDS = 30.0
"""After which a question without an answer is asked again."""

LOW_DISK_BYTES = 256 * 1024 * 1024


class DiskHealth(msgspec.Struct):
    """A folder that the service writes to, and the free space there."""

    state: Literal["ready", "low", "unknown", "timeout"]
    free_bytes: int | None
    total_bytes: int | None
    error: str | None


class Probe(Generic[T]):
    """The answer of `ask`, which runs in one task of `tasks` at a time; kept for `kept_seconds`.

    A question that hangs is not repeated before it times out, so that load on a hanging part does
    not grow.
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
        """Return the answer, or None after `within` seconds without one."""
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


async def collect_answers(probes: dict[K, Probe[T]], within: float, late: T) -> dict[K, T]:
    """Return the answer of each probe, `late` in place of those that take longer than `within`
    seconds."""
    answers = await asyncio.gather(*(probe.wait_for_answer(within) for probe in probes.values()))
    return {key: answer or late for key, answer in zip(probes, answers, strict=True)}


class DiskProbe:
    """Measures the free space of a folder, in a thread of its own since a network drive may
    hang."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._looking: asyncio.Future[DiskHealth] | None = None

    async def measure_usage(self) -> DiskHealth:
        """Return how much space is free."""
        if self._looking is None:
            loop = asyncio.get_running_loop()
            self._looking = loop.create_future()
            threading.Thread(
                target=self._read_usage, args=(loop, self._looking), name="disk", daemon=True
            ).start()
        return await asyncio.shield(self._looking)

    def _read_usage(
        self, loop: asyncio.AbstractEventLoop, future: "asyncio.Future[DiskHealth]"
    ) -> None:
        try:
            usage = shutil.disk_usage(self._path)
            state: Literal["ready", "low"] = "ready" if usage.free >= LOW_DISK_BYTES else "low"
            answer = DiskHealth(state, usage.free, usage.total, None)
        except OSError as error:
            problem = f"{type(error).__name__}: {error.strerror}"
            answer = DiskHealth("unknown", None, None, problem)

        def set_answer() -> None:
            self._looking = None
            if not future.done():
                future.set_result(answer)

        try:
            loop.call_soon_threadsafe(set_answer)
        except RuntimeError:
            return  # the event loop is closed, so nothing awaits the answer
