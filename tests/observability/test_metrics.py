"""The metrics: how they are counted, bounded, put together and written."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ai_agent_service.core.events import StepRecord
from ai_agent_service.core.usage import Usage
from ai_agent_service.observability.loop_lag import measure_loop_lag
from ai_agent_service.observability.metrics import (
    FAMILIES,
    HISTOGRAMS,
    MAX_SERIES,
    Metrics,
    Snapshot,
    Values,
)
from ai_agent_service.observability.prometheus import collect_process_values, render_metrics
from ai_agent_service.observability.records import RequestReport, RunReport, ToolUse
from ai_agent_service.observability.shared_metrics import SharedMetrics, merge_snapshots
from tests.support.metrics import Told

ROOT = Path(__file__).parents[2]


def run_report(**fields: object) -> RunReport:
    """A run of the agent `a`, answered in a quarter of a second."""
    return RunReport(
        **{  # type: ignore[arg-type]
            "agent_id": "a",
            "key_id": "k",
            "tenant": "t",
            "user": "u",
            "session": None,
            "run_id": "run_1",
            "task": None,
            "outcome": "answered",
            "is_streamed": True,
            "provider": "p",
            "steps": (StepRecord((), Usage(10, 4, 3, 2, cost=0.5), "m", "p", 0.2),),
            "step_count": 1,
            "seconds": 0.25,
            **fields,
        }
    )


def request_report(
    run: RunReport | None = None,
    *,
    route: str = "/r",
    status: int = 200,
    error: str = "",
    method: str = "POST",
) -> RequestReport:
    """A request that began to be answered after 0.1 seconds and took 0.3."""
    return RequestReport(method, route, status, 0.3, 0.1, "127.0.0.1", error, run)


def told(metrics: Metrics) -> Told:
    """What `metrics` are as text."""
    return Told(render_metrics(metrics.take_snapshot({}), "")[0].decode())


def test_a_request_and_its_run_are_counted() -> None:
    metrics = Metrics()
    use = ToolUse("add", "success", 0.02)
    metrics.count_request(request_report(run_report(tools=(use, ToolUse("add", "error", 0.04)))))
    found = told(metrics)
    assert found.value("aas_requests_total", route="/r", method="POST", status="200") == 1
    assert found.value("aas_request_duration_seconds_sum", route="/r") == 0.3
    assert found.value("aas_runs_total", agent="a", task="chat", outcome="answered") == 1
    assert found.value("aas_run_first_byte_seconds_count", agent="a") == 1
    assert found.value("aas_run_steps_total", agent="a") == 1
    tokens = {
        kind: found.value("aas_tokens_total", agent="a", provider="p", model="m", type=kind)
        for kind in ("prompt", "completion")
    }
    assert tokens == {"prompt": 10, "completion": 4}
    assert (
        found.value("aas_tokens_total", type="cached"),
        found.value("aas_tokens_total", type="reasoning"),
    ) == (3, 2)
    assert found.value("aas_cost_dollars_total", agent="a", provider="p", model="m") == 0.5
    assert (
        found.value("aas_provider_answer_seconds_total", agent="a", provider="p", model="m") == 0.2
    )
    assert found.value("aas_tool_calls_total", tool="add", outcome="success") == 1
    assert found.value("aas_tool_calls_total", tool="add", outcome="error") == 1
    assert found.value("aas_tool_call_duration_seconds_sum", tool="add") == pytest.approx(0.06)


def test_a_histogram_has_each_value_in_its_bucket_and_in_all_above() -> None:
    metrics = Metrics()
    for seconds in (0.0005, 0.001, 0.3, 60.0):
        metrics.observe_lag(seconds)
    found = told(metrics)
    name = "aas_event_loop_lag_seconds"
    buckets = {
        labels["le"]: value for sample, labels, value in found.samples if sample == f"{name}_bucket"
    }
    assert [buckets[bound] for bound in ("0.001", "0.25", "0.5", "5.0", "+Inf")] == [2, 2, 3, 3, 4]
    assert found.value(f"{name}_count") == 4
    assert found.value(f"{name}_sum") == pytest.approx(60.3015)


def test_a_repeated_answer_counts_as_a_run_that_took_no_tokens() -> None:
    metrics = Metrics()
    metrics.count_request(
        request_report(run_report(is_repeated=True, tools=(ToolUse("add", "success", 1.0),)))
    )
    found = told(metrics)
    assert found.value("aas_runs_total") == 1
    assert [
        found.value(f"aas_{name}_total")
        for name in ("tokens", "cost_dollars", "tool_calls", "run_steps")
    ] == [0, 0, 0, 0]


def test_what_is_shed_is_counted_by_its_reason() -> None:
    metrics = Metrics()
    for code in ("server_busy", "rate_limit_exceeded", "rate_limit_exceeded", "not_found"):
        metrics.count_request(request_report(error=code, status=429))
    found = told(metrics)
    assert found.value("aas_requests_shed_total", code="rate_limit_exceeded") == 2
    assert (found.value("aas_requests_shed_total"), found.value("aas_errors_total")) == (3, 4)


def test_labels_are_bounded() -> None:
    metrics = Metrics()
    for number in range(MAX_SERIES + 50):
        metrics.count_request(
            request_report(
                run_report(
                    agent_id=f"a{number}", tools=(ToolUse(f"made up {number}", "refused", 0.0),)
                )
            )
        )
    metrics.count_request(request_report(method="BREW"))
    found = told(metrics)
    assert len(found.labels("aas_runs_total")) == MAX_SERIES + 1
    assert found.value("aas_runs_total", agent="other") == 50
    assert found.value("aas_runs_total") == MAX_SERIES + 50
    assert len(found.labels("aas_run_duration_seconds_count")) == MAX_SERIES + 1
    assert found.labels("aas_tool_calls_total") == [{"tool": "other", "outcome": "refused"}]
    assert found.value("aas_requests_total", method="other") == 1


def test_names_follow_the_conventions_and_stand_in_the_documentation() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = text.split("## Metrics")[1].split("\n## ")[0]
    documented = {
        row[0]: (row[1], row[2])
        for row in re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \|", section, re.MULTILINE)
    }
    assert documented == {
        family.name: (family.kind, ", ".join(f"`{label}`" for label in family.labels))
        for family in FAMILIES
    }
    for family in FAMILIES:
        assert family.name.startswith(("aas_", "process_"))
        assert family.name.endswith("_total") == (family.kind == "counter")
        assert family.help.endswith(".")


def test_what_the_system_tells_of_the_process_is_among_the_metrics() -> None:
    found = collect_process_values()
    assert set(found) == {family.name for family in FAMILIES if family.name.startswith("process_")}
    assert all(value > 0 for values in found.values() for value in values.values())


def test_the_form_is_the_one_that_is_asked_for() -> None:
    snapshot = Metrics().take_snapshot({})
    text, kind = render_metrics(
        snapshot, "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    )
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")
    assert render_metrics(snapshot, "")[1].startswith("text/plain")


async def test_the_lag_of_the_event_loop_is_told() -> None:
    late: asyncio.Queue[float] = asyncio.Queue()
    with measure_loop_lag(late.put_nowait):
        async with asyncio.timeout(20):
            assert await late.get() >= 0
            assert await late.get() >= 0
    assert late.empty()


# Several processes


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
    found = Told(render_metrics(second.merge(counted(3, 4).take_snapshot(others)), "")[0].decode())
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
