"""The composition root: settings and configuration in, a running service out; the only file that knows all concrete classes."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext, suppress
from contextvars import Context
from functools import partial
from pathlib import Path
from typing import Literal, Self

import msgspec

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.agents.catalog import Catalog, no_such_agent
from ai_agent_service.agents.chat_tasks import Background, Task
from ai_agent_service.agents.pending_steps import PendingSteps
from ai_agent_service.auth.access import Access
from ai_agent_service.auth.identity.base import open_identity
from ai_agent_service.auth.identity.fetch import FETCH_SECONDS, MAX_DOCUMENT_BYTES
from ai_agent_service.auth.identity.settings import identity_faults, identity_warnings
from ai_agent_service.auth.keys.ring import KeyRing, environment_keys, key_faults
from ai_agent_service.auth.principal import ANONYMOUS, Principal, User
from ai_agent_service.config.agent_definition import AUTO, PROVIDER_ALIASES, AgentDefinition, KnownNames, read_agents, warnings_about
from ai_agent_service.config.json_files import load_environment, nearest
from ai_agent_service.config.locations import Files, files_of
from ai_agent_service.config.memory_definition import BUILT_IN
from ai_agent_service.config.server_definition import Servers, read_servers
from ai_agent_service.config.settings import Settings, read_settings
from ai_agent_service.config.tls import tls_faults, tls_warnings
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import ConfigError, Fault, NotFound, ServerBusy, ServiceStopping, UpstreamError
from ai_agent_service.core.ids import new_id
from ai_agent_service.core.tasks import Tasks
from ai_agent_service.core.text import secrets_in
from ai_agent_service.instrumentation.agents import TracedAgent
from ai_agent_service.instrumentation.providers import TracedProvider
from ai_agent_service.limits.postgres import open_limits
from ai_agent_service.mcp.supervisor import McpServers
from ai_agent_service.memory.base import Conversations
from ai_agent_service.memory.opening import Memories, address_of, cipher_of, open_database
from ai_agent_service.observability.logging import keep_out
from ai_agent_service.observability.tracing import Tracing, tracing_faults, tracing_of
from ai_agent_service.providers.base import Provider, ProviderSetup
from ai_agent_service.providers.breaker import Breakers
from ai_agent_service.providers.http import HttpClient, Timeouts
from ai_agent_service.providers.ollama import Ollama
from ai_agent_service.runtime.builder import Changes, Edition, Maker, Written, changes_between
from ai_agent_service.runtime.drain import Period
from ai_agent_service.runtime.plugin_loader import Plugins, load_plugins
from ai_agent_service.storage.url import Address, parse_address
from ai_agent_service.tools.toolset import Toolset

logger = logging.getLogger(__name__)

LAST_RUNS_SECONDS = 5.0
"""How much longer than REQUEST_TIMEOUT what an edition keeps open stays so: a run is told that its time is up, and then ends."""

AUTO_ORDER = ("azure_openai", "openrouter", "openai")
OLLAMA_PROBE_SECONDS = 0.5


class Configuration(msgspec.Struct, frozen=True):
    """All that the operator wrote, read and found without fault; `warnings` are sentences that name what they are about."""

    settings: Settings
    files: Files
    environment: Mapping[str, str]
    plugins: Plugins
    agents: tuple[AgentDefinition, ...]
    servers: Servers
    warnings: tuple[str, ...]
    created: int
    tracing: Tracing | None = None
    """Traces, where they are switched on."""

    @property
    def written(self) -> Written:
        """What of it makes an edition."""
        return Written(self.agents, self.servers, self.environment, self.created)

    def with_servers_of(self, agent_ids: Collection[str]) -> Self:
        """The same with no other agents' MCP servers, which need not be started for these."""
        labels = {label for agent in self.agents if agent.agent_id in agent_ids for label in agent.allowed_mcp_servers}
        kept = tuple(definition for definition in self.servers.definitions if definition.server_label in labels)
        return msgspec.structs.replace(self, servers=msgspec.structs.replace(self.servers, definitions=kept))

    def apart(self, folder: Path) -> Self:
        """The same with a database of its own in `folder`, and without traces: for what is asked here is nobody's traffic."""
        own = {"data_dir": folder, "database_url": None, "database_replica_url": None, "postgres_user": None, "database_migrate": True}
        return msgspec.structs.replace(self, settings=self.settings.model_copy(update=own), tracing=None, warnings=())

    @property
    def database(self) -> str | None:
        """Where conversations are kept, without a password; None if no agent remembers."""
        return address_of(self.settings).shown if any(agent.memory and agent.memory.backend == BUILT_IN for agent in self.agents) else None


class Service:
    """The running service: its agents, which another edition may follow, and the count of the runs under way."""

    def __init__(
        self,
        configuration: Configuration,
        maker: Maker,
        edition: Edition,
        pending: PendingSteps,
        http: HttpClient,
        auto: str,
        breakers: Breakers,
        providers: Mapping[str, Provider],
        task_provider: Provider | None,
    ) -> None:
        self.settings = configuration.settings
        self.http = http
        self.pending = pending
        self.auto_provider = auto
        self.breakers = breakers
        self._providers = providers
        self._task_provider = task_provider
        self._tracing = configuration.tracing
        self.edition = edition
        self.period = Period()
        """The requests under way, for an edition is kept open for those that began before the next one."""

        self.runs = 0
        self.is_stopping = False
        self.secrets = secrets_in(configuration.environment)
        """What must be shown to nobody: the secrets of the start and of each reload."""

        self._configuration = configuration
        self._maker = maker
        self._reloading = asyncio.Lock()
        self._work = Tasks(grace=0)

    @property
    def catalog(self) -> Catalog:
        """The agents that there are now."""
        return self.edition.catalog

    @property
    def servers(self) -> McpServers:
        """The MCP servers that there are now."""
        return self.edition.servers

    @property
    def memories(self) -> Memories | None:
        """The database of conversations; None as long as no agent has remembered in it."""
        return self._maker.memories

    def agent(self, agent_id: str, caller: Principal) -> BaseAgent:
        """The agent of this id, for `caller` to use; raises NotFound, the same if there is none as if it is not for them."""
        agent = self.shown_agent(agent_id, caller)
        access = agent.definition.access
        if access.groups or access.roles:
            user = caller.user or User("")
            if (access.groups and user.groups.isdisjoint(access.groups)) or (access.roles and user.roles.isdisjoint(access.roles)):
                raise no_such_agent()
        return agent

    def shown_agent(self, agent_id: str, caller: Principal) -> BaseAgent:
        """The agent of this id, if the caller's key is for it; raises NotFound."""
        if not caller.key.may_use(agent_id):
            raise no_such_agent()
        return self.catalog.get(agent_id)

    def agents_of(self, caller: Principal) -> list[BaseAgent]:
        """The agents that the caller's key is for. Who may use them is asked when they are called: clients share this among users."""
        return [agent for agent in self.catalog if caller.key.may_use(agent.agent_id)]

    @property
    def every_provider(self) -> Mapping[str, Provider]:
        """All that there are, by their names and with nothing around them, whether an agent uses them or not."""
        return self._providers

    @property
    def providers(self) -> Mapping[str, Provider]:
        """Those that an agent uses or falls back to, or TASK_PROVIDER names, by their names and with nothing around them."""
        definitions = [agent.definition for agent in self.catalog]
        named = {definition.provider for definition in definitions}
        named |= {other.provider for definition in definitions for other in definition.fallback}
        if (task := self.settings.task_provider) is not None:
            named.add(PROVIDER_ALIASES.get(task, task))
        used = [self._providers[self.auto_provider if name == AUTO else name] for name in named]
        return {provider.name: provider for provider in used}

    def background(self, agent: BaseAgent, task: Task) -> BaseAgent:
        """What answers `task` for `agent`: TASK_PROVIDER and TASK_MODEL where they are set, else the agent's own."""
        answering = Background(agent, task, self._task_provider or agent.parts.provider, self.settings.task_model)
        return answering if self._tracing is None else TracedAgent(answering, self._tracing)

    @property
    def conversations(self) -> Conversations:
        """What is remembered; raises NotFound where no agent has a memory."""
        if self.memories is None:
            raise NotFound("No agent here has a memory.", code="no_memory")
        return self.memories.conversations

    async def reload(self) -> Changes:
        """Reads agents, prompts and MCP servers anew, with the plug-ins and the settings that there are, and has them take effect at once.

        Whoever has begun goes on with what they began with; it is closed once they have ended. Raises ConfigError, and ServiceStopping
        for a service that is told to stop; then nothing has changed.
        """
        # In a task of its own, which a caller that leaves does not stop, and without the caller's request id in all that is begun.
        found = await asyncio.shield(Context().run(self._work.start, self._reloaded()))
        if isinstance(found, ConfigError):
            for fault in found.faults:
                logger.error("config.rejected", extra={"fault": str(fault)})
            raise found
        if isinstance(found, ServiceStopping):
            raise found
        lists = {name: ",".join(names) for name, names in found.lists.items() if names}
        logger.info("config.reloaded" if lists else "config.unchanged", extra=lists)
        return found

    async def _reloaded(self) -> Changes | ConfigError | ServiceStopping:
        async with self._reloading:
            try:
                # Files that vanish are a fault of the reload; none are taken in their place.
                files = files_of(self.settings, may_be_starter=self._configuration.files.is_starter)
                configuration = await asyncio.to_thread(load_configuration, self.settings, self._configuration.plugins, files=files)
                keep_out(secrets := secrets_in(configuration.environment))
                self.secrets = tuple(sorted({*self.secrets, *secrets}, key=len, reverse=True))
                if self._tracing is not None:
                    self._tracing.keep_out(secrets)
                if self.is_stopping:
                    return ServiceStopping("The service is being stopped.")
                edition = await self._maker.make(configuration.written, self.edition)
            except ConfigError as error:
                return error
            except OSError as error:
                problem = f"it cannot be used ({error.strerror})"
                file = str(error.filename or self.settings.agent_config_file)
                return ConfigError([Fault(file=file, problem=problem, remedy="Give the service the right to use it")])
            before, over = self.edition, self.period
            self.edition, self.period = edition, over.next()
            self._maker.begin(edition)
            for warning in configuration.warnings:
                if warning not in self._configuration.warnings:
                    logger.warning(warning)
            self._configuration = configuration
            self._work.run(self._ended(before, edition, over))
            return changes_between(before, edition)

    async def _ended(self, edition: Edition, after: Edition, period: Period) -> None:
        """Closes what `edition` alone used, once the requests of `period` and before have ended, or must have."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.request_timeout + LAST_RUNS_SECONDS):
                await period.over()
        await self._maker.end(edition, after)

    async def stop(self) -> None:
        """Ends what reloads have begun; there will be no other."""
        self.is_stopping = True
        await self._work.finish()

    def context(
        self,
        agent_id: str,
        caller: Principal,
        *,
        user: str | None = None,
        session: str | None = None,
        request_id: str = "",
        task: Task | None = None,
        agent_version: str = "",
    ) -> RunContext:
        """The circumstances of a new run that begins now and ends within REQUEST_TIMEOUT; `user` counts where users are not verified."""
        return RunContext(
            run_id=new_id("run_"),
            agent_id=agent_id,
            deadline=time.monotonic() + self.settings.request_timeout,
            request_id=request_id,
            key_id=caller.key.key_id,
            tenant=caller.key.tenant,
            user=caller.user.user_id if caller.user is not None else user or ANONYMOUS,
            session=session,
            task=task,
            agent_version=agent_version,
        )

    @contextmanager
    def run_slot(self) -> Generator[None, None, None]:
        """Counts a run while it goes on; raises ServerBusy when MAX_CONCURRENT_REQUESTS are under way."""
        if self.runs >= self.settings.max_concurrent_requests:
            raise ServerBusy("Too many requests are under way. Try again in a moment.", retry_after=1)
        self.runs += 1
        try:
            yield
        finally:
            self.runs -= 1


def load(**overrides: object) -> Configuration:
    """The configuration of this process; `overrides` are settings by field name.

    Raises ConfigError with all faults of the environment, the files and the plug-ins.
    """
    settings, faults = read_settings(**overrides)
    plugins, found = load_plugins(settings.plugins_dir)
    return load_configuration(settings, plugins, [*faults, *found])


def load_configuration(settings: Settings, plugins: Plugins, faults: Iterable[Fault] = (), *, files: Files | None = None) -> Configuration:
    """Reads and checks `files`, by default those of `settings`; raises ConfigError with `faults` and all those found."""
    found = list(faults)
    files = files or files_of(settings)
    environment = load_environment()
    known = KnownNames(plugins.agents.keys(), plugins.providers.keys(), plugins.tools.keys(), (BUILT_IN, *plugins.memories))
    agents, more = read_agents(files.agents, files.prompts, environment, known)
    found += more
    servers, more = read_servers(files.servers, environment)
    found += more
    for field, name, known_names in (
        ("DEFAULT_PROVIDER", settings.default_provider, plugins.providers.keys()),
        ("TASK_PROVIDER", settings.task_provider, {*plugins.providers, AUTO}),
    ):
        if name is not None and PROVIDER_ALIASES.get(name, name) not in known_names:
            found.append(Fault(file="environment", field=field, problem=f"{name!r} is not a provider", remedy=nearest(name, known_names)))
    found += [*key_faults(settings), *identity_faults(settings), *tls_faults(settings), *_memory_faults(settings, agents)]
    found += tracing_faults(environment)
    if found:
        raise ConfigError(found)
    return Configuration(
        settings,
        files,
        environment,
        plugins,
        tuple(agents),
        servers,
        (
            *servers.warnings,
            *tls_warnings(settings),
            *identity_warnings(settings),
            *_access_warnings(settings, agents),
            *(f"agent {agent.agent_id}: {warning}" for agent in agents for warning in warnings_about(agent, servers.labels)),
        ),
        int(files.agents.stat().st_mtime),
        tracing_of(environment, name=settings.service_name, version=settings.service_version, flush_seconds=settings.shutdown_timeout),
    )


def _access_warnings(settings: Settings, agents: Iterable[AgentDefinition]) -> list[str]:
    """Agents that are for nobody."""
    if settings.identity_mode != "none":
        return []
    limited = [agent.agent_id for agent in agents if agent.access.groups or agent.access.roles]
    return [f"agent {agent_id}: access is for groups or roles, which nobody has, as IDENTITY_MODE is none" for agent_id in limited]


def _memory_faults(settings: Settings, agents: Iterable[AgentDefinition]) -> list[Fault]:
    """What is wrong with where and how conversations are kept."""
    found = []
    replica = settings.database_replica_url
    checks: tuple[tuple[str, Callable[[], object], str], ...] = (
        ("DATABASE_URL", lambda: address_of(settings), "Correct it, or unset it for an SQLite file"),
        ("DATABASE_REPLICA_URL", lambda: replica and _replica(replica.get_secret_value()), "Correct it, or unset it"),
        ("MEMORY_ENCRYPTION_KEYS", lambda: cipher_of(settings), "Make a key with: openssl rand -base64 32"),
    )
    for field, check, remedy in checks:
        try:
            check()
        except ValueError as error:
            found.append(Fault(file="environment", field=field, problem=str(error).rstrip("."), remedy=remedy))
    names = {agent.agent_id for agent in agents}
    for agent in agents:
        helper = agent.memory.compression.agent if agent.memory else None
        if helper is not None and helper not in names:
            found.append(
                Fault(
                    file=str(settings.agent_config_file),
                    where=f"agent {agent.agent_id!r}",
                    field="resource_config.memory.compression.agent",
                    problem=f"{helper!r} is not an agent",
                    remedy=nearest(helper, names),
                )
            )
    return found


def _replica(url: str) -> Address:
    address = parse_address(url)
    if address.kind != "postgresql":
        raise ValueError("only a PostgreSQL database has a replica")
    return address


@asynccontextmanager
async def open_service(configuration: Configuration, toolset: Callable[..., Toolset] | None = None) -> AsyncGenerator[Service, None]:
    """The service of `configuration`, with everything it holds open closed at the end; `toolset` is as for a Maker."""
    settings = configuration.settings
    timeouts = Timeouts(settings.provider_connect_timeout, settings.provider_first_byte_timeout, settings.provider_idle_timeout)
    tracing = configuration.tracing
    async with tracing or nullcontext(), HttpClient(timeouts, max_retries=settings.provider_max_retries) as http:
        setup = ProviderSetup(settings, configuration.environment, http)
        providers = {name: factory.from_setup(setup) for name, factory in configuration.plugins.providers.items()}
        auto = await _auto_provider(settings, providers)
        plain = providers
        if tracing is not None:
            providers = {name: TracedProvider(provider, tracing) for name, provider in providers.items()}
        breakers = Breakers(settings.provider_breaker_failures, settings.provider_breaker_seconds, counts=http.counts)
        guarded = {name: breakers.guarded(provider) for name, provider in providers.items()}
        guarded[AUTO] = guarded[auto]
        pending = PendingSteps()
        task_name = settings.task_provider and PROVIDER_ALIASES.get(settings.task_provider, settings.task_provider)
        tasks = guarded[task_name] if task_name else None
        async with Maker(settings, configuration.plugins, configuration.environment, guarded, pending, tracing, toolset) as maker:
            edition = await maker.make(configuration.written)
            maker.begin(edition)
            for warning in configuration.warnings:
                logger.warning(warning)
            service = Service(configuration, maker, edition, pending, http, auto, breakers, plain, tasks)
            try:
                yield service
            finally:
                await service.stop()


@asynccontextmanager
async def open_access(configuration: Configuration, service: Service) -> AsyncGenerator[Access, None]:
    """What tells who calls `service`, and how much they may ask."""
    settings = configuration.settings
    async with AsyncExitStack() as opened:
        database = None
        if service.memories is not None:
            database = service.memories.database
        elif settings.api_keys is None or _has_database(settings):
            database = await opened.enter_async_context(open_database(settings))
        pepper = settings.api_key_pepper
        fetch = partial(service.http.fetched, limit_bytes=MAX_DOCUMENT_BYTES, timeout=FETCH_SECONDS)
        keys = KeyRing(
            database,
            environment_keys=environment_keys(settings),
            pepper=pepper.get_secret_value() if pepper is not None else None,
            cipher=cipher_of(settings),
        )
        yield Access(
            await opened.enter_async_context(keys),
            await opened.enter_async_context(open_identity(settings, fetch)),
            await opened.enter_async_context(open_limits(database)),
            is_local=settings.is_local,
            allow_unauthenticated=settings.allow_unauthenticated,
            allowed_hosts=settings.allowed_hosts,
            database=database,
        )


def _has_database(settings: Settings) -> bool:
    """Whether the settings name a database, or the default file is there."""
    address = address_of(settings)
    return address.kind == "postgresql" or address.path.exists()


async def database_keys(settings: Settings) -> Literal["none", "ended", "live"] | None:
    """Whether there is a key in the database, and one that is neither revoked nor expired; None if it cannot be asked."""
    if not _has_database(settings):
        return "none"
    async with (
        open_database(settings) as database,
        KeyRing(database, environment_keys=(), pepper=None, cipher=cipher_of(settings)) as ring,
    ):
        if ring.has_keys is None:
            return None
        return "live" if ring.has_live_keys else "ended" if ring.has_keys else "none"


async def _auto_provider(settings: Settings, providers: Mapping[str, Provider]) -> str:
    """DEFAULT_PROVIDER, else the first that is configured, else an Ollama that answers and has a model, else demo."""
    if settings.default_provider is not None:
        return PROVIDER_ALIASES.get(settings.default_provider, settings.default_provider)
    for name in AUTO_ORDER:
        if not providers[name].missing:
            return name
    ollama = providers["ollama"]
    if isinstance(ollama, Ollama):
        try:
            async with asyncio.timeout(OLLAMA_PROBE_SECONDS):
                if await ollama.installed_models():
                    return ollama.name
        except (UpstreamError, TimeoutError) as error:
            logger.debug("no Ollama at %s (%s)", settings.ollama_base_url, error)
    return "demo"
