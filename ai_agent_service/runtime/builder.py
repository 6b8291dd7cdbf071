"""Makes the agents and MCP servers of one reading of the files; what did not change since the reading before is taken over."""

import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Self

from ai_agent_service.agents.base import AgentParts, BaseAgent
from ai_agent_service.agents.catalog import Catalog
from ai_agent_service.agents.pending_steps import PendingSteps
from ai_agent_service.config.agent_definition import AgentDefinition, AllowedTools
from ai_agent_service.config.agent_version import version_of
from ai_agent_service.config.memory_definition import BUILT_IN, MemoryDefinition
from ai_agent_service.config.read_agents import LEGACY_TOOLS
from ai_agent_service.config.read_servers import Servers
from ai_agent_service.config.settings import Settings
from ai_agent_service.core.errors import ConfigError, Fault
from ai_agent_service.core.tasks import Held, Tasks
from ai_agent_service.instrumentation.agents import TracedAgent
from ai_agent_service.instrumentation.memory import TracedMemory
from ai_agent_service.instrumentation.tools import TracedToolset
from ai_agent_service.mcp.connection import Connection
from ai_agent_service.mcp.supervisor import McpServers, Supervision
from ai_agent_service.mcp.tool import model_name, model_names
from ai_agent_service.memory.base import Memory, MemorySetup
from ai_agent_service.memory.opening import Memories, Summarizer, open_memories
from ai_agent_service.observability.tracing import Tracing
from ai_agent_service.providers.base import Provider
from ai_agent_service.providers.fallback import Fallback, Other
from ai_agent_service.runs.live import LiveRuns
from ai_agent_service.runs.remembering import Remembering
from ai_agent_service.runtime.plugin_loader import Plugins
from ai_agent_service.runtime.revision import Edition, Written, _Made
from ai_agent_service.tools.base import ToolSource
from ai_agent_service.tools.cached import CachedSource
from ai_agent_service.tools.dynamic import AvailableTools
from ai_agent_service.tools.filtered import Filtered
from ai_agent_service.tools.toolset import Toolset

logger = logging.getLogger(__name__)


class Maker:
    """Makes editions of what the service holds open, and closes at its end all that they keep open. `providers` has `auto` among them.

    `toolset` carries out the calls of tools in another way than usual.
    """

    def __init__(
        self,
        settings: Settings,
        plugins: Plugins,
        environment: Mapping[str, str],
        providers: Mapping[str, Provider],
        pending: PendingSteps,
        tracing: Tracing | None,
        toolset: Callable[..., Toolset] | None = None,
    ) -> None:
        self.memories: Memories | None = None
        """The database of conversations; None until there is an agent that remembers in it. From then on it stays open."""

        self._settings = settings
        self._plugins = plugins
        self._environment = environment
        self._providers = providers
        self._pending = pending
        self._tracing = tracing
        self._toolset = toolset or (Toolset if tracing is None else partial(TracedToolset, tracing))
        self._live = LiveRuns()
        self._supervision = Supervision(connect_seconds=settings.mcp_connect_timeout, tools_seconds=settings.mcp_tool_cache_ttl)
        self._held: set[Held[Memory]] = set()
        self._opened = AsyncExitStack()
        self._tasks = Tasks()
        """What memories of plug-ins still have to store."""

    async def __aenter__(self) -> Self:
        await self._opened.enter_async_context(self._supervision)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._tasks.finish()
        await self._close(tuple(self._held))
        await self._opened.aclose()

    async def make(self, written: Written, before: Edition | None = None) -> Edition:
        """The edition that `written` says, which has no effect until `begin`; raises ConfigError where an agent cannot be made."""
        wanted = {label for agent in written.agents for label in agent.allowed_mcp_servers}
        servers = self._supervision.servers(
            written.servers.definitions, written.environment, wanted=wanted, before=before.servers if before is not None else None
        )
        if self.memories is None and any(agent.memory and agent.memory.backend == BUILT_IN for agent in written.agents):
            held = Held(open_memories(self._settings, {}))
            self.memories = await held.opened()
            self._opened.push_async_callback(held.close)
        old = before.made if before is not None else {}
        faults: list[Fault] = []
        plain: dict[str, tuple[BaseAgent, tuple[object, ...]]] = {}
        for definition in written.agents:
            try:
                plain[definition.agent_id] = self._plain(definition, written.servers, servers, old.get(definition.agent_id))
            except Exception as error:  # noqa: BLE001 - an agent type may be a plug-in and raise anything; `_fault` logs it
                faults.append(self._fault(definition, "type", error))
        made: dict[str, _Made] = {}
        try:
            for definition in written.agents if not faults else ():
                try:
                    made[definition.agent_id] = await self._made(definition, plain, old.get(definition.agent_id))
                except Exception as error:  # noqa: BLE001 - so may a memory
                    faults.append(self._fault(definition, "resource_config.memory.backend", error))
            if faults:
                raise ConfigError(faults)
        except BaseException:
            await self._close(set(_held(made)) - set(_held(old)))
            raise
        return Edition(Catalog([self._shown(each.agent) for each in made.values()], created=written.created), servers, written, made)

    def begin(self, edition: Edition) -> None:
        """Has `edition` take effect: connects to its servers, and keeps conversations as long as its agents say."""
        self._supervision.begin(edition.servers, edition.written.environment)
        if self.memories is not None:
            kept = {agent.agent_id: memory.retention_days for agent in edition.written.agents if (memory := agent.memory) is not None}
            self.memories.keeper.retain({agent_id: days for agent_id, days in kept.items() if days is not None})

    async def end(self, edition: Edition, after: Edition) -> None:
        """Closes what `edition` keeps open and `after`, which followed it, does not use."""
        await self._supervision.end(set(edition.servers) - set(after.servers))
        if ending := set(_held(edition.made)) - set(_held(after.made)):
            await self._tasks.settled(self._settings.request_timeout)  # an answer whose caller left may still be stored
            await self._close(ending)

    def _plain(
        self, definition: AgentDefinition, written: Servers, servers: McpServers, old: _Made | None
    ) -> tuple[BaseAgent, tuple[object, ...]]:
        """The agent without a memory, and what it is made of."""
        version = version_of(definition, written)
        connections = {label: servers[label] for label in definition.allowed_mcp_servers if label in servers}
        of = (version, definition, *connections.values())
        if old is not None and old.plain_of == of:
            return old.plain, of
        tools = (self._plugins.tools[name] for name in definition.allowed_regular_tools if name not in LEGACY_TOOLS)
        sources = [_source(connection, definition.allowed_mcp_servers[label]) for label, connection in connections.items()]
        available = AvailableTools(tools, sources, default_timeout=self._settings.tool_execution_timeout, toolset=self._toolset)
        provider = _provider(definition, self._providers)
        return self._plugins.agents[definition.type](definition, AgentParts(provider, available, self._pending, version)), of

    async def _made(
        self, definition: AgentDefinition, plain: Mapping[str, tuple[BaseAgent, tuple[object, ...]]], old: _Made | None
    ) -> _Made:
        agent, plain_of = plain[definition.agent_id]
        memory = definition.memory
        if memory is None:
            return _Made(agent, plain_of, agent, ())
        helper, _ = plain[memory.compression.agent or definition.agent_id]
        of = (agent, helper)
        if old is not None and old.agent_of == of:
            return old
        if memory.backend == BUILT_IN:
            assert self.memories is not None
            own = self.memories.of(memory, _summarizer(helper, memory), self._live.is_live)
            return _Made(agent, plain_of, Remembering(agent, self._used(own), self._live, self.memories.tasks), of)
        setup = MemorySetup(self._settings, self._environment, definition)
        held = Held(self._plugins.memories[memory.backend].open(setup))
        opened = await held.opened()
        self._held.add(held)
        return _Made(agent, plain_of, Remembering(agent, self._used(opened), self._live, self._tasks), of, held)

    def _shown(self, agent: BaseAgent) -> BaseAgent:
        return agent if self._tracing is None else TracedAgent(agent, self._tracing)

    def _used(self, memory: Memory) -> Memory:
        return memory if self._tracing is None else TracedMemory(memory, self._tracing)

    def _fault(self, definition: AgentDefinition, field: str, error: Exception) -> Fault:
        """What keeps the agent from being made: a plug-in, which may raise anything."""
        where = f"agent {definition.agent_id!r}"
        logger.error("agent.not_made", extra={"agent_id": definition.agent_id}, exc_info=error)
        problem = f"it cannot be opened ({type(error).__name__})"
        return Fault(file=str(self._settings.agent_config_file), where=where, field=field, problem=problem, remedy="The log says more")

    async def _close(self, held: Collection[Held[Memory]]) -> None:
        for each in held:
            await each.close()
            self._held.discard(each)  # not before: whoever comes after one that was cancelled waits for it


def _held(made: Mapping[str, _Made]) -> list[Held[Memory]]:
    return [each.held for each in made.values() if each.held is not None]


def _provider(definition: AgentDefinition, providers: Mapping[str, Provider]) -> Provider:
    """The agent's provider, with those to fall back to; what is the same as one before it is left out."""
    own = Other(providers[definition.provider], definition.model or "")
    others = dict.fromkeys(Other(providers[other.provider], other.model or "") for other in definition.fallback)
    others.pop(own, None)
    return Fallback(definition.agent_id, own.provider, tuple(others)) if others else own.provider


def _summarizer(agent: BaseAgent, memory: MemoryDefinition) -> Summarizer:
    """Makes summaries as `agent` is asked, or with the model that the memory's definition names."""
    name = memory.compression.model

    async def model() -> str:
        return name or await agent.model()

    return Summarizer(agent.parts.provider, model, name or agent.definition.model, agent.definition.model_settings)


def _source(connection: Connection, allowed: AllowedTools) -> ToolSource:
    """What an agent may use of the server, its results kept as the agent's definition says."""
    source: ToolSource = connection
    if allowed.allowed_mcp_tools is not None:
        source = Filtered(source, model_names(connection.label, allowed.allowed_mcp_tools))
    if allowed.cached_mcp_tools:
        source = CachedSource(source, {model_name(connection.label, tool): seconds for tool, seconds in allowed.cached_mcp_tools.items()})
    return source
