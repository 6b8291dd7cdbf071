"""Opens the service and what it depends on."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from typing import Literal

from ai_agent_service.agents.pending_steps import PendingSteps
from ai_agent_service.auth.access import Access
from ai_agent_service.auth.identity.base import open_identity
from ai_agent_service.auth.identity.fetch import FETCH_SECONDS
from ai_agent_service.auth.keys.ring import KeyRing, parse_environment_keys
from ai_agent_service.config.agent_definition import AUTO, PROVIDER_ALIASES
from ai_agent_service.config.settings import Settings
from ai_agent_service.core.bounds import MAX_DOCUMENT_BYTES
from ai_agent_service.core.errors import UpstreamError
from ai_agent_service.core.process_privacy import hide_memory
from ai_agent_service.core.tasks import Tasks
from ai_agent_service.instrumentation.providers import TracedProvider
from ai_agent_service.instrumentation.runs import RunTracer
from ai_agent_service.providers.base import Provider, ProviderSetup
from ai_agent_service.providers.breaker import CircuitBreakers
from ai_agent_service.providers.http import HttpClient, Timeouts
from ai_agent_service.providers.ollama import Ollama
from ai_agent_service.runs.live import LiveRuns
from ai_agent_service.runs.run import RunServices
from ai_agent_service.runtime.builder import Builder
from ai_agent_service.runtime.configuration import Configuration
from ai_agent_service.runtime.service import Service, ServiceParts
from ai_agent_service.runtime.shutdown import ShutdownState
from ai_agent_service.storage.database import START_SECONDS
from ai_agent_service.storage.opening import build_cipher, build_database_url, open_database
from ai_agent_service.tools.toolset import Toolset

logger = logging.getLogger(__name__)

AUTO_PROVIDER_ORDER = ("azure_openai", "openrouter", "openai")

OLLAMA_PROBE_SECONDS = 0.5

SERVE_SECONDS = 0.5
"""How long requests are not yet taken while the database is being prepared; after that they are
answered 503, so that probes find the process alive."""

KeyState = Literal["none", "ended", "live"]


@asynccontextmanager
async def open_service(
    configuration: Configuration,
    toolset: Callable[..., Toolset] | None = None,
    shutdown: ShutdownState | None = None,
) -> AsyncGenerator[Service, None]:
    """Open the service of `configuration`, and close at the end everything that it holds open.

    `toolset` is as for a Builder; `shutdown` is set by what serves the service, which does not wait
    for the database for long.
    """
    settings = configuration.settings
    if settings.protect_process_memory:
        hide_memory()
    timeouts = Timeouts(
        settings.provider_connect_timeout,
        settings.provider_first_byte_timeout,
        settings.provider_idle_timeout,
    )
    tracing = configuration.tracing
    async with (
        tracing or nullcontext(),
        HttpClient(timeouts, max_retries=settings.provider_max_retries) as http,
    ):
        setup = ProviderSetup(settings, configuration.environment, http)
        providers = {
            name: factory.from_setup(setup)
            for name, factory in configuration.plugins.providers.items()
        }
        auto = await _select_auto_provider(settings, providers)
        plain = providers
        if tracing is not None:
            providers = {
                name: TracedProvider(provider, tracing) for name, provider in providers.items()
            }
        breakers = CircuitBreakers(
            settings.provider_breaker_failures,
            settings.provider_breaker_seconds,
            counts=http.counts,
        )
        guarded = {name: breakers.guard(provider) for name, provider in providers.items()}
        guarded[AUTO] = guarded[auto]
        pending = PendingSteps()
        runs = RunServices(LiveRuns(), Tasks(), None if tracing is None else RunTracer(tracing))
        task_name = settings.task_provider and PROVIDER_ALIASES.get(
            settings.task_provider, settings.task_provider
        )
        tasks = guarded[task_name] if task_name else None
        async with Builder(
            settings,
            configuration.plugins,
            configuration.environment,
            guarded,
            pending,
            runs,
            tracing,
            toolset,
        ) as builder:
            revision = await builder.build(configuration.snapshot)
            builder.activate(revision)
            if builder.memories is not None:
                within = START_SECONDS if shutdown is None else SERVE_SECONDS
                await builder.memories.database.wait_until_tried(within)
            for warning in configuration.warnings:
                logger.warning(warning)
            parts = ServiceParts(
                http, breakers, pending, runs, auto, plain, tasks, shutdown or ShutdownState()
            )
            service = Service(configuration, builder, revision, parts)
            try:
                yield service
            finally:
                await service.stop()


@asynccontextmanager
async def open_access(
    configuration: Configuration, service: Service
) -> AsyncGenerator[Access, None]:
    """What tells who calls `service`, and how much they may ask."""
    settings = configuration.settings
    async with AsyncExitStack() as opened:
        database = None
        if service.memories is not None:
            database = service.memories.database
        elif settings.api_keys is None or _has_database(settings):
            database = await opened.enter_async_context(
                open_database(settings, within=SERVE_SECONDS)
            )
        pepper = settings.api_key_pepper
        fetch = partial(service.http.fetch, limit_bytes=MAX_DOCUMENT_BYTES, timeout=FETCH_SECONDS)
        keys = KeyRing(
            database,
            environment_keys=parse_environment_keys(settings),
            pepper=pepper.get_secret_value() if pepper is not None else None,
            cipher=build_cipher(settings),
        )
        yield Access(
            await opened.enter_async_context(keys),
            await opened.enter_async_context(open_identity(settings, fetch)),
            is_local=settings.is_local,
            allow_unauthenticated=settings.allow_unauthenticated,
            allowed_hosts=settings.allowed_hosts,
            database=database,
        )


def _has_database(settings: Settings) -> bool:
    """Whether the settings name a database, or the default file is there."""
    address = build_database_url(settings)
    return address.kind == "postgresql" or address.path.exists()


async def check_database_keys(settings: Settings) -> KeyState | None:
    """Whether there is a key in the database, and one that is neither revoked nor expired; None if
    it cannot be asked."""
    if not _has_database(settings):
        return "none"
    async with (
        open_database(settings) as database,
        KeyRing(database, environment_keys=(), pepper=None, cipher=build_cipher(settings)) as ring,
    ):
        if ring.has_keys is None:
            return None
        return "live" if ring.has_live_keys else "ended" if ring.has_keys else "none"


async def _select_auto_provider(settings: Settings, providers: Mapping[str, Provider]) -> str:
    """DEFAULT_PROVIDER, else the first that is configured, else an Ollama that answers and has a
    model, else demo."""
    if settings.default_provider is not None:
        return PROVIDER_ALIASES.get(settings.default_provider, settings.default_provider)
    for name in AUTO_PROVIDER_ORDER:
        if not providers[name].missing:
            return name
    ollama = providers["ollama"]
    if isinstance(ollama, Ollama):
        try:
            async with asyncio.timeout(OLLAMA_PROBE_SECONDS):
                if await ollama.list_installed_models():
                    return ollama.name
        except (UpstreamError, TimeoutError) as error:
            logger.debug("no Ollama at %s (%s)", settings.ollama_base_url, error)
    return "demo"
