"""The slots of runs: how many may be in progress at once in this process."""

from collections.abc import Generator
from contextlib import contextmanager

from ai_agent_service.core.errors import ServerBusyError


class RunSlots:
    """Counts the runs in progress, at most `limit` at once (MAX_CONCURRENT_REQUESTS)."""

    def __init__(self, limit: int) -> None:
        self.in_use = 0
        self._limit = limit

    @contextmanager
    def hold(self) -> Generator[None, None, None]:
        """Hold a slot; raises ServerBusyError when all are in use."""
        if self.in_use >= self._limit:
            raise ServerBusyError(
                "Too many requests are under way. Try again in a moment.", retry_after=1
            )
        self.in_use += 1
        try:
            yield
        finally:
            self.in_use -= 1
