"""How far the end of the service has come, for those who answer requests meanwhile."""

from ai_agent_service.core.errors import ShuttingDownError

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

    def is_refused(self, path: str) -> bool:
        """Whether a new request for `path` is refused."""
        return self.is_closed and not path.startswith(ALWAYS_SERVED_PATHS)


def build_stopping_error() -> ShuttingDownError:
    """What callers are told whose requests cannot be answered any more."""
    return ShuttingDownError("The service is being stopped. Try again in a moment.", retry_after=1)
