"""Measures how late the event loop is: by how much a timer rings too late that is set each second."""

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager

EACH_SECONDS = 1.0


@contextmanager
def loop_lag(tell: Callable[[float], None]) -> Generator[None, None, None]:
    """Tells the lag in seconds, once a second, in the event loop."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def wait() -> None:
        nonlocal timer
        due = loop.time() + EACH_SECONDS
        timer = loop.call_at(due, ring, due)

    def ring(due: float) -> None:
        tell(max(0.0, loop.time() - due))
        wait()

    wait()
    try:
        yield
    finally:
        timer.cancel()
