"""The metrics of several processes, which add up whichever is asked."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from ai_agent_service.observability.metrics import (
    FAMILIES,
    HISTOGRAMS,
    Metrics,
    Snapshot,
    Values,
)
from ai_agent_service.observability.prometheus import render_metrics
from ai_agent_service.observability.shared_metrics import (
    FOLDER_PREFIX,
    OWNER_FILE,
    SharedMetrics,
    merge_snapshots,
    open_metrics_folder,
)
from tests.support.metrics import Scrape, request_report, run_report
from tests.support.processes import get, list_workers, serving

REQUESTS = 30


def told(url: str) -> Scrape:
    """What the process that takes the connection tells of all of them."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        return Scrape(response.read().decode())


def reached(url: str, is_so: Callable[[Scrape], bool]) -> list[Scrape]:
    """What is told, again and again until `is_so`, on a connection of its own each time."""
    deadline, found = time.monotonic() + 40, [told(url)]
    while not is_so(found[-1]):
        assert time.monotonic() < deadline, found[-1].text
        found.append(told(url))
    return found


def models(found: Scrape) -> float:
    """How many requests for the models were counted."""
    return found.value("aas_requests_total", route="/v1/models", status="200")


def both_live(process: "subprocess.Popen[str]") -> Callable[[Scrape], bool]:
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


def counted(runs: int, in_flight: int) -> Metrics:
    """The metrics of a process after so many runs."""
    metrics = Metrics()
    for _ in range(runs):
        metrics.count_request(request_report(run_report()))
    metrics.in_flight = in_flight
    return metrics


def dead_process() -> int:
    """The id of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(20)
    return process.pid


def workers_in(folder: Path, pid: int, monkeypatch: pytest.MonkeyPatch) -> SharedMetrics:
    """What the process `pid` shares `folder` as."""
    monkeypatch.setattr(os, "getpid", lambda: pid)
    return SharedMetrics(folder)


def test_the_metrics_of_processes_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, parent = os.getpid(), os.getppid()
    first, second = (
        workers_in(tmp_path, own, monkeypatch),
        workers_in(tmp_path, parent, monkeypatch),
    )
    first.save(
        counted(2, 1).take_snapshot(
            {
                "aas_database_up": {("primary",): 1.0},
                "aas_provider_breaker_state": {("p", "m"): 0.0},
            }
        )
    )
    others: dict[str, Values] = {
        "aas_database_up": {("primary",): 0.0},
        "aas_provider_breaker_state": {("p", "m"): 2.0},
    }
    found = Scrape(
        render_metrics(second.merge(counted(3, 4).take_snapshot(others)), "")[0].decode()
    )
    assert found.value("aas_runs_total", agent="a") == 5
    assert found.value("aas_request_duration_seconds_count") == 5
    assert found.value("aas_request_duration_seconds_bucket", le="0.5") == 5
    assert found.value("aas_requests_in_flight") == 5
    assert found.value("aas_database_up", role="primary") == 0
    assert found.value("aas_provider_breaker_state", provider="p", model="m") == 2


def test_the_counters_of_a_process_that_is_gone_are_kept_and_its_gauges_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = workers_in(tmp_path, dead_process(), monkeypatch)
    monkeypatch.undo()
    living = SharedMetrics(tmp_path)
    gone.save(counted(2, 7).take_snapshot({}))
    for _ in range(2):
        snapshot = living.merge(counted(3, 1).take_snapshot({}))
        assert snapshot.values["aas_runs_total"] == {("a", "chat", "answered"): 5}
        assert snapshot.values["aas_requests_in_flight"] == {(): 1}
        assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
            (str(os.getpid()), "ended", "lock")
        )


def test_what_was_told_once_is_known_to_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = SharedMetrics(tmp_path)
    second = workers_in(tmp_path, os.getppid(), monkeypatch)
    before = first.merge(counted(9, 0).take_snapshot({})).values["aas_runs_total"]
    assert second.merge(counted(0, 0).take_snapshot({})).values["aas_runs_total"] == before


def test_nothing_is_made_of_nothing() -> None:
    assert merge_snapshots(()) == Snapshot({}, {})
    assert set(HISTOGRAMS) == {family.name for family in FAMILIES if family.buckets}


def test_folders_of_processes_that_were_killed_are_deleted_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    stale, starting = tmp_path / f"{FOLDER_PREFIX}stale", tmp_path / f"{FOLDER_PREFIX}starting"
    for folder in (stale, starting):
        folder.mkdir()
    (stale / OWNER_FILE).touch()
    with open_metrics_folder() as first, open_metrics_folder() as second:
        assert {first, second, starting} == set(tmp_path.iterdir())
    assert {starting} == set(tmp_path.iterdir())
