"""The metrics of a service of several processes."""

import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.metrics import Told
from tests.support.processes import get, list_workers, serving

REQUESTS = 30


def told(url: str) -> Told:
    """What the process that takes the connection tells of all of them."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        return Told(response.read().decode())


def reached(url: str, is_so: Callable[[Told], bool]) -> list[Told]:
    """What is told, again and again until `is_so`, on a connection of its own each time."""
    deadline, found = time.monotonic() + 40, [told(url)]
    while not is_so(found[-1]):
        assert time.monotonic() < deadline, found[-1].text
        found.append(told(url))
    return found


def models(found: Told) -> float:
    """How many requests for the models were counted."""
    return found.value("aas_requests_total", route="/v1/models", status="200")


def both_live(process: "subprocess.Popen[str]") -> Callable[[Told], bool]:
    """Whether two processes tell of themselves."""
    return lambda found: found.value("aas_workers") == 2 and len(list_workers(process)) == 2


@pytest.mark.timeout(120)
def test_workers_add_up_whichever_is_asked_and_leave_nothing_behind(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2", TMPDIR=str(tmp_path)) as (url, process):
        get(f"{url}/health/ready")
        reached(url, both_live(process))
        for _ in range(REQUESTS):
            get(f"{url}/v1/models")
        found = reached(url, lambda each: models(each) == REQUESTS)
        for _ in range(10):
            found.append(told(url))
        counted = [models(each) for each in found]
        assert counted == sorted(counted)
        assert counted[-1] == REQUESTS
        assert found[-1].value("aas_requests_in_flight") >= 1
        assert len(found[-1].labels("process_resident_memory_bytes")) == 1
        [folder] = tmp_path.glob("ai-agent-service-metrics-*")
        assert folder.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.glob("ai-agent-service-metrics-*")) == []
