"""How long a service that is told to stop goes on as before."""

import sys
import time

import pytest

from ai_agent_service.runtime.shutdown import DEFAULT_DRAIN_SECONDS, RECENT_SECONDS, ShutdownState


@pytest.mark.parametrize(
    ("configured", "ago", "is_terminal", "seconds"),
    [
        (None, 1, False, DEFAULT_DRAIN_SECONDS),
        (None, 1, True, 0),
        (None, RECENT_SECONDS + 1, False, 0),
        (None, None, False, 0),
        (0.0, 1, False, 0),
        (9.0, None, True, 9),
    ],
)
def test_a_service_drains_by_default_only_where_others_may_use_it(
    monkeypatch: pytest.MonkeyPatch,
    configured: float | None,
    ago: float | None,
    is_terminal: bool,
    seconds: float,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    state = ShutdownState()
    if ago is not None:
        state.requested_at = time.monotonic() - ago
    assert state.choose_drain_seconds(configured) == seconds
