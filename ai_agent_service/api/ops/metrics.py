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
"""How often a worker process publishes its metrics to the others."""


class MetricsExporter:
    """Renders the counts in `metrics` and those of the parts of `service`; with `workers`, the sums
    of all processes."""

    def __init__(self, service: Service, metrics: Metrics, workers: SharedMetrics | None) -> None:
        self._service = service
        self._metrics = metrics
        self._workers = workers

    async def render(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics and their content type."""
        return await asyncio.to_thread(self._render, self._take_snapshot(), accept)

    async def publish(self) -> None:
        """Publish the metrics of this process to the others until cancelled."""
        assert self._workers is not None
        while True:
            try:
                snapshot = _add_process_values(self._take_snapshot())
                await asyncio.to_thread(self._workers.save, snapshot)
            except OSError:
                logger.exception("metrics.not_kept")
            await asyncio.sleep(PUBLISH_SECONDS)

    def _take_snapshot(self) -> Snapshot:
        return self._metrics.take_snapshot(collect_values(self._service))

    def _render(self, snapshot: Snapshot, accept: str) -> tuple[bytes, str]:
        snapshot = _add_process_values(snapshot)
        if self._workers is not None:
            snapshot = self._workers.merge(snapshot)
        return render_metrics(snapshot, accept)


@asynccontextmanager
async def open_exporter(
    service: Service, metrics: Metrics, workers: SharedMetrics | None
) -> AsyncGenerator[MetricsExporter, None]:
    """Yield the exporter of a service, while its background work runs."""
    exporter = MetricsExporter(service, metrics, workers)
    publishing = None if workers is None else asyncio.create_task(exporter.publish())
    try:
        with measure_loop_lag(metrics.observe_lag):
            yield exporter
    finally:
        if publishing is not None:
            publishing.cancel()
            await asyncio.wait((publishing,))


@router.get(
    "/metrics",
    summary="What was counted",
    response_class=PlainTextResponse,
    openapi_extra=describe_route(None, "the metrics in the form that Prometheus reads"),
)
async def metrics(request: Request, caller: AdminCaller) -> Response:
    """The metrics, as OpenMetrics if the caller accepts that."""
    found = cast(MetricsExporter, request.app.state.exposition)
    text, content_type = await found.render(request.headers.get("accept", ""))
    return Response(text, headers={"content-type": content_type})


def _add_process_values(snapshot: Snapshot) -> Snapshot:
    snapshot.values.update(collect_process_values())
    return snapshot
