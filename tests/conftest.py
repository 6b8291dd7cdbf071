"""What all tests share: a clean environment, and asyncio alone."""

import os
import signal

import hypothesis
import pytest

from ai_agent_service.config.settings import Settings
from tests.support.postgres import database, own_postgres, postgres_18, postgres_pair

__all__ = ["database", "own_postgres", "postgres_18", "postgres_pair"]

for ignored in (signal.SIGINT, signal.SIGHUP):
    # `nohup` and jobs in the background ignore these, and children would inherit that.
    if signal.getsignal(ignored) is signal.SIG_IGN:
        signal.signal(ignored, lambda *_: None)
# Set for the whole process, because DeepEval sends what it counted when the process ends.
os.environ["DEEPEVAL_TELEMETRY_OPT_OUT"] = "YES"

# A busy machine is slow, which says nothing about a test.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Start one worker more than there are cores, because many tests wait for other processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (cores or 1) + 1


@pytest.fixture
def anyio_backend() -> str:
    """The service runs on asyncio."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _patient_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take long to prepare a database, and tests in this process do not ask
    whether it is ready."""
    monkeypatch.setattr("ai_agent_service.runtime.opening.SERVE_SECONDS", 20.0)


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
