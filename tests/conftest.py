"""What all tests share: a clean environment, and asyncio alone."""

import os
import signal

import pytest

from ai_agent_service.config.settings import Settings
from tests.support.postgres import database, postgres_18, postgres_pair

__all__ = ["database", "postgres_18", "postgres_pair"]

signal.signal(signal.SIGINT, signal.default_int_handler)
# which a shell that runs the tests in the background has them ignore, and their children too

os.environ["DEEPEVAL_TELEMETRY_OPT_OUT"] = (
    "YES"  # for all of the process, as what DeepEval counted is sent at its end
)


@pytest.fixture
def anyio_backend() -> str:
    """The service runs on asyncio."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the developer's own shell or .env reaches a test, and no proxy of theirs stands
    between a test and its server."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setitem(Settings.model_config, "env_file", None)
    for name in [
        name
        for name in os.environ
        if name.lower() in Settings.model_fields or name.startswith(("OTEL_", "CONFIDENT_"))
    ]:
        monkeypatch.delenv(name)
