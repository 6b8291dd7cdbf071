"""Tells one content of an agent's definition from another."""

from typing import Any

from ai_agent_service.config.agent_definition import AgentDefinition
from ai_agent_service.config.json_files import hash_json
from ai_agent_service.config.read_servers import ServerDefinitions

VERSION_LENGTH = 12
_PROMPT_FILE_FIELDS: Any = {
    "system_prompt_file": True,
    "resource_config": {"memory": {"compression": {"prompt_file": True}}},
}
"""What is said by the texts of the prompts."""


def compute_version(agent: AgentDefinition, servers: ServerDefinitions) -> str:
    """Twelve hexadecimal digits of a digest of all that is written of `agent`: its definition, the
    texts of its prompts, and the entries of the MCP servers that it may use as they stand in
    mcp.json, without credentials.

    It is the same after every start and on every machine. Fields that have their default do not
    count.
    """
    definition = agent.model_dump(mode="json", exclude_defaults=True, exclude=_PROMPT_FILE_FIELDS)
    used = {
        each.server_label: each.written
        for each in servers.definitions
        if each.server_label in agent.allowed_mcp_servers
    }
    return hash_json([definition, used])[:VERSION_LENGTH]
