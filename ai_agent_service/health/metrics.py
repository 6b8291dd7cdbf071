"""Collect the metrics that the parts of the service keep, when they are scraped."""

import platform

from ai_agent_service.memory.opening import Memories
from ai_agent_service.observability.line_writer import find_writers
from ai_agent_service.observability.metrics import Values
from ai_agent_service.runtime.service import Service

BREAKER_STATES = {"closed": 0.0, "half_open": 1.0, "open": 2.0}


def collect_values(service: Service) -> dict[str, Values]:
    """Return the current values of the service's parts."""
    version = (service.settings.service_version, platform.python_version())
    values: dict[str, Values] = {
        "aas_runs_in_flight": {(): service.slots.in_use},
        "aas_workers": {(): 1},
        "aas_agent_info": {(agent.agent_id, agent.version): 1 for agent in service.catalog},
        "aas_build_info": {version: 1},
        **_collect_log_values(),
        **_collect_provider_values(service),
        **_collect_server_values(service),
    }
    if service.memories is not None:
        values |= _collect_memory_values(service.memories)
    return values


def _collect_log_values() -> dict[str, Values]:
    writers = find_writers()
    return {
        "aas_log_lines_dropped_total": {(name,): each.dropped for name, each in writers.items()},
        "aas_log_write_failures_total": {(name,): each.failures for name, each in writers.items()},
    }


def _collect_provider_values(service: Service) -> dict[str, Values]:
    counts = service.http.counts.items()
    breakers = {(each.provider, each.model): each for each in service.breakers.list_statuses()}
    return {
        "aas_provider_requests_total": {(name,): found.requests for name, found in counts},
        "aas_provider_retries_total": {(name,): found.retries for name, found in counts},
        "aas_provider_errors_total": {
            (name, code): count for name, found in counts for code, count in found.errors.items()
        },
        "aas_provider_breaker_state": {
            model: BREAKER_STATES[each.state] for model, each in breakers.items()
        },
        "aas_provider_breaker_openings_total": {
            model: each.openings for model, each in breakers.items()
        },
    }


def _collect_server_values(service: Service) -> dict[str, Values]:
    servers = {(each.label,): each for each in service.servers.statuses if each.state != "off"}
    return {
        "aas_mcp_server_up": {
            label: float(each.state == "ready") for label, each in servers.items()
        },
        "aas_mcp_server_state": {
            (*label, state): float(each.state == state)
            for label, each in servers.items()
            for state in ("starting", "ready", "down")
        },
        "aas_mcp_server_tools": {label: len(each.tools) for label, each in servers.items()},
        "aas_mcp_server_restarts_total": {label: each.restarts for label, each in servers.items()},
    }


def _collect_memory_values(memories: Memories) -> dict[str, Values]:
    database, housekeeping, counts = memories.database, memories.housekeeping, memories.counts
    up: Values = {("primary",): float(database.problem is None)}
    if database.replica is not None:
        up["replica",] = float(database.replica_problem is None)
    return {
        "aas_memory_messages_stored_total": {(): counts.messages},
        "aas_memory_conversations_begun_total": {(): counts.conversations},
        "aas_memory_summaries_total": {
            ("made",): counts.summaries,
            ("failed",): counts.failed_summaries,
        },
        "aas_memory_tokens_saved_total": {(): counts.tokens_saved},
        "aas_memory_summary_tokens_total": {
            ("prompt",): counts.summary_prompt_tokens,
            ("completion",): counts.summary_completion_tokens,
        },
        "aas_memory_cleaned_up_sessions_total": {(): housekeeping.erased.sessions},
        "aas_memory_cleaned_up_messages_total": {(): housekeeping.erased.messages},
        "aas_memory_ended_runs_total": {(): housekeeping.ended_runs},
        "aas_database_up": up,
    }
