"""Measure how late the event loop runs a timer that is set each second."""

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager

INTERVAL_SECONDS = 1.0


@contextmanager
def measure_loop_lag(report: Callable[[float], None]) -> Generator[None, None, None]:
    """Call `report` with the lag in seconds, once a second, in the event loop."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def schedule_timer() -> None:
        nonlocal timer
        due = loop.time() + INTERVAL_SECONDS
        timer = loop.call_at(due, report_lag, due)

    def report_lag(due: float) -> None:
        report(max(0.0, loop.time() - due))
        schedule_timer()

    schedule_timer()
    try:
        yield
    finally:
        timer.cancel()
