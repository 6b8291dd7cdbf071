"""Makes the agents and MCP servers of one reading of the files; what did not change since the
reading before is taken over."""

import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Self

from ai_agent_service.agents.base import AgentParts, BaseAgent
from ai_agent_service.agents.catalog import Catalog
from ai_agent_service.agents.pending_steps import PendingSteps
from ai_agent_service.config.agent_definition import (
    AgentDefinition,
    AllowedTools,
    FallbackDefinition,
)
from ai_agent_service.config.agent_version import compute_version
from ai_agent_service.config.memory_definition import BUILT_IN
from ai_agent_service.config.read_agents import LEGACY_TOOLS
from ai_agent_service.config.read_servers import ServerDefinitions
from ai_agent_service.config.settings import Settings
from ai_agent_service.core.errors import ConfigError, Fault
from ai_agent_service.core.tasks import ContextHolder
from ai_agent_service.instrumentation.memory import TracedMemory
from ai_agent_service.instrumentation.tools import TracedToolset
from ai_agent_service.mcp.connection import Connection
from ai_agent_service.mcp.supervisor import McpServers, McpSupervisor
from ai_agent_service.mcp.tool import build_model_name, build_model_names
from ai_agent_service.memory.base import Memory, MemorySetup
from ai_agent_service.memory.opening import Memories, Summarizer, open_memories
from ai_agent_service.memory.windows import ContextWindows
from ai_agent_service.observability.tracing import Tracing
from ai_agent_service.providers.base import Provider
from ai_agent_service.providers.fallback import FailoverCandidate, FallbackProvider
from ai_agent_service.providers.wrapper import ApiBoundProvider
from ai_agent_service.runs.run import RunServices
from ai_agent_service.runtime.plugin_loader import Plugins
from ai_agent_service.runtime.revision import BuiltAgent, ConfigSnapshot, Revision
from ai_agent_service.tools.base import ToolSource
from ai_agent_service.tools.cached import CachedSource
from ai_agent_service.tools.dynamic import AvailableTools
from ai_agent_service.tools.filtered import FilteredSource
from ai_agent_service.tools.toolset import Toolset

logger = logging.getLogger(__name__)


class Builder:
    """Makes revisions of what the service holds open, and closes at its end all that they keep
    open. `providers` has `auto` among them.

    `toolset` carries out the calls of tools in another way than usual.
    """

    def __init__(
        self,
        settings: Settings,
        plugins: Plugins,
        environment: Mapping[str, str],
        providers: Mapping[str, Provider],
        pending: PendingSteps,
        runs: RunServices,
        tracing: Tracing | None,
        toolset: Callable[..., Toolset] | None = None,
    ) -> None:
        self.memories: Memories | None = None
        """The database of conversations; None until there is an agent that remembers in it. From
        then on it stays open."""

        self._settings = settings
        self._plugins = plugins
        self._environment = environment
        self._providers = providers
        self._pending = pending
        self._windows = ContextWindows()
        self._tracing = tracing
        self._toolset = toolset or (Toolset if tracing is None else partial(TracedToolset, tracing))
        self._live = runs.live
        self._supervision = McpSupervisor(
            connect_seconds=settings.mcp_connect_timeout, tools_seconds=settings.mcp_tool_cache_ttl
        )
        self._held: set[ContextHolder[Memory]] = set()
        self._opened = AsyncExitStack()
        self._tasks = runs.tasks

    async def __aenter__(self) -> Self:
        await self._opened.enter_async_context(self._supervision)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._tasks.finish()
        await self._close(tuple(self._held))
        await self._opened.aclose()

    async def build(self, snapshot: ConfigSnapshot, before: Revision | None = None) -> Revision:
        """Return the revision of `snapshot`, which has no effect until `activate`; raises
        ConfigError where an agent cannot be built."""
        wanted = {label for agent in snapshot.agents for label in agent.allowed_mcp_servers}
        servers = self._supervision.build_servers(
            snapshot.servers.definitions,
            snapshot.environment,
            wanted=wanted,
            before=before.servers if before is not None else None,
        )
        if self.memories is None and any(
            agent.memory and agent.memory.backend == BUILT_IN for agent in snapshot.agents
        ):
            database = ContextHolder(open_memories(self._settings, {}))
            self.memories = await database.wait_until_open()
            self._opened.push_async_callback(database.close)
            if before is not None:  # a reload may take its time
                await self.memories.database.wait_until_tried()
        old = before.built if before is not None else {}
        definitions = {definition.agent_id: definition for definition in snapshot.agents}
        keys = {
            definition.agent_id: _build_key(definition, snapshot.servers, servers)
            for definition in snapshot.agents
        }
        built: dict[str, BuiltAgent] = {}
        held: list[ContextHolder[Memory]] = []
        faults: list[Fault] = []
        try:
            for agent_id, definition in definitions.items():
                helper = definitions[_find_helper(definition)]
                key = (keys[agent_id], keys[helper.agent_id])
                if agent_id in old and old[agent_id].key == key:
                    built[agent_id] = old[agent_id]
                    continue
                field = "resource_config.memory.backend"
                try:
                    opened = await self._hold_memory(definition)
                    held += [opened] if opened is not None else []
                    memory = await self._build_memory(definition, helper, opened, built)
                    field = "type"
                    agent = self._build_agent(definition, servers, keys[agent_id], memory)
                # Agent types and memories may be plug-ins and raise anything; the fault is logged.
                except Exception as error:  # noqa: BLE001
                    faults.append(self._build_fault(definition, field, error))
                else:
                    built[agent_id] = BuiltAgent(agent, key, opened)
            if faults:
                raise ConfigError(faults)
        except BaseException:
            await self._close(held)
            raise
        catalog = Catalog([each.agent for each in built.values()], created=snapshot.created)
        return Revision(catalog, servers, snapshot, built)

    def activate(self, revision: Revision) -> None:
        """Has `revision` take effect: connects to its servers, and keeps conversations as long as
        its agents say."""
        self._supervision.start(revision.servers, revision.snapshot.environment)
        if self.memories is not None:
            kept = {
                agent.agent_id: memory.retention_days
                for agent in revision.snapshot.agents
                if (memory := agent.memory) is not None
            }
            self.memories.housekeeping.set_agent_retention(
                {agent_id: days for agent_id, days in kept.items() if days is not None}
            )

    async def retire(self, revision: Revision, after: Revision) -> None:
        """Closes what `revision` keeps open and `after`, which followed it, does not use."""
        await self._supervision.stop(set(revision.servers) - set(after.servers))
        if ending := set(_collect_held(revision.built)) - set(_collect_held(after.built)):
            await self._tasks.wait_for_running(
                self._settings.request_timeout
            )  # an answer whose caller left may still be stored
            await self._close(ending)

    def _build_agent(
        self,
        definition: AgentDefinition,
        servers: McpServers,
        key: tuple[object, ...],
        memory: Memory | None,
    ) -> BaseAgent:
        tools = (
            self._plugins.tools[name]
            for name in definition.allowed_regular_tools
            if name not in LEGACY_TOOLS
        )
        sources = [
            _build_source(servers[label], allowed)
            for label, allowed in definition.allowed_mcp_servers.items()
            if label in servers
        ]
        available = AvailableTools(
            tools,
            sources,
            default_timeout=self._settings.tool_execution_timeout,
            toolset=self._toolset,
        )
        provider = _select_provider(definition, self._providers)
        parts = AgentParts(
            provider,
            available,
            self._pending,
            str(key[0]),
            memory,
            self._windows,
            self._settings.max_answer_characters,
        )
        return self._plugins.agents[definition.type](definition, parts)

    async def _hold_memory(self, definition: AgentDefinition) -> ContextHolder[Memory] | None:
        """Open the memory of a plug-in for the agent, if it has one."""
        if definition.memory is None or definition.memory.backend == BUILT_IN:
            return None
        setup = MemorySetup(self._settings, self._environment, definition)
        held = ContextHolder(self._plugins.memories[definition.memory.backend].open(setup))
        self._held.add(held)
        return held

    async def _build_memory(
        self,
        definition: AgentDefinition,
        helper: AgentDefinition,
        held: ContextHolder[Memory] | None,
        built: Mapping[str, BuiltAgent],
    ) -> Memory | None:
        """Return the agent's memory; `helper` is the agent that makes its summaries, which is among
        `built` by the time that one is made."""
        if definition.memory is None:
            return None
        if held is not None:
            return self._trace_memory(await held.wait_until_open())
        assert self.memories is not None
        name = definition.memory.compression.model

        async def resolve_model() -> str:
            return name or await built[helper.agent_id].agent.model()

        summarizer = Summarizer(
            _select_provider(helper, self._providers),
            resolve_model,
            name or helper.model,
            helper.model_settings,
        )
        own = self.memories.build_memory(definition.memory, summarizer, self._live.is_live)
        return self._trace_memory(own)

    def _trace_memory(self, memory: Memory) -> Memory:
        return memory if self._tracing is None else TracedMemory(memory, self._tracing)

    def _build_fault(self, definition: AgentDefinition, field: str, error: Exception) -> Fault:
        """What keeps the agent from being made: a plug-in, which may raise anything."""
        where = f"agent {definition.agent_id!r}"
        logger.error("agent.not_made", extra={"agent_id": definition.agent_id}, exc_info=error)
        problem = f"it cannot be opened ({type(error).__name__})"
        return Fault(
            file=str(self._settings.agent_config_file),
            where=where,
            field=field,
            problem=problem,
            remedy="The log says more",
        )

    async def _close(self, held: Collection[ContextHolder[Memory]]) -> None:
        for each in held:
            await each.close()
            self._held.discard(
                each
            )  # not before: whoever comes after one that was cancelled waits for it


def _collect_held(made: Mapping[str, BuiltAgent]) -> list[ContextHolder[Memory]]:
    return [each.held for each in made.values() if each.held is not None]


def _build_key(
    definition: AgentDefinition, written: ServerDefinitions, servers: McpServers
) -> tuple[object, ...]:
    """Return what an agent is built from, its version first."""
    connections = (servers[label] for label in definition.allowed_mcp_servers if label in servers)
    return (compute_version(definition, written), definition, *connections)


def _find_helper(definition: AgentDefinition) -> str:
    """Return the id of the agent that makes the summaries of the agent's memory."""
    memory = definition.memory
    return (memory and memory.compression.agent) or definition.agent_id


def _select_provider(definition: AgentDefinition, providers: Mapping[str, Provider]) -> Provider:
    """The agent's provider, with those to fall back to; what is the same as one before it is left
    out."""
    own = _build_candidate(definition, providers)
    others = dict.fromkeys(_build_candidate(other, providers) for other in definition.fallback)
    others.pop(own, None)
    return (
        FallbackProvider(definition.agent_id, own.provider, tuple(others))
        if others
        else own.provider
    )


def _build_candidate(
    definition: AgentDefinition | FallbackDefinition, providers: Mapping[str, Provider]
) -> FailoverCandidate:
    provider = providers[definition.provider]
    if definition.api != "auto":
        provider = ApiBoundProvider(provider, definition.api)
    return FailoverCandidate(provider, definition.model or "")


def _build_source(connection: Connection, allowed: AllowedTools) -> ToolSource:
    """What an agent may use of the server, its results kept as the agent's definition says."""
    source: ToolSource = connection
    if allowed.allowed_mcp_tools is not None:
        source = FilteredSource(
            source, build_model_names(connection.label, allowed.allowed_mcp_tools)
        )
    if allowed.cached_mcp_tools:
        source = CachedSource(
            source,
            {
                build_model_name(connection.label, tool): seconds
                for tool, seconds in allowed.cached_mcp_tools.items()
            },
        )
    return source
