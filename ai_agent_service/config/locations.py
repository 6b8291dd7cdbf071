"""Where the files of the configuration lie: where the settings say, or in the starter set that the
program brings along."""

from pathlib import Path

import msgspec

from ai_agent_service.config.settings import Settings

STARTER_FOLDER = Path(__file__).parents[1] / "starter"
"""The agents and MCP servers of a folder that has none: what `ai-agent-service init` writes."""


class ConfigFiles(msgspec.Struct, frozen=True):
    """The two files and the folder of prompts; `is_starter` where they are those of the program."""

    agents: Path
    servers: Path
    prompts: Path
    is_starter: bool = False


def locate_files(settings: Settings, *, may_be_starter: bool = True) -> ConfigFiles:
    """Those that `settings` name; but the starter set where none of them is named on purpose and
    none is there, if `may_be_starter`.

    Where only some are there, those that are missing stay missing, for then somebody meant them to
    be there.
    """
    named = ConfigFiles(settings.agent_config_file, settings.mcp_config_file, settings.prompts_dir)
    if not may_be_starter or settings.model_fields_set & {
        "agent_config_file",
        "mcp_config_file",
        "prompts_dir",
    }:
        return named
    if any(_is_there(path) for path in (named.agents, named.servers, named.prompts)):
        return named
    return ConfigFiles(
        STARTER_FOLDER / "agent_config.json",
        STARTER_FOLDER / "mcp.json",
        STARTER_FOLDER / "prompts",
        is_starter=True,
    )


def _is_there(path: Path) -> bool:
    """Whether something has this name; what cannot be looked at counts, so that it is read and its
    fault told."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True
