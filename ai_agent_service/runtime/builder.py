"""Makes the agents and MCP servers of one reading of the files; what did not change since the
reading before is taken over."""

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
from ai_agent_service.config.agent_version import compute_version
from ai_agent_service.config.memory_definition import BUILT_IN, MemoryDefinition
from ai_agent_service.config.read_agents import LEGACY_TOOLS
from ai_agent_service.config.read_servers import ServerDefinitions
from ai_agent_service.config.settings import Settings
from ai_agent_service.core.errors import ConfigError, Fault
from ai_agent_service.core.tasks import ContextHolder, Tasks
from ai_agent_service.instrumentation.agents import TracedAgent
from ai_agent_service.instrumentation.memory import TracedMemory
from ai_agent_service.instrumentation.tools import TracedToolset
from ai_agent_service.mcp.connection import Connection
from ai_agent_service.mcp.supervisor import McpServers, McpSupervisor
from ai_agent_service.mcp.tool import build_model_name, build_model_names
from ai_agent_service.memory.base import Memory, MemorySetup
from ai_agent_service.memory.opening import Memories, Summarizer, open_memories
from ai_agent_service.observability.tracing import Tracing
from ai_agent_service.providers.base import Provider
from ai_agent_service.providers.fallback import FailoverCandidate, FallbackProvider
from ai_agent_service.runs.live import LiveRuns
from ai_agent_service.runs.remembering import MemoryAgent
from ai_agent_service.runtime.plugin_loader import Plugins
from ai_agent_service.runtime.revision import ConfigSnapshot, Revision, _BuiltAgent
from ai_agent_service.tools.base import ToolSource
from ai_agent_service.tools.cached import CachedSource
from ai_agent_service.tools.dynamic import AvailableTools
from ai_agent_service.tools.filtered import FilteredSource
from ai_agent_service.tools.toolset import Toolset

logger = logging.getLogger(__name__)


class Builder:
    """Makes editions of what the service holds open, and closes at its end all that they keep open.
    `providers` has `auto` among them.

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
        """The database of conversations; None until there is an agent that remembers in it. From
        then on it stays open."""

        self._settings = settings
        self._plugins = plugins
        self._environment = environment
        self._providers = providers
        self._pending = pending
        self._tracing = tracing
        self._toolset = toolset or (Toolset if tracing is None else partial(TracedToolset, tracing))
        self._live = LiveRuns()
        self._supervision = McpSupervisor(
            connect_seconds=settings.mcp_connect_timeout, tools_seconds=settings.mcp_tool_cache_ttl
        )
        self._held: set[ContextHolder[Memory]] = set()
        self._opened = AsyncExitStack()
        self._tasks = Tasks()
        """What memories of plug-ins still have to store."""

    async def __aenter__(self) -> Self:
        await self._opened.enter_async_context(self._supervision)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._tasks.finish()
        await self._close(tuple(self._held))
        await self._opened.aclose()

    async def build(self, written: ConfigSnapshot, before: Revision | None = None) -> Revision:
        """The edition that `written` says, which has no effect until `begin`; raises ConfigError
        where an agent cannot be made."""
        wanted = {label for agent in written.agents for label in agent.allowed_mcp_servers}
        servers = self._supervision.build_servers(
            written.servers.definitions,
            written.environment,
            wanted=wanted,
            before=before.servers if before is not None else None,
        )
        if self.memories is None and any(
            agent.memory and agent.memory.backend == BUILT_IN for agent in written.agents
        ):
            held = ContextHolder(open_memories(self._settings, {}))
            self.memories = await held.wait_until_open()
            self._opened.push_async_callback(held.close)
        old = before.built if before is not None else {}
        faults: list[Fault] = []
        plain: dict[str, tuple[BaseAgent, tuple[object, ...]]] = {}
        for definition in written.agents:
            try:
                plain[definition.agent_id] = self._build_plain_agent(
                    definition, written.servers, servers, old.get(definition.agent_id)
                )
            # an agent type may be a plug-in and raise anything; `_fault` logs it
            except Exception as error:  # noqa: BLE001
                faults.append(self._build_fault(definition, "type", error))
        made: dict[str, _BuiltAgent] = {}
        try:
            for definition in written.agents if not faults else ():
                try:
                    made[definition.agent_id] = await self._build_agent(
                        definition, plain, old.get(definition.agent_id)
                    )
                except Exception as error:  # noqa: BLE001 - so may a memory
                    faults.append(
                        self._build_fault(definition, "resource_config.memory.backend", error)
                    )
            if faults:
                raise ConfigError(faults)
        except BaseException:
            await self._close(set(_collect_held(made)) - set(_collect_held(old)))
            raise
        return Revision(
            Catalog(
                [self._trace_agent(each.agent) for each in made.values()], created=written.created
            ),
            servers,
            written,
            made,
        )

    def activate(self, edition: Revision) -> None:
        """Has `edition` take effect: connects to its servers, and keeps conversations as long as
        its agents say."""
        self._supervision.start(edition.servers, edition.snapshot.environment)
        if self.memories is not None:
            kept = {
                agent.agent_id: memory.retention_days
                for agent in edition.snapshot.agents
                if (memory := agent.memory) is not None
            }
            self.memories.housekeeping.set_agent_retention(
                {agent_id: days for agent_id, days in kept.items() if days is not None}
            )

    async def retire(self, edition: Revision, after: Revision) -> None:
        """Closes what `edition` keeps open and `after`, which followed it, does not use."""
        await self._supervision.stop(set(edition.servers) - set(after.servers))
        if ending := set(_collect_held(edition.built)) - set(_collect_held(after.built)):
            await self._tasks.wait_for_running(
                self._settings.request_timeout
            )  # an answer whose caller left may still be stored
            await self._close(ending)

    def _build_plain_agent(
        self,
        definition: AgentDefinition,
        written: ServerDefinitions,
        servers: McpServers,
        old: _BuiltAgent | None,
    ) -> tuple[BaseAgent, tuple[object, ...]]:
        """The agent without a memory, and what it is made of."""
        version = compute_version(definition, written)
        connections = {
            label: servers[label] for label in definition.allowed_mcp_servers if label in servers
        }
        of = (version, definition, *connections.values())
        if old is not None and old.plain_key == of:
            return old.plain, of
        tools = (
            self._plugins.tools[name]
            for name in definition.allowed_regular_tools
            if name not in LEGACY_TOOLS
        )
        sources = [
            _build_source(connection, definition.allowed_mcp_servers[label])
            for label, connection in connections.items()
        ]
        available = AvailableTools(
            tools,
            sources,
            default_timeout=self._settings.tool_execution_timeout,
            toolset=self._toolset,
        )
        provider = _select_provider(definition, self._providers)
        return self._plugins.agents[definition.type](
            definition, AgentParts(provider, available, self._pending, version)
        ), of

    async def _build_agent(
        self,
        definition: AgentDefinition,
        plain: Mapping[str, tuple[BaseAgent, tuple[object, ...]]],
        old: _BuiltAgent | None,
    ) -> _BuiltAgent:
        agent, plain_of = plain[definition.agent_id]
        memory = definition.memory
        if memory is None:
            return _BuiltAgent(agent, plain_of, agent, ())
        helper, _ = plain[memory.compression.agent or definition.agent_id]
        of = (agent, helper)
        if old is not None and old.agent_key == of:
            return old
        if memory.backend == BUILT_IN:
            assert self.memories is not None
            own = self.memories.build_memory(
                memory, _build_summarizer(helper, memory), self._live.is_live
            )
            return _BuiltAgent(
                agent,
                plain_of,
                MemoryAgent(agent, self._trace_memory(own), self._live, self.memories.tasks),
                of,
            )
        setup = MemorySetup(self._settings, self._environment, definition)
        held = ContextHolder(self._plugins.memories[memory.backend].open(setup))
        opened = await held.wait_until_open()
        self._held.add(held)
        return _BuiltAgent(
            agent,
            plain_of,
            MemoryAgent(agent, self._trace_memory(opened), self._live, self._tasks),
            of,
            held,
        )

    def _trace_agent(self, agent: BaseAgent) -> BaseAgent:
        return agent if self._tracing is None else TracedAgent(agent, self._tracing)

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


def _collect_held(made: Mapping[str, _BuiltAgent]) -> list[ContextHolder[Memory]]:
    return [each.held for each in made.values() if each.held is not None]


def _select_provider(definition: AgentDefinition, providers: Mapping[str, Provider]) -> Provider:
    """The agent's provider, with those to fall back to; what is the same as one before it is left
    out."""
    own = FailoverCandidate(providers[definition.provider], definition.model or "")
    others = dict.fromkeys(
        FailoverCandidate(providers[other.provider], other.model or "")
        for other in definition.fallback
    )
    others.pop(own, None)
    return (
        FallbackProvider(definition.agent_id, own.provider, tuple(others))
        if others
        else own.provider
    )


def _build_summarizer(agent: BaseAgent, memory: MemoryDefinition) -> Summarizer:
    """Makes summaries as `agent` is asked, or with the model that the memory's definition names."""
    name = memory.compression.model

    async def resolve_model() -> str:
        return name or await agent.model()

    return Summarizer(
        agent.parts.provider,
        resolve_model,
        name or agent.definition.model,
        agent.definition.model_settings,
    )


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
