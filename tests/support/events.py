"""Waits for conditions, each with a time limit."""

import asyncio
import time
from collections.abc import Awaitable, Callable

SECONDS = 30.0


async def until(met: Callable[[], bool | Awaitable[bool]], seconds: float = SECONDS) -> None:
    """Wait until `met` returns true; raise TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        while True:
            found = met()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.01)


def wait_until(met: Callable[[], object], seconds: float = SECONDS) -> None:
    """Wait until `met` returns something true, where no event loop runs; raise TimeoutError after
    `seconds`."""
    deadline = time.monotonic() + seconds
    while not met():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not met within {seconds:g} s")
        time.sleep(0.02)
