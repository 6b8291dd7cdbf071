"""The metrics: how they are counted, bounded, put together and written."""

import pytest

from ai_agent_service.observability.metrics import (
    MAX_SERIES,
    Metrics,
)
from ai_agent_service.observability.prometheus import render_metrics
from ai_agent_service.observability.records import ToolUse
from tests.support.metrics import Scrape, request_report, run_report


def told(metrics: Metrics) -> Scrape:
    """What `metrics` are as text."""
    return Scrape(render_metrics(metrics.take_snapshot({}), "")[0].decode())


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


# Several processes
