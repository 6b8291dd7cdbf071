"""Name the service's metrics and count them in this process."""

from bisect import bisect_left
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import msgspec

from ai_agent_service.observability.records import RequestReport, RunReport

Kind = Literal["counter", "gauge", "histogram"]
Aggregation = Literal["sum", "max", "min"]
Labels = tuple[str, ...]
Values = dict[Labels, float]
BucketCounts = dict[Labels, list[float]]
"""Of a histogram: the number of values in each bucket, the unbounded one last, and then their
sum."""

OTHER = "other"
MAX_SERIES = 2000
"""Combinations of labels that a metric may have; further ones are counted as `other`."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
SHED_CODES = frozenset({"server_busy", "rate_limit_exceeded"})
"""Errors of requests that were refused because there were too many."""

LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
DURATION_BUCKETS = (*LAG_BUCKETS[1:], 10.0, 30.0, 60.0, 120.0, 300.0)
"""Buckets in seconds: from an answer that needs no model to a run as long as REQUEST_TIMEOUT."""


class Family(msgspec.Struct, frozen=True):
    """A metric; `across` says how to merge the values of several worker processes. The names of
    counters end in `_total`."""

    name: str
    kind: Kind
    help: str
    labels: Labels = ()
    across: Aggregation = "sum"
    buckets: tuple[float, ...] = ()


def _define(kind: Kind, series: str, text: str, **options: Any) -> Family:
    """Define a metric by its name and labels in Prometheus' notation: `name{label,label}`."""
    name, _, labels = series.rstrip("}").partition("{")
    return Family(name, kind, text, tuple(labels.split(",")) if labels else (), **options)


_counter = partial(_define, "counter")
_gauge = partial(_define, "gauge")
_histogram = partial(_define, "histogram", buckets=DURATION_BUCKETS)

FAMILIES = (
    _counter("aas_requests_total{route,method,status}", "Requests that are over."),
    _histogram("aas_request_duration_seconds{route}", "From a request's head to its answer's end."),
    _gauge("aas_requests_in_flight", "Requests under way."),
    _counter("aas_requests_shed_total{code}", "Requests refused because there were too many."),
    _counter("aas_errors_total{code}", "Requests that ended with an error."),
    _counter(
        "aas_runs_total{agent,task,outcome}",
        "Runs that are over; task is chat or what was asked for beside one.",
    ),
    _histogram("aas_run_duration_seconds{agent,task}", "How long runs took."),
    _histogram(
        "aas_run_first_byte_seconds{agent}", "From a request's head to its streamed answer's begin."
    ),
    _gauge("aas_runs_in_flight", "Runs under way."),
    _counter("aas_run_steps_total{agent}", "Steps of runs."),
    _counter(
        "aas_runs_without_memory_total{agent}", "Runs that had to do without their agent's memory."
    ),
    _counter(
        "aas_tokens_total{agent,provider,model,type}",
        "Tokens as reported; cached are also in prompt, reasoning in completion.",
    ),
    _counter(
        "aas_cost_dollars_total{agent,provider,model}",
        "Cost in US dollars, where providers state it.",
    ),
    _counter(
        "aas_provider_answer_seconds_total{agent,provider,model}",
        "How long the models' answers took.",
    ),
    _counter(
        "aas_tool_calls_total{tool,outcome}", "Calls of tools: success, error, timeout or refused."
    ),
    _histogram(
        "aas_tool_call_duration_seconds{tool}",
        "How long calls of tools took that were carried out.",
    ),
    _counter(
        "aas_provider_requests_total{provider}",
        "Questions to models, those that an open breaker refused included.",
    ),
    _counter("aas_provider_retries_total{provider}", "Further attempts at such questions."),
    _counter("aas_provider_errors_total{provider,code}", "Questions that ended with an error."),
    _gauge(
        "aas_provider_breaker_state{provider,model}",
        "0 closed, 1 half open, 2 open: not asked.",
        across="max",
    ),
    _counter("aas_provider_breaker_openings_total{provider,model}", "How often a breaker opened."),
    _counter("aas_memory_messages_stored_total", "Messages stored."),
    _counter(
        "aas_memory_conversations_begun_total",
        "Questions stored that are the first of their conversation.",
    ),
    _counter("aas_memory_summaries_total{outcome}", "Summaries of older messages: made or failed."),
    _counter(
        "aas_memory_tokens_saved_total",
        "Estimated tokens that summaries are shorter than what they stand for.",
    ),
    _counter(
        "aas_memory_summary_tokens_total{type}",
        "Tokens that making summaries took, as providers report them.",
    ),
    _counter("aas_memory_cleaned_up_sessions_total", "Sessions deleted for their age."),
    _counter("aas_memory_cleaned_up_messages_total", "Messages deleted for their age."),
    _counter("aas_memory_ended_runs_total", "Runs of processes that were gone, ended."),
    _gauge(
        "aas_database_up{role}",
        "Whether the database of conversations can be used: primary or replica.",
        across="min",
    ),
    _gauge(
        "aas_mcp_server_up{server}", "Whether the tools of an MCP server can be used.", across="min"
    ),
    _gauge(
        "aas_mcp_server_state{server,state}",
        "How many worker processes see an MCP server in a state.",
    ),
    _gauge("aas_mcp_server_tools{server}", "Tools of an MCP server.", across="min"),
    _counter(
        "aas_mcp_server_restarts_total{server}", "How often an MCP server was connected to again."
    ),
    _histogram(
        "aas_event_loop_lag_seconds",
        "How late a timer rings that is set each second.",
        buckets=LAG_BUCKETS,
    ),
    _counter(
        "aas_log_lines_dropped_total{log}",
        "Lines of the log or the audit log that their reader or disk did not take in time.",
    ),
    _counter(
        "aas_log_write_failures_total{log}",
        "How often writing the log or the audit log began to fail.",
    ),
    _gauge("aas_workers", "Processes that answer requests."),
    _gauge(
        "aas_agent_info{agent,version}",
        "1; which agents there are, and in which version.",
        across="max",
    ),
    _gauge(
        "aas_build_info{version,python}", "1; which version runs, on which Python.", across="max"
    ),
    _counter("process_cpu_seconds_total", "CPU time."),
    _gauge("process_resident_memory_bytes", "Resident memory."),
    _gauge("process_virtual_memory_bytes", "Virtual memory."),
    _gauge(
        "process_start_time_seconds",
        "When the process started, in Unix seconds; of several the first.",
        across="min",
    ),
    _gauge("process_open_fds", "Open file descriptors."),
    _gauge(
        "process_max_fds",
        "How many file descriptors may be open; of several processes the least.",
        across="min",
    ),
)
"""All metrics, in the order in which they are shown."""

HISTOGRAMS = {family.name: family for family in FAMILIES if family.kind == "histogram"}


class Snapshot(msgspec.Struct):
    """The values of one process at one time, by the metrics' names."""

    values: dict[str, Values]
    histograms: dict[str, BucketCounts]


class Metrics:
    """The counts of this process. Only the thread of its event loop adds to them, without a lock
    and in less than 1 us."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._values: dict[str, Values] = {
            family.name: {} if family.labels else {(): 0.0}
            for family in FAMILIES
            if family.kind == "counter" and family.name.startswith("aas_")
        }
        self._histograms: dict[str, BucketCounts] = {
            name: {} if family.labels else {(): [0.0] * (len(family.buckets) + 2)}
            for name, family in HISTOGRAMS.items()
        }

    def count_request(self, report: RequestReport) -> None:
        """Count a request, and its run if it had one."""
        route = report.route
        method = report.method if report.method in METHODS else OTHER
        self.add("aas_requests_total", (route, method, str(report.status)))
        self._observe("aas_request_duration_seconds", (route,), report.seconds)
        if report.error:
            self.add("aas_errors_total", (report.error,))
            if report.error in SHED_CODES:
                self.add("aas_requests_shed_total", (report.error,))
        if (run := report.run) is not None:
            self._count_run(run)
            if run.is_streamed and report.first_byte_seconds is not None and report.status == 200:
                self._observe(
                    "aas_run_first_byte_seconds", (run.agent_id,), report.first_byte_seconds
                )

    def add(self, name: str, labels: Labels = (), amount: float = 1) -> None:
        """Add to a counter."""
        values = self._values[name]
        if labels not in values:
            labels = _limit_labels(values, labels)
        values[labels] = values.get(labels, 0.0) + amount

    def observe_lag(self, seconds: float) -> None:
        """Record how late the event loop was."""
        self._observe("aas_event_loop_lag_seconds", (), seconds)

    def take_snapshot(self, others: Mapping[str, Values]) -> Snapshot:
        """Return a copy of the current values together with those of `others`."""
        values = {name: dict(found) for name, found in self._values.items()}
        values.update(others)
        values["aas_requests_in_flight"] = {(): float(self.in_flight)}
        histograms = {
            name: {labels: list(counts) for labels, counts in found.items()}
            for name, found in self._histograms.items()
        }
        return Snapshot(values, histograms)

    def _count_run(self, run: RunReport) -> None:
        agent, task = run.agent_id, run.task or "chat"
        self.add("aas_runs_total", (agent, task, run.outcome))
        self._observe("aas_run_duration_seconds", (agent, task), run.seconds)
        if run.is_without_memory:
            self.add("aas_runs_without_memory_total", (agent,))
        if run.is_repeated:
            return
        self.add("aas_run_steps_total", (agent,), run.step_count)
        for step in run.steps:
            model = (agent, step.provider, step.model)
            self.add("aas_provider_answer_seconds_total", model, step.seconds)
            if (usage := step.usage) is None:
                continue
            for kind, tokens in (
                ("prompt", usage.prompt_tokens),
                ("completion", usage.completion_tokens),
                ("cached", usage.cached_tokens),
                ("reasoning", usage.reasoning_tokens),
            ):
                if tokens:
                    self.add("aas_tokens_total", (*model, kind), tokens)
            if usage.cost is not None:
                self.add("aas_cost_dollars_total", model, usage.cost)
        for use in run.tools:
            # The name of a refused tool may be a model's invention.
            tool = OTHER if use.outcome == "refused" else use.name
            self.add("aas_tool_calls_total", (tool, use.outcome))
            if use.outcome != "refused":
                self._observe("aas_tool_call_duration_seconds", (tool,), use.seconds)

    def _observe(self, name: str, labels: Labels, value: float) -> None:
        found = self._histograms[name]
        buckets = HISTOGRAMS[name].buckets
        counts = found.get(labels)
        if counts is None:
            counts = found.setdefault(_limit_labels(found, labels), [0.0] * (len(buckets) + 2))
        counts[bisect_left(buckets, value)] += 1
        counts[-1] += value


def _limit_labels(found: Mapping[Labels, object], labels: Labels) -> Labels:
    return labels if len(found) < MAX_SERIES else (OTHER,) * len(labels)
