"""What the tests of providers share."""

import pytest


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of the developer's own environment stands between a test and its server."""
    monkeypatch.setenv("no_proxy", "*")
