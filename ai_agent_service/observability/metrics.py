"""The service's metrics: what they are called, and their counts in this process."""

from bisect import bisect_left
from collections.abc import Mapping
from typing import Literal

import msgspec

from ai_agent_service.observability.records import RequestReport, RunReport

Kind = Literal["counter", "gauge", "histogram"]
Aggregation = Literal["sum", "max", "min"]
Labels = tuple[str, ...]
Values = dict[Labels, float]
BucketCounts = dict[Labels, list[float]]
"""Of a histogram: how many values fell into each bucket, the one above all at the end, and then
their sum."""

OTHER = "other"
MAX_SERIES = 2000
"""Combinations of labels that a metric may have; what would be one more is counted under
`other`."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
SHED_CODES = frozenset({"server_busy", "rate_limit_exceeded"})
"""Errors that say that a request was refused for there being too many."""

DURATION_BUCKETS = (
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
)
"""Buckets in seconds: from an answer that needs no model to a run as long as REQUEST_TIMEOUT."""

LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Family(msgspec.Struct, frozen=True):
    """A metric; `across` says how the values of several worker processes become one. Counters end
    in `_total`."""

    name: str
    kind: Kind
    help: str
    labels: Labels = ()
    across: Aggregation = "sum"
    buckets: tuple[float, ...] = ()


FAMILIES: tuple[Family, ...] = (
    Family(
        "aas_requests_total", "counter", "Requests that are over.", ("route", "method", "status")
    ),
    Family(
        "aas_request_duration_seconds",
        "histogram",
        "From a request's head to its answer's end.",
        ("route",),
        buckets=DURATION_BUCKETS,
    ),
    Family("aas_requests_in_flight", "gauge", "Requests under way."),
    Family(
        "aas_requests_shed_total",
        "counter",
        "Requests refused because there were too many.",
        ("code",),
    ),
    Family("aas_errors_total", "counter", "Requests that ended with an error.", ("code",)),
    Family(
        "aas_runs_total",
        "counter",
        "Runs that are over; task is chat or what was asked for beside one.",
        ("agent", "task", "outcome"),
    ),
    Family(
        "aas_run_duration_seconds",
        "histogram",
        "How long runs took.",
        ("agent", "task"),
        buckets=DURATION_BUCKETS,
    ),
    Family(
        "aas_run_first_byte_seconds",
        "histogram",
        "From a request's head to its streamed answer's begin.",
        ("agent",),
        buckets=DURATION_BUCKETS,
    ),
    Family("aas_runs_in_flight", "gauge", "Runs under way."),
    Family("aas_run_steps_total", "counter", "Steps of runs.", ("agent",)),
    Family(
        "aas_runs_without_memory_total",
        "counter",
        "Runs that had to do without their agent's memory.",
        ("agent",),
    ),
    Family(
        "aas_tokens_total",
        "counter",
        "Tokens as reported; cached are also in prompt, reasoning in completion.",
        ("agent", "provider", "model", "type"),
    ),
    Family(
        "aas_cost_dollars_total",
        "counter",
        "Cost in US dollars, where providers state it.",
        ("agent", "provider", "model"),
    ),
    Family(
        "aas_provider_answer_seconds_total",
        "counter",
        "How long the models' answers took.",
        ("agent", "provider", "model"),
    ),
    Family(
        "aas_tool_calls_total",
        "counter",
        "Calls of tools: success, error, timeout or refused.",
        ("tool", "outcome"),
    ),
    Family(
        "aas_tool_call_duration_seconds",
        "histogram",
        "How long calls of tools took that were carried out.",
        ("tool",),
        buckets=DURATION_BUCKETS,
    ),
    Family(
        "aas_provider_requests_total",
        "counter",
        "Questions to models, those that an open breaker refused included.",
        ("provider",),
    ),
    Family(
        "aas_provider_retries_total",
        "counter",
        "Further attempts at such questions.",
        ("provider",),
    ),
    Family(
        "aas_provider_errors_total",
        "counter",
        "Questions that ended with an error.",
        ("provider", "code"),
    ),
    Family(
        "aas_provider_breaker_state",
        "gauge",
        "0 closed, 1 half open, 2 open: not asked.",
        ("provider", "model"),
        "max",
    ),
    Family(
        "aas_provider_breaker_openings_total",
        "counter",
        "How often a breaker opened.",
        ("provider", "model"),
    ),
    Family("aas_memory_messages_stored_total", "counter", "Messages stored."),
    Family(
        "aas_memory_conversations_begun_total",
        "counter",
        "Questions stored that are the first of their conversation.",
    ),
    Family(
        "aas_memory_summaries_total",
        "counter",
        "Summaries of older messages: made or failed.",
        ("outcome",),
    ),
    Family(
        "aas_memory_tokens_saved_total",
        "counter",
        "Estimated tokens that summaries are shorter than what they stand for.",
    ),
    Family(
        "aas_memory_summary_tokens_total",
        "counter",
        "Tokens that making summaries took, as providers report them.",
        ("type",),
    ),
    Family("aas_memory_cleaned_up_sessions_total", "counter", "Sessions deleted for their age."),
    Family("aas_memory_cleaned_up_messages_total", "counter", "Messages deleted for their age."),
    Family("aas_memory_ended_runs_total", "counter", "Runs of processes that were gone, ended."),
    Family(
        "aas_database_up",
        "gauge",
        "Whether the database of conversations can be used: primary or replica.",
        ("role",),
        "min",
    ),
    Family(
        "aas_mcp_server_up",
        "gauge",
        "Whether the tools of an MCP server can be used.",
        ("server",),
        "min",
    ),
    Family(
        "aas_mcp_server_state",
        "gauge",
        "How many worker processes see an MCP server in a state.",
        ("server", "state"),
    ),
    Family("aas_mcp_server_tools", "gauge", "Tools of an MCP server.", ("server",), "min"),
    Family(
        "aas_mcp_server_restarts_total",
        "counter",
        "How often an MCP server was connected to again.",
        ("server",),
    ),
    Family(
        "aas_event_loop_lag_seconds",
        "histogram",
        "How late a timer rings that is set each second.",
        buckets=LAG_BUCKETS,
    ),
    Family("aas_workers", "gauge", "Processes that answer requests."),
    Family(
        "aas_agent_info",
        "gauge",
        "1; which agents there are, and in which version.",
        ("agent", "version"),
        "max",
    ),
    Family(
        "aas_build_info",
        "gauge",
        "1; which version runs, on which Python.",
        ("version", "python"),
        "max",
    ),
    Family("process_cpu_seconds_total", "counter", "CPU time."),
    Family("process_resident_memory_bytes", "gauge", "Resident memory."),
    Family("process_virtual_memory_bytes", "gauge", "Virtual memory."),
    Family(
        "process_start_time_seconds",
        "gauge",
        "When the process started, in Unix seconds; of several the first.",
        across="min",
    ),
    Family("process_open_fds", "gauge", "Open file descriptors."),
    Family(
        "process_max_fds",
        "gauge",
        "How many file descriptors may be open; of several processes the least.",
        across="min",
    ),
)
"""All there are, in the order in which they are shown."""

HISTOGRAMS = {family.name: family for family in FAMILIES if family.kind == "histogram"}


class Snapshot(msgspec.Struct):
    """The values of one process at one time, by the metrics' names."""

    values: dict[str, Values]
    histograms: dict[str, BucketCounts]


class Metrics:
    """The counts of this process, which only its event loop's thread adds to; nothing is ever
    locked, and to add costs less than 1 us."""

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
        self._requests = self._values["aas_requests_total"]
        self._tokens = self._values["aas_tokens_total"]

    def count_request(self, report: RequestReport) -> None:
        """Counts a request, and its run if it had one."""
        route = report.route
        method = report.method if report.method in METHODS else OTHER
        _add(self._requests, (route, method, str(report.status)), 1)
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
        """Adds to a counter."""
        _add(self._values[name], labels, amount)

    def observe_lag(self, seconds: float) -> None:
        """Takes how late the event loop was."""
        self._observe("aas_event_loop_lag_seconds", (), seconds)

    def take_snapshot(self, others: Mapping[str, Values]) -> Snapshot:
        """The values of now, as a copy, with those of `others`."""
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
        _add(self._values["aas_runs_total"], (agent, task, run.outcome), 1)
        self._observe("aas_run_duration_seconds", (agent, task), run.seconds)
        if run.is_without_memory:
            self.add("aas_runs_without_memory_total", (agent,))
        if run.is_repeated:
            return
        _add(self._values["aas_run_steps_total"], (agent,), run.step_count)
        for step in run.steps:
            _add(
                self._values["aas_provider_answer_seconds_total"],
                (agent, step.provider, step.model),
                step.seconds,
            )
            if (usage := step.usage) is None:
                continue
            for kind, tokens in (
                ("prompt", usage.prompt_tokens),
                ("completion", usage.completion_tokens),
                ("cached", usage.cached_tokens),
                ("reasoning", usage.reasoning_tokens),
            ):
                if tokens:
                    _add(self._tokens, (agent, step.provider, step.model, kind), tokens)
            if usage.cost is not None:
                self.add("aas_cost_dollars_total", (agent, step.provider, step.model), usage.cost)
        for use in run.tools:
            # What is refused has a name that a model made up, or was not carried out.
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


def _add(values: Values, labels: Labels, amount: float) -> None:
    if labels in values:
        values[labels] += amount
    else:
        labels = _limit_labels(values, labels)
        values[labels] = values.get(labels, 0.0) + amount


def _limit_labels(found: Mapping[Labels, object], labels: Labels) -> Labels:
    return labels if len(found) < MAX_SERIES else (OTHER,) * len(labels)
