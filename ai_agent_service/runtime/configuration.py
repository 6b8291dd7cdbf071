"""Reads and validates the whole configuration."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Self

import msgspec

from ai_agent_service.auth.identity.settings import identity_faults, identity_warnings
from ai_agent_service.auth.keys.ring import key_faults
from ai_agent_service.config.agent_definition import AUTO, PROVIDER_ALIASES, AgentDefinition
from ai_agent_service.config.json_files import load_environment, nearest
from ai_agent_service.config.locations import Files, files_of
from ai_agent_service.config.memory_definition import BUILT_IN
from ai_agent_service.config.read_agents import KnownNames, read_agents, warnings_about
from ai_agent_service.config.read_servers import Servers, read_servers
from ai_agent_service.config.settings import Settings, read_settings
from ai_agent_service.config.tls import tls_faults, tls_warnings
from ai_agent_service.core.errors import ConfigError, Fault
from ai_agent_service.observability.tracing import Tracing, tracing_faults, tracing_of
from ai_agent_service.runtime.plugin_loader import Plugins, load_plugins
from ai_agent_service.runtime.revision import Written
from ai_agent_service.storage.opening import address_of, cipher_of
from ai_agent_service.storage.url import Address, parse_address


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
