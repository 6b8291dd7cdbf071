"""GET /metrics: what the service counted, for Prometheus."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import cast

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ai_agent_service.api.http.access import AdminCaller
from ai_agent_service.api.http.openapi import describe_route
from ai_agent_service.health.metrics import collect_values
from ai_agent_service.observability.loop_lag import measure_loop_lag
from ai_agent_service.observability.metrics import Metrics, Snapshot
from ai_agent_service.observability.prometheus import collect_process_values, render_metrics
from ai_agent_service.observability.shared_metrics import SharedMetrics
from ai_agent_service.runtime.service import Service

logger = logging.getLogger(__name__)

router = APIRouter(tags=["Service"])

PUBLISH_SECONDS = 1.0
"""How often a worker process leaves its metrics for the others."""


class MetricsExporter:
    """What there is to tell of `service`: the counts in `metrics` and those that its parts keep;
    with `workers`, of all processes."""

    def __init__(self, service: Service, metrics: Metrics, workers: SharedMetrics | None) -> None:
        self._service = service
        self._metrics = metrics
        self._workers = workers

    async def render(self, accept: str) -> tuple[bytes, str]:
        """The metrics and their content type."""
        return await asyncio.to_thread(self._render, self._take_snapshot(), accept)

    async def publish(self) -> None:
        """Leaves the metrics of this process for the others, again and again."""
        assert self._workers is not None
        while True:
            try:
                await asyncio.to_thread(
                    self._workers.save, _add_process_values(self._take_snapshot())
                )
            except OSError:
                logger.exception("metrics.not_kept")
            await asyncio.sleep(PUBLISH_SECONDS)

    def _take_snapshot(self) -> Snapshot:
        return self._metrics.take_snapshot(collect_values(self._service))

    def _render(self, snapshot: Snapshot, accept: str) -> tuple[bytes, str]:
        snapshot = _add_process_values(snapshot)
        return render_metrics(
            snapshot if self._workers is None else self._workers.merge(snapshot), accept
        )


@asynccontextmanager
async def open_exporter(
    service: Service, metrics: Metrics, workers: SharedMetrics | None
) -> AsyncGenerator[MetricsExporter, None]:
    """The exposition of a service, and what has to go on beside it."""
    opened = MetricsExporter(service, metrics, workers)
    keeping = None if workers is None else asyncio.create_task(opened.publish())
    try:
        with measure_loop_lag(metrics.observe_lag):
            yield opened
    finally:
        if keeping is not None:
            keeping.cancel()
            await asyncio.wait((keeping,))


@router.get(
    "/metrics",
    summary="What was counted",
    response_class=PlainTextResponse,
    openapi_extra=describe_route(None, "the metrics in the form that Prometheus reads"),
)
async def metrics(request: Request, caller: AdminCaller) -> Response:
    """The metrics, in the form of OpenMetrics for those who accept it."""
    found = cast(MetricsExporter, request.app.state.exposition)
    text, content_type = await found.render(request.headers.get("accept", ""))
    return Response(text, headers={"content-type": content_type})


def _add_process_values(snapshot: Snapshot) -> Snapshot:
    snapshot.values.update(collect_process_values())
    return snapshot
