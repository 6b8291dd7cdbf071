"""The ASGI application: lifespan, middleware and routers, as one readable list."""

import gc
import logging
import os
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from ai_agent_service.api.agents import conversations
from ai_agent_service.api.agents import routes as agents
from ai_agent_service.api.http.access import check_access_rules
from ai_agent_service.api.http.body import BodyBudget
from ai_agent_service.api.http.errors import handle_http_exception, handle_service_error
from ai_agent_service.api.http.idempotency import IdempotencyCache
from ai_agent_service.api.http.openapi import install_openapi
from ai_agent_service.api.openai import chat as openai_chat
from ai_agent_service.api.openai import models as openai_models
from ai_agent_service.api.ops import docs, health, metrics
from ai_agent_service.api.ops import reload as admin
from ai_agent_service.core.errors import ServiceError
from ai_agent_service.core.redaction import find_secrets
from ai_agent_service.health.checks import open_checks
from ai_agent_service.instrumentation.requests import TracingMiddleware
from ai_agent_service.limits.gate import RequestGate
from ai_agent_service.limits.postgres import open_limiter
from ai_agent_service.observability.access_log import AccessLog
from ai_agent_service.observability.audit import configure_audit
from ai_agent_service.observability.logging import configure_logging
from ai_agent_service.observability.metrics import Metrics
from ai_agent_service.observability.records import RequestReport
from ai_agent_service.observability.shared_metrics import SharedMetrics
from ai_agent_service.runtime.configuration import Configuration, load
from ai_agent_service.runtime.opening import open_access, open_service
from ai_agent_service.runtime.shutdown import ShutdownState
from ai_agent_service.server.connections import build_connection_limit
from ai_agent_service.server.middleware import RequestMiddleware
from ai_agent_service.server.reload_triggers import watch_hangups, watch_reload_triggers

logger = logging.getLogger(__name__)

METRICS_FOLDER = "AI_AGENT_SERVICE_METRICS_FOLDER"
"""Where worker processes find the folder that their metrics share; their parent sets it."""


def create_app(configuration: Configuration, workers: SharedMetrics | None = None) -> FastAPI:
    """Return the application of `configuration`, whose lifespan opens and closes the service.

    `workers` are the metrics that several processes share.
    """
    counts = Metrics()
    pepper = configuration.settings.api_key_pepper
    access_log = AccessLog(secrets.token_hex() if pepper is None else pepper.get_secret_value())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        with watch_hangups() as hangup:
            async with (
                open_service(configuration, shutdown=stopping) as service,
                open_access(configuration, service) as access,
                open_limiter(access.database) as limiter,
                open_checks(service, access) as checks,
                watch_reload_triggers(service, hangup),
                metrics.open_exporter(service, counts, workers) as exposition,
            ):
                app.state.service = service
                app.state.access = access
                app.state.limiter = limiter
                app.state.checks = checks
                app.state.answers = IdempotencyCache()
                app.state.bodies = BodyBudget()
                app.state.gate = RequestGate()
                app.state.exposition = exposition
                yield

    stopping = ShutdownState()
    middleware = [
        Middleware(RequestMiddleware, stopping=stopping, metrics=counts, access_log=access_log)
    ]
    if configuration.tracing is not None:
        middleware.insert(0, Middleware(TracingMiddleware, configuration.tracing))
    app = FastAPI(
        title=configuration.settings.service_name,
        version=configuration.settings.service_version,
        description="Agents that appear as models to any OpenAI client.",
        lifespan=lifespan,
        middleware=middleware,
        exception_handlers={
            ServiceError: handle_service_error,
            HTTPException: handle_http_exception,
        },
        # TracingMiddleware makes the spans.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        redirect_slashes=False,
        openapi_url=None,  # ai_agent_service/api/ops/docs.py answers there, to those who may see it
    )
    app.state.stopping = stopping
    app.state.connections = build_connection_limit(configuration.settings)

    def report_request(report: RequestReport) -> None:
        counts.count_request(report)
        access_log.write(report)

    app.state.report_request = report_request
    # Requests are matched against them in this order.
    for part in (openai_chat, openai_models, conversations, agents, health, metrics, admin, docs):
        app.include_router(check_access_rules(part.router))
    install_openapi(app)
    return app


def configure_logs(configuration: Configuration, *, is_one_of_several: bool = False) -> None:
    """Send log lines and audit lines to their places, without the environment's secrets; raises
    ConfigError."""
    settings, secrets = configuration.settings, find_secrets(configuration.environment)
    configure_logging(
        settings.log_level,
        secrets,
        log_format=settings.log_format,
        is_one_of_several=is_one_of_several,
        queue_lines=settings.log_queue_lines,
    )
    configure_audit(
        settings.audit_log_file,
        secrets,
        queue_lines=settings.log_queue_lines,
        is_required=settings.audit_required,
    )
    logging.captureWarnings(True)


def tune_garbage_collector() -> None:
    """Hide what exists after start-up from the garbage collector, and run it less often, since a
    request leaves few cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def create_worker_app() -> FastAPI:
    """Return the application of one of several worker processes, each of which reads the
    configuration itself."""
    configuration = load()
    configure_logs(configuration, is_one_of_several=True)
    folder = os.environ.get(METRICS_FOLDER)
    app = create_app(configuration, SharedMetrics(Path(folder)) if folder else None)
    tune_garbage_collector()
    return app
