"""GET /metrics: what the service counted, for Prometheus."""

import asyncio
import logging
import platform
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import cast

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ai_agent_service.api.http.access import Administering
from ai_agent_service.api.http.openapi import documented
from ai_agent_service.memory.opening import Memories
from ai_agent_service.observability.loop_lag import loop_lag
from ai_agent_service.observability.metrics import Metrics, Snapshot, Values
from ai_agent_service.observability.prometheus import exposed, process_values
from ai_agent_service.observability.shared_metrics import Workers
from ai_agent_service.runtime.service import Service

logger = logging.getLogger(__name__)

router = APIRouter(tags=["Service"])

KEPT_SECONDS = 1.0
"""How often a worker process leaves its metrics for the others."""

BREAKER_STATES = {"closed": 0.0, "half_open": 1.0, "open": 2.0}


class Exposition:
    """What there is to tell of `service`: the counts in `metrics` and those that its parts keep; with `workers`, of all processes."""

    def __init__(self, service: Service, metrics: Metrics, workers: Workers | None) -> None:
        self._service = service
        self._metrics = metrics
        self._workers = workers

    async def text(self, accept: str) -> tuple[bytes, str]:
        """The metrics and their content type."""
        return await asyncio.to_thread(self._text, self._snapshot(), accept)

    async def keep(self) -> None:
        """Leaves the metrics of this process for the others, again and again."""
        assert self._workers is not None
        while True:
            try:
                await asyncio.to_thread(self._workers.keep, _with_process(self._snapshot()))
            except OSError:
                logger.exception("metrics.not_kept")
            await asyncio.sleep(KEPT_SECONDS)

    def _snapshot(self) -> Snapshot:
        return self._metrics.snapshot(values_of(self._service))

    def _text(self, snapshot: Snapshot, accept: str) -> tuple[bytes, str]:
        snapshot = _with_process(snapshot)
        return exposed(snapshot if self._workers is None else self._workers.merged(snapshot), accept)


@asynccontextmanager
async def exposition(service: Service, metrics: Metrics, workers: Workers | None) -> AsyncGenerator[Exposition, None]:
    """The exposition of a service, and what has to go on beside it."""
    opened = Exposition(service, metrics, workers)
    keeping = None if workers is None else asyncio.create_task(opened.keep())
    try:
        with loop_lag(metrics.lag):
            yield opened
    finally:
        if keeping is not None:
            keeping.cancel()
            await asyncio.wait((keeping,))


@router.get(
    "/metrics",
    summary="What was counted",
    response_class=PlainTextResponse,
    openapi_extra=documented(None, "the metrics in the form that Prometheus reads"),
)
async def metrics(request: Request, caller: Administering) -> Response:
    """The metrics, in the form of OpenMetrics for those who accept it."""
    found = cast(Exposition, request.app.state.exposition)
    text, content_type = await found.text(request.headers.get("accept", ""))
    return Response(text, headers={"content-type": content_type})


def values_of(service: Service) -> dict[str, Values]:
    """What the service's parts tell of themselves."""
    settings = service.settings
    values: dict[str, Values] = {
        "aas_runs_in_flight": {(): float(service.runs)},
        "aas_workers": {(): 1.0},
        "aas_agent_info": {(agent.agent_id, agent.version): 1.0 for agent in service.catalog},
        "aas_build_info": {(settings.service_version, platform.python_version()): 1.0},
        **_of_providers(service),
        **_of_servers(service),
    }
    if service.memories is not None:
        values |= _of_memory(service.memories)
    return values


def _of_providers(service: Service) -> dict[str, Values]:
    counts = service.http.counts.all()
    breakers = service.breakers.states()
    return {
        "aas_provider_requests_total": {(name,): float(found.requests) for name, found in counts.items()},
        "aas_provider_retries_total": {(name,): float(found.retries) for name, found in counts.items()},
        "aas_provider_errors_total": {(name, code): float(count) for name, found in counts.items() for code, count in found.errors.items()},
        "aas_provider_breaker_state": {(each.provider, each.model): BREAKER_STATES[each.state] for each in breakers},
        "aas_provider_breaker_openings_total": {(each.provider, each.model): float(each.openings) for each in breakers},
    }


def _of_servers(service: Service) -> dict[str, Values]:
    statuses = [status for status in service.servers.statuses if status.state != "off"]
    return {
        "aas_mcp_server_up": {(status.label,): float(status.state == "ready") for status in statuses},
        "aas_mcp_server_state": {
            (status.label, state): float(status.state == state) for status in statuses for state in ("starting", "ready", "down")
        },
        "aas_mcp_server_tools": {(status.label,): float(len(status.tools)) for status in statuses},
        "aas_mcp_server_restarts_total": {(status.label,): float(status.restarts) for status in statuses},
    }


def _of_memory(memories: Memories) -> dict[str, Values]:
    database, keeper, counts = memories.database, memories.keeper, memories.counts
    up: Values = {("primary",): float(database.problem is None)}
    if database.replica is not None:
        up["replica",] = float(database.replica_problem is None)
    return {
        "aas_memory_messages_stored_total": {(): float(counts.messages)},
        "aas_memory_conversations_begun_total": {(): float(counts.conversations)},
        "aas_memory_summaries_total": {("made",): float(counts.summaries), ("failed",): float(counts.failed_summaries)},
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


def _with_process(snapshot: Snapshot) -> Snapshot:
    snapshot.values.update(process_values())
    return snapshot
