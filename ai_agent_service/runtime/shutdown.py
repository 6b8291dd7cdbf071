"""How far the end of the service has come, for those who answer requests meanwhile."""

import math
import sys
import time

from ai_agent_service.core.errors import ShuttingDownError

DEFAULT_DRAIN_SECONDS = 4.0
"""Long enough for a proxy to close its idle connections, as each answer has it do."""

RECENT_SECONDS = 60.0

ALWAYS_SERVED_PATHS = ("/health", "/metrics")
"""Addresses that watch over the service."""


class ShutdownState:
    """Set by the server, as it is told to stop; an application that is not served by ours never
    stops."""

    def __init__(self) -> None:
        self.has_begun = False
        """Whether requests should be sent elsewhere; they are still answered."""

        self.is_closed = False
        """Whether no new request is taken but those that watch over the service."""

        self.requested_at = -math.inf
        """When the last request came, as `time.monotonic()` reads."""

    def choose_drain_seconds(self, configured: float | None) -> float:
        """Return how long requests are served as before after the service is asked to stop:
        `configured`, or what suits who has used it of late."""
        if configured is not None:
            return configured
        is_in_use = time.monotonic() - self.requested_at < RECENT_SECONDS
        return DEFAULT_DRAIN_SECONDS if is_in_use and not sys.stderr.isatty() else 0.0

    def is_refused(self, path: str) -> bool:
        """Whether a new request for `path` is refused."""
        return self.is_closed and not path.startswith(ALWAYS_SERVED_PATHS)


def build_stopping_error() -> ShuttingDownError:
    """What callers are told whose requests cannot be answered any more."""
    return ShuttingDownError("The service is being stopped. Try again in a moment.", retry_after=1)
