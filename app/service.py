"""The composition root: settings and configuration in, a running service out; the only file that knows all concrete classes."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping
from contextlib import asynccontextmanager, contextmanager

import msgspec

from app.agents.base import AgentParts, BaseAgent
from app.agents.catalog import Catalog
from app.agents.pending import PendingSteps
from app.config.agents import AUTO, LEGACY_TOOLS, PROVIDER_ALIASES, AgentDefinition, KnownNames, read_agents, warnings_about
from app.config.files import load_environment, nearest
from app.config.mcp import read_server_labels
from app.config.settings import Settings, read_settings
from app.core.context import RunContext
from app.core.errors import ConfigError, Fault, ServerBusy, UpstreamError
from app.core.ids import new_id
from app.plugins import Plugins, load_plugins
from app.providers.base import Provider, ProviderSetup
from app.providers.http import HttpClient, Timeouts
from app.providers.ollama import Ollama
from app.tools.toolset import Toolset

logger = logging.getLogger(__name__)

AUTO_ORDER = ("azure_openai", "openrouter", "openai")
OLLAMA_PROBE_SECONDS = 0.5


class Configuration(msgspec.Struct, frozen=True):
    """All that the operator wrote, read and found without fault; `warnings` are (agent id, sentence) pairs."""

    settings: Settings
    environment: Mapping[str, str]
    plugins: Plugins
    agents: tuple[AgentDefinition, ...]
    warnings: tuple[tuple[str, str], ...]
    created: int


class Service:
    """The running service: its agents, and the count of the runs under way."""

    def __init__(self, configuration: Configuration, catalog: Catalog, auto: str) -> None:
        self.settings = configuration.settings
        self.catalog = catalog
        self.auto_provider = auto
        self.runs = 0

    def agent(self, agent_id: str) -> BaseAgent:
        """The agent of this id; raises NotFound."""
        return self.catalog.get(agent_id)

    def context(self, agent_id: str, *, user: str | None = None, session: str | None = None, request_id: str = "") -> RunContext:
        """The circumstances of a new run that begins now and ends within REQUEST_TIMEOUT."""
        return RunContext(
            run_id=new_id("run_"),
            agent_id=agent_id,
            deadline=time.monotonic() + self.settings.request_timeout,
            request_id=request_id,
            user=user or "anonymous",
            session=session,
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


def load_configuration(settings: Settings, plugins: Plugins, faults: Iterable[Fault] = ()) -> Configuration:
    """Reads and checks every file that `settings` name; raises ConfigError with `faults` and all those found."""
    found = list(faults)
    environment = load_environment()
    known = KnownNames(plugins.agents.keys(), plugins.providers.keys(), plugins.tools.keys())
    agents, more = read_agents(settings.agent_config_file, settings.prompts_dir, environment, known)
    found += more
    labels, more = read_server_labels(settings.mcp_config_file)
    found += more
    default = settings.default_provider
    if default is not None and PROVIDER_ALIASES.get(default, default) not in plugins.providers:
        problem = f"{default!r} is not a provider"
        found.append(Fault(file="environment", field="DEFAULT_PROVIDER", problem=problem, remedy=nearest(default, plugins.providers)))
    if found:
        raise ConfigError(found)
    return Configuration(
        settings,
        environment,
        plugins,
        tuple(agents),
        tuple((agent.agent_id, warning) for agent in agents for warning in warnings_about(agent, labels)),
        int(settings.agent_config_file.stat().st_mtime),
    )


@asynccontextmanager
async def open_service(configuration: Configuration) -> AsyncGenerator[Service, None]:
    """The service of `configuration`, with everything it holds open closed at the end."""
    settings = configuration.settings
    timeouts = Timeouts(settings.provider_connect_timeout, settings.provider_first_byte_timeout, settings.provider_idle_timeout)
    async with HttpClient(timeouts, max_retries=settings.provider_max_retries) as http:
        setup = ProviderSetup(settings, configuration.environment, http)
        providers = {name: factory.from_setup(setup) for name, factory in configuration.plugins.providers.items()}
        auto = await _auto_provider(settings, providers)
        pending = PendingSteps()
        agents = [_agent(definition, configuration, providers, auto, pending) for definition in configuration.agents]
        for agent_id, warning in configuration.warnings:
            logger.warning("agent %s: %s", agent_id, warning)
        yield Service(configuration, Catalog(agents, created=configuration.created), auto)


def _agent(
    definition: AgentDefinition, configuration: Configuration, providers: Mapping[str, Provider], auto: str, pending: PendingSteps
) -> BaseAgent:
    plugins = configuration.plugins
    tools = (plugins.tools[name] for name in definition.allowed_regular_tools if name not in LEGACY_TOOLS)
    toolset = Toolset(tools, default_timeout=configuration.settings.tool_execution_timeout)
    provider = providers[auto if definition.provider == AUTO else definition.provider]
    return plugins.agents[definition.type](definition, AgentParts(provider, toolset, pending))


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
