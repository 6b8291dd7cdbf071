"""The ASGI application: lifespan, middleware and routers, as one readable list."""

import gc
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from app.api import agents, conversations, health, openai_chat, openai_models
from app.api.edge import Edge
from app.api.errors import http_exception_handler, service_error_handler
from app.api.idempotency import Answers
from app.api.openapi import describe
from app.core.errors import ServiceError
from app.observability.logging import configure_logging
from app.service import Configuration, load, open_service

logger = logging.getLogger(__name__)


def create_app(configuration: Configuration) -> FastAPI:
    """The application that serves `configuration`; its lifespan opens the service and closes it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        async with open_service(configuration) as service:
            app.state.service = service
            app.state.answers = Answers()
            yield

    app = FastAPI(
        title=configuration.settings.service_name,
        version=configuration.settings.service_version,
        description="Agents that appear as models to any OpenAI client.",
        lifespan=lifespan,
        middleware=[Middleware(Edge)],
        exception_handlers={ServiceError: service_error_handler, HTTPException: http_exception_handler},
        telemetry={"tracing": False, "metrics": False},
        redirect_slashes=False,
    )
    for part in (openai_models, openai_chat, conversations, agents, health):
        app.include_router(part.router)
    describe(app)
    return app


def settle_memory() -> None:
    """Takes what exists after start-up out of the garbage collector's sight, and makes it look less often: a request leaves few cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def worker_app() -> FastAPI:
    """The application of one of several worker processes, each of which reads the configuration anew."""
    configuration = load()
    configure_logging(configuration.settings.log_level)
    app = create_app(configuration)
    settle_memory()
    return app
