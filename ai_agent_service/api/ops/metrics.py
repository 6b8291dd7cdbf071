"""GET /metrics: what the service counted, for Prometheus."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import cast

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ai_agent_service.api.http.access import Administering
from ai_agent_service.api.http.openapi import documented
from ai_agent_service.health.metrics import values_of
from ai_agent_service.observability.loop_lag import loop_lag
from ai_agent_service.observability.metrics import Metrics, Snapshot
from ai_agent_service.observability.prometheus import exposed, process_values
from ai_agent_service.observability.shared_metrics import Workers
from ai_agent_service.runtime.service import Service

logger = logging.getLogger(__name__)

router = APIRouter(tags=["Service"])

KEPT_SECONDS = 1.0
"""How often a worker process leaves its metrics for the others."""


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


def _with_process(snapshot: Snapshot) -> Snapshot:
    snapshot.values.update(process_values())
    return snapshot
