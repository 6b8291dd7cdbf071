"""Tells one content of an agent's definition from another."""

from typing import Any

from ai_agent_service.config.agent_definition import AgentDefinition
from ai_agent_service.config.json_files import digest_of
from ai_agent_service.config.read_servers import Servers

LENGTH = 12
_NAMES_OF_PROMPTS: Any = {"system_prompt_file": True, "resource_config": {"memory": {"compression": {"prompt_file": True}}}}
"""What is said by the texts of the prompts."""


def version_of(agent: AgentDefinition, servers: Servers) -> str:
    """Twelve hexadecimal digits of a digest of all that is written of `agent`: its definition, the texts of its prompts, and the entries
    of the MCP servers that it may use as they stand in mcp.json, without credentials.

    It is the same after every start and on every machine. Fields that have their default do not count.
    """
    definition = agent.model_dump(mode="json", exclude_defaults=True, exclude=_NAMES_OF_PROMPTS)
    used = {each.server_label: each.written for each in servers.definitions if each.server_label in agent.allowed_mcp_servers}
    return digest_of([definition, used])[:LENGTH]
