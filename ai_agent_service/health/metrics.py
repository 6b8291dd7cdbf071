"""Gauges of what the service is made of, read when metrics are scraped."""

import platform

from ai_agent_service.memory.opening import Memories
from ai_agent_service.observability.metrics import Values
from ai_agent_service.runtime.service import Service

BREAKER_STATES = {"closed": 0.0, "half_open": 1.0, "open": 2.0}


def collect_values(service: Service) -> dict[str, Values]:
    """What the service's parts tell of themselves."""
    settings = service.settings
    values: dict[str, Values] = {
        "aas_runs_in_flight": {(): float(service.slots.in_use)},
        "aas_workers": {(): 1.0},
        "aas_agent_info": {(agent.agent_id, agent.version): 1.0 for agent in service.catalog},
        "aas_build_info": {(settings.service_version, platform.python_version()): 1.0},
        **_collect_provider_values(service),
        **_collect_server_values(service),
    }
    if service.memories is not None:
        values |= _collect_memory_values(service.memories)
    return values


def _collect_provider_values(service: Service) -> dict[str, Values]:
    counts = service.http.counts.get_all()
    breakers = service.breakers.list_statuses()
    return {
        "aas_provider_requests_total": {
            (name,): float(found.requests) for name, found in counts.items()
        },
        "aas_provider_retries_total": {
            (name,): float(found.retries) for name, found in counts.items()
        },
        "aas_provider_errors_total": {
            (name, code): float(count)
            for name, found in counts.items()
            for code, count in found.errors.items()
        },
        "aas_provider_breaker_state": {
            (each.provider, each.model): BREAKER_STATES[each.state] for each in breakers
        },
        "aas_provider_breaker_openings_total": {
            (each.provider, each.model): float(each.openings) for each in breakers
        },
    }


def _collect_server_values(service: Service) -> dict[str, Values]:
    statuses = [status for status in service.servers.statuses if status.state != "off"]
    return {
        "aas_mcp_server_up": {
            (status.label,): float(status.state == "ready") for status in statuses
        },
        "aas_mcp_server_state": {
            (status.label, state): float(status.state == state)
            for status in statuses
            for state in ("starting", "ready", "down")
        },
        "aas_mcp_server_tools": {(status.label,): float(len(status.tools)) for status in statuses},
        "aas_mcp_server_restarts_total": {
            (status.label,): float(status.restarts) for status in statuses
        },
    }


def _collect_memory_values(memories: Memories) -> dict[str, Values]:
    database, keeper, counts = memories.database, memories.housekeeping, memories.counts
    up: Values = {("primary",): float(database.problem is None)}
    if database.replica is not None:
        up["replica",] = float(database.replica_problem is None)
    return {
        "aas_memory_messages_stored_total": {(): float(counts.messages)},
        "aas_memory_conversations_begun_total": {(): float(counts.conversations)},
        "aas_memory_summaries_total": {
            ("made",): float(counts.summaries),
            ("failed",): float(counts.failed_summaries),
        },
        "aas_memory_tokens_saved_total": {(): float(counts.tokens_saved)},
        "aas_memory_summary_tokens_total": {
            ("prompt",): float(counts.summary_prompt_tokens),
            ("completion",): float(counts.summary_completion_tokens),
        },
        "aas_memory_cleaned_up_sessions_total": {(): float(keeper.erased.sessions)},
        "aas_memory_cleaned_up_messages_total": {(): float(keeper.erased.messages)},
        "aas_memory_ended_runs_total": {(): float(keeper.ended_runs)},
        "aas_database_up": up,
    }
