"""Reads and validates the whole configuration."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Self

import msgspec

from ai_agent_service.auth.identity.settings import find_identity_faults, find_identity_warnings
from ai_agent_service.auth.keys.ring import find_key_faults
from ai_agent_service.config.agent_definition import AUTO, PROVIDER_ALIASES, AgentDefinition
from ai_agent_service.config.json_files import load_environment, suggest_name
from ai_agent_service.config.locations import ConfigFiles, locate_files
from ai_agent_service.config.memory_definition import BUILT_IN
from ai_agent_service.config.read_agents import KnownNames, collect_agent_warnings, read_agents
from ai_agent_service.config.read_servers import ServerDefinitions, read_servers
from ai_agent_service.config.settings import Settings, read_settings
from ai_agent_service.config.tls import check_tls, collect_tls_warnings
from ai_agent_service.core.errors import ConfigError, Fault
from ai_agent_service.observability.tracing import Tracing, build_tracing, check_tracing
from ai_agent_service.providers.openai_compatible import OpenAICompatible
from ai_agent_service.runtime.plugin_loader import Plugins, load_plugins
from ai_agent_service.runtime.revision import ConfigSnapshot
from ai_agent_service.storage.opening import build_cipher, build_database_url
from ai_agent_service.storage.url import DatabaseUrl, parse_database_url


class Configuration(msgspec.Struct, frozen=True):
    """All that the operator wrote, read and found without fault; `warnings` are sentences that name
    what they are about."""

    settings: Settings
    files: ConfigFiles
    environment: Mapping[str, str]
    plugins: Plugins
    agents: tuple[AgentDefinition, ...]
    servers: ServerDefinitions
    warnings: tuple[str, ...]
    created: int
    tracing: Tracing | None = None
    """Traces, where they are switched on."""

    @property
    def snapshot(self) -> ConfigSnapshot:
        """What of it makes an edition."""
        return ConfigSnapshot(self.agents, self.servers, self.environment, self.created)

    def restrict_servers(self, agent_ids: Collection[str]) -> Self:
        """The same with no other agents' MCP servers, which need not be started for these."""
        labels = {
            label
            for agent in self.agents
            if agent.agent_id in agent_ids
            for label in agent.allowed_mcp_servers
        }
        kept = tuple(
            definition
            for definition in self.servers.definitions
            if definition.server_label in labels
        )
        return msgspec.structs.replace(
            self, servers=msgspec.structs.replace(self.servers, definitions=kept)
        )

    def isolate(self, folder: Path) -> Self:
        """The same with a database of its own in `folder`, and without traces: for what is asked
        here is nobody's traffic."""
        own = {
            "data_dir": folder,
            "database_url": None,
            "database_replica_url": None,
            "postgres_user": None,
            "database_migrate": True,
        }
        return msgspec.structs.replace(
            self, settings=self.settings.model_copy(update=own), tracing=None, warnings=()
        )

    @property
    def database(self) -> str | None:
        """Where conversations are kept, without a password; None if no agent remembers."""
        return (
            build_database_url(self.settings).redacted
            if any(agent.memory and agent.memory.backend == BUILT_IN for agent in self.agents)
            else None
        )


def load(**overrides: object) -> Configuration:
    """The configuration of this process; `overrides` are settings by field name.

    Raises ConfigError with all faults of the environment, the files and the plug-ins.
    """
    settings, faults = read_settings(**overrides)
    plugins, found = load_plugins(settings.plugins_dir)
    return load_configuration(settings, plugins, [*faults, *found])


def load_configuration(
    settings: Settings,
    plugins: Plugins,
    faults: Iterable[Fault] = (),
    *,
    files: ConfigFiles | None = None,
) -> Configuration:
    """Reads and checks `files`, by default those of `settings`; raises ConfigError with `faults`
    and all those found."""
    found = list(faults)
    files = files or locate_files(settings)
    environment = load_environment()
    known = KnownNames(
        plugins.agents.keys(),
        plugins.providers.keys(),
        plugins.tools.keys(),
        (BUILT_IN, *plugins.memories),
    )
    agents, more = read_agents(files.agents, files.prompts, environment, known)
    found += more
    servers, more = read_servers(files.servers, environment)
    found += more
    for field, name, known_names in (
        ("DEFAULT_PROVIDER", settings.default_provider, plugins.providers.keys()),
        ("TASK_PROVIDER", settings.task_provider, {*plugins.providers, AUTO}),
    ):
        if name is not None and PROVIDER_ALIASES.get(name, name) not in known_names:
            found.append(
                Fault(
                    file="environment",
                    field=field,
                    problem=f"{name!r} is not a provider",
                    remedy=suggest_name(name, known_names),
                )
            )
    found += [
        *find_key_faults(settings),
        *find_identity_faults(settings),
        *check_tls(settings),
        *_check_memory(settings, agents),
        *_check_apis(settings, agents, plugins),
    ]
    found += check_tracing(environment)
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
            *collect_tls_warnings(settings),
            *find_identity_warnings(settings),
            *_check_access(settings, agents),
            *(
                f"agent {agent.agent_id}: {warning}"
                for agent in agents
                for warning in collect_agent_warnings(agent, servers.labels)
            ),
        ),
        int(files.agents.stat().st_mtime),
        build_tracing(
            environment,
            name=settings.service_name,
            version=settings.service_version,
            flush_seconds=settings.shutdown_timeout,
        ),
    )


def _check_access(settings: Settings, agents: Iterable[AgentDefinition]) -> list[str]:
    """Agents that are for nobody."""
    if settings.identity_mode != "none":
        return []
    limited = [agent.agent_id for agent in agents if agent.access.groups or agent.access.roles]
    return [
        f"agent {agent_id}: access is for groups or roles, which nobody has, as IDENTITY_MODE is"
        " none"
        for agent_id in limited
    ]


def _check_apis(
    settings: Settings, agents: Iterable[AgentDefinition], plugins: Plugins
) -> list[Fault]:
    """Return a fault for each agent that wants the Responses API of a provider without one."""
    able = [name for name, factory in plugins.providers.items() if _has_responses(factory)]
    asked = [
        (agent.agent_id, field, name)
        for agent in agents
        for field, name, api in (
            ("api", agent.provider, agent.api),
            *(
                (f"fallback.{number}.api", other.provider, other.api)
                for number, other in enumerate(agent.fallback)
            ),
        )
        if api == "responses"
    ]
    return [
        Fault(
            file=str(settings.agent_config_file),
            where=f"agent {agent_id!r}",
            field=field,
            problem=f"the provider {name!r} does not support the Responses API",
            remedy=f"Set provider to one that does ({', '.join(able)}), or leave api out",
        )
        for agent_id, field, name in asked
        if name not in able
    ]


def _has_responses(factory: object) -> bool:
    if isinstance(factory, type) and issubclass(factory, OpenAICompatible):
        return factory.has_responses
    return False


def _check_memory(settings: Settings, agents: Iterable[AgentDefinition]) -> list[Fault]:
    """What is wrong with where and how conversations are kept."""
    found = []
    replica = settings.database_replica_url
    checks: tuple[tuple[str, Callable[[], object], str], ...] = (
        (
            "DATABASE_URL",
            lambda: build_database_url(settings),
            "Correct it, or unset it for an SQLite file",
        ),
        (
            "DATABASE_REPLICA_URL",
            lambda: replica and _parse_replica_url(replica.get_secret_value()),
            "Correct it, or unset it",
        ),
        (
            "MEMORY_ENCRYPTION_KEYS",
            lambda: build_cipher(settings),
            "Make a key with: openssl rand -base64 32",
        ),
    )
    for field, check, remedy in checks:
        try:
            check()
        except ValueError as error:
            found.append(
                Fault(
                    file="environment", field=field, problem=str(error).rstrip("."), remedy=remedy
                )
            )
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
                    remedy=suggest_name(helper, names),
                )
            )
    return found


def _parse_replica_url(url: str) -> DatabaseUrl:
    address = parse_database_url(url)
    if address.kind != "postgresql":
        raise ValueError("only a PostgreSQL database has a replica")
    return address
