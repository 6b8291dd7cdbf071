"""The composition root: settings and configuration in, a running service out; the only file that
knows all concrete classes."""

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from contextvars import Context
from datetime import UTC, datetime

import msgspec

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.agents.catalog import Catalog, build_unknown_agent_error
from ai_agent_service.agents.chat_tasks import ChatTaskAgent, Task
from ai_agent_service.agents.pending_steps import PendingSteps
from ai_agent_service.auth.principal import Principal, User
from ai_agent_service.config.agent_definition import AUTO, PROVIDER_ALIASES
from ai_agent_service.config.locations import locate_files
from ai_agent_service.core.context import ANONYMOUS, RunContext
from ai_agent_service.core.errors import (
    ConfigError,
    Fault,
    NotFoundError,
    ShuttingDownError,
)
from ai_agent_service.core.ids import generate_id
from ai_agent_service.core.redaction import find_secrets
from ai_agent_service.core.tasks import Tasks
from ai_agent_service.core.turn import Turn
from ai_agent_service.limits.limiter import Limiter
from ai_agent_service.mcp.supervisor import McpServers
from ai_agent_service.memory.base import Conversations
from ai_agent_service.memory.opening import Memories
from ai_agent_service.observability.logging import add_secrets
from ai_agent_service.providers.base import ApiChooser, Provider
from ai_agent_service.providers.breaker import CircuitBreakers
from ai_agent_service.providers.http import HttpClient
from ai_agent_service.runs.admission import RunAdmission
from ai_agent_service.runs.run import Run, RunServices
from ai_agent_service.runs.slots import RunSlots
from ai_agent_service.runtime.builder import Builder
from ai_agent_service.runtime.configuration import Configuration, load_configuration
from ai_agent_service.runtime.drain import DrainTracker
from ai_agent_service.runtime.revision import Changes, Revision, compare_revisions
from ai_agent_service.runtime.shutdown import ShutdownState

logger = logging.getLogger(__name__)

REVISION_GRACE_SECONDS = 5.0
"""How much longer than REQUEST_TIMEOUT what an revision keeps open stays so: a run is told that its
time is up, and then ends."""


class ServiceParts(msgspec.Struct, frozen=True):
    """What `open_service` opens for a service, and closes after it.

    `auto` names the provider of agents that leave the choice to the service. `providers` are all of
    them, by name and without wrappers; `task_provider` answers tasks beside the chat, by default
    the agent's own provider does. `shutdown` is set by what serves the service.
    """

    http: HttpClient
    breakers: CircuitBreakers
    pending: PendingSteps
    runs: RunServices
    auto: str
    providers: Mapping[str, Provider]
    task_provider: Provider | None
    shutdown: ShutdownState


class RejectedReload(msgspec.Struct, frozen=True):
    """A reload that changed nothing: when it was tried, and the first of its faults."""

    at: datetime
    fault: str


class Service:
    """The running service: its agents, which a later revision may replace, and its runs."""

    def __init__(
        self,
        configuration: Configuration,
        builder: Builder,
        revision: Revision,
        parts: ServiceParts,
    ) -> None:
        self.settings = configuration.settings
        self.http = parts.http
        self.pending = parts.pending
        self.auto_provider = parts.auto
        self.breakers = parts.breakers
        self.shutdown = parts.shutdown
        self.slots = RunSlots(self.settings.max_concurrent_requests)
        self.revision = revision
        self.drain_tracker = DrainTracker()
        """The requests of this revision: it closes only after the last of them."""

        self.secrets = find_secrets(configuration.environment)
        """What no message may show: the secrets of the start and of each reload."""

        self.rejected_reload: RejectedReload | None = None
        """The last reload, if it was rejected."""

        self._parts = parts
        self._configuration = configuration
        self._builder = builder
        self._reloading = asyncio.Lock()
        self._work = Tasks(grace=0)

    @property
    def catalog(self) -> Catalog:
        """The agents that there are now."""
        return self.revision.catalog

    @property
    def servers(self) -> McpServers:
        """The MCP servers that there are now."""
        return self.revision.servers

    @property
    def memories(self) -> Memories | None:
        """The database of conversations; None as long as no agent has remembered in it."""
        return self._builder.memories

    def find_agent(self, agent_id: str, caller: Principal) -> BaseAgent:
        """The agent of this id, for `caller` to use; raises NotFoundError, the same if there is
        none as if it is not for them."""
        agent = self.find_visible_agent(agent_id, caller)
        access = agent.definition.access
        if access.groups or access.roles:
            user = caller.user or User("")
            if (access.groups and user.groups.isdisjoint(access.groups)) or (
                access.roles and user.roles.isdisjoint(access.roles)
            ):
                raise build_unknown_agent_error()
        return agent

    def find_visible_agent(self, agent_id: str, caller: Principal) -> BaseAgent:
        """The agent of this id, if the caller's key is for it; raises NotFoundError."""
        if not caller.key.can_use(agent_id):
            raise build_unknown_agent_error()
        return self.catalog.get(agent_id)

    def list_agents(self, caller: Principal) -> list[BaseAgent]:
        """The agents that the caller's key is for. Who may use them is asked when they are called:
        clients share this among users."""
        return [agent for agent in self.catalog if caller.key.can_use(agent.agent_id)]

    @property
    def all_providers(self) -> Mapping[str, Provider]:
        """All that there are, by their names and with nothing around them, whether an agent uses
        them or not."""
        return self._parts.providers

    @property
    def providers(self) -> Mapping[str, Provider]:
        """Those that an agent uses or falls back to, or TASK_PROVIDER names, by their names and
        with nothing around them."""
        definitions = [agent.definition for agent in self.catalog]
        named = {definition.provider for definition in definitions}
        named |= {other.provider for definition in definitions for other in definition.fallback}
        if (task := self.settings.task_provider) is not None:
            named.add(PROVIDER_ALIASES.get(task, task))
        used = [
            self._parts.providers[self.auto_provider if name == AUTO else name] for name in named
        ]
        return {provider.name: provider for provider in used}

    def describe_api(self, agent: BaseAgent, model: str) -> str | None:
        """Return the API through which the agent's `model` is asked, such as `auto: responses`;
        None for a provider with one API or without its credentials."""
        provider = self.providers.get(agent.parts.provider.name)
        if provider is None or provider.missing or not isinstance(provider, ApiChooser):
            return None
        return provider.describe_api(model, agent.definition.api)

    def build_task_agent(self, agent: BaseAgent, task: Task) -> BaseAgent:
        """What answers `task` for `agent`: TASK_PROVIDER and TASK_MODEL where they are set, else
        the agent's own."""
        provider = self._parts.task_provider or agent.parts.provider
        return ChatTaskAgent(agent, task, provider, self.settings.task_model)

    @property
    def conversations(self) -> Conversations:
        """What is remembered; raises NotFoundError where no agent has a memory."""
        if self.memories is None:
            raise NotFoundError("No agent here has a memory.", code="no_memory")
        return self.memories.conversations

    async def reload(self) -> Changes:
        """Reads agents, prompts and MCP servers anew, with the plug-ins and the settings that there
        are, and has them take effect at once.

        Whoever has begun goes on with what they began with; it is closed once they have ended.
        Raises ConfigError, and ShuttingDownError for a service that is told to stop; then nothing
        has changed.
        """
        # In a task of its own, which a caller that leaves does not stop, and without the caller's
        # request id in all that is begun.
        found = await asyncio.shield(Context().run(self._work.start, self._load_revision()))
        if isinstance(found, ConfigError):
            self.rejected_reload = RejectedReload(datetime.now(UTC), str(found.faults[0]))
            for fault in found.faults:
                logger.error("config.rejected", extra={"fault": str(fault)})
            raise found
        if isinstance(found, ShuttingDownError):
            raise found
        self.rejected_reload = None
        lists = {name: ",".join(names) for name, names in found.lists.items() if names}
        logger.info("config.reloaded" if lists else "config.unchanged", extra=lists)
        return found

    async def _load_revision(self) -> Changes | ConfigError | ShuttingDownError:
        async with self._reloading:
            try:
                # Files that vanish are a fault of the reload; none are taken in their place.
                files = locate_files(
                    self.settings, may_be_starter=self._configuration.files.is_starter
                )
                configuration = await asyncio.to_thread(
                    load_configuration, self.settings, self._configuration.plugins, files=files
                )
                add_secrets(secrets := find_secrets(configuration.environment))
                self.secrets = tuple(sorted({*self.secrets, *secrets}, key=len, reverse=True))
                if (tracing := self._configuration.tracing) is not None:
                    tracing.add_secrets(secrets)
                if self.shutdown.has_begun:
                    return ShuttingDownError("The service is being stopped.")
                revision = await self._builder.build(configuration.snapshot, self.revision)
            except ConfigError as error:
                return error
            except OSError as error:
                problem = f"it cannot be used ({error.strerror})"
                file = str(error.filename or self.settings.agent_config_file)
                return ConfigError(
                    [
                        Fault(
                            file=file,
                            problem=problem,
                            remedy="Give the service the right to use it",
                        )
                    ]
                )
            before, over = self.revision, self.drain_tracker
            self.revision, self.drain_tracker = revision, over.start_next()
            self._builder.activate(revision)
            for warning in configuration.warnings:
                if warning not in self._configuration.warnings:
                    logger.warning(warning)
            self._configuration = configuration
            self._work.run(self._retire_revision(before, revision, over))
            return compare_revisions(before, revision)

    async def _retire_revision(
        self, revision: Revision, after: Revision, tracker: DrainTracker
    ) -> None:
        """Closes what `revision` alone used, once the requests of `tracker` and before have ended,
        or must have."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.request_timeout + REVISION_GRACE_SECONDS):
                await tracker.wait_until_drained()
        await self._builder.retire(revision, after)

    async def stop(self) -> None:
        """Ends what reloads have begun; there will be no other."""
        self.shutdown.has_begun = True
        await self._work.finish()

    def create_run(
        self,
        agent: BaseAgent,
        turn: Turn,
        caller: Principal,
        *,
        user: str | None = None,
        request_id: str = "",
        task: Task | None = None,
        limiter: Limiter | None = None,
    ) -> Run:
        """Return a new run that begins now and ends within REQUEST_TIMEOUT.

        `user` counts where users are not verified. Without a `limiter` the run is a local one: it
        needs no slot and has neither limits nor a line in the audit log.
        """
        context = RunContext(
            run_id=generate_id("run_"),
            agent_id=agent.agent_id,
            deadline=time.monotonic() + self.settings.request_timeout,
            request_id=request_id,
            key_id=caller.key.key_id,
            tenant=caller.key.tenant,
            user=caller.user.user_id if caller.user is not None else user or ANONYMOUS,
            session=turn.session,
            task=task,
            agent_version=agent.version,
            caller=caller.label,
        )
        admission = None if limiter is None else RunAdmission(caller, limiter, self.slots)
        return Run(agent, turn, context, self._parts.runs, admission)
