"""A revision of the configuration in effect, and what changes between two."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.agents.catalog import Catalog
from ai_agent_service.config.agent_definition import AgentDefinition
from ai_agent_service.config.read_servers import ServerDefinitions
from ai_agent_service.core.tasks import ContextHolder
from ai_agent_service.mcp.supervisor import McpServers
from ai_agent_service.memory.base import Memory


class ConfigSnapshot(msgspec.Struct, frozen=True):
    """What the files say. `created` is when they said so, in Unix seconds."""

    agents: Sequence[AgentDefinition]
    servers: ServerDefinitions
    environment: Mapping[str, str]
    created: int


class BuiltAgent(msgspec.Struct, frozen=True):
    """An agent, the key of what it was built from, and the memory that it keeps open.

    A later revision takes the agent over if its key is the same.
    """

    agent: BaseAgent
    key: tuple[object, ...]
    held: ContextHolder[Memory] | None = None


class Revision(msgspec.Struct, frozen=True):
    """The agents and the servers of one reading of the files. Whoever took an agent from it may run
    it until it is ended."""

    catalog: Catalog
    servers: McpServers
    snapshot: ConfigSnapshot
    built: Mapping[str, BuiltAgent]


class Changes(msgspec.Struct, frozen=True):
    """How one revision differs from the one before: ids of agents and labels of servers. `agents`
    are the versions of all agents now."""

    agents: dict[str, str]
    added_agents: list[str]
    changed_agents: list[str]
    removed_agents: list[str]
    added_servers: list[str]
    changed_servers: list[str]
    removed_servers: list[str]

    def __bool__(self) -> bool:
        return any(self.lists.values())

    @property
    def lists(self) -> dict[str, list[str]]:
        """The lists by their names, an agent of the later revision as `id@version`."""
        return {
            name: [f"{each}@{self.agents[each]}" if each in self.agents else each for each in ids]
            for name, ids in msgspec.structs.asdict(self).items()
            if name != "agents"
        }


def compare_revisions(before: Revision, after: Revision) -> Changes:
    """How `after` differs from `before`."""
    agents = {agent.agent_id: agent.version for agent in after.catalog}
    added, changed, removed = _find_differences(_index_agents(before), _index_agents(after))
    return Changes(
        agents,
        added,
        changed,
        removed,
        *_find_differences(_index_servers(before), _index_servers(after)),
    )


def _index_agents(revision: Revision) -> dict[str, object]:
    return {agent.agent_id: (agent.version, agent.definition) for agent in revision.catalog}


def _index_servers(revision: Revision) -> dict[str, object]:
    return {each.server_label: each for each in revision.snapshot.servers.definitions}


def _find_differences(
    before: Mapping[str, object], after: Mapping[str, object]
) -> tuple[list[str], list[str], list[str]]:
    """The names that were added, whose values changed, and that were removed."""
    changed = [name for name, value in after.items() if name in before and before[name] != value]
    return _exclude_names(after, before), changed, _exclude_names(before, after)


def _exclude_names(names: Iterable[str], others: Collection[str]) -> list[str]:
    return [name for name in names if name not in others]
