"""The .env file that init writes, and the variables that it leaves to others."""

import json
import re

from ai_agent_service.config.env_template import GROUPS, OTHER_VARIABLES, render_env_file
from ai_agent_service.config.json_files import read_json
from ai_agent_service.config.locations import STARTER_FOLDER
from ai_agent_service.config.settings import Settings
from tests.support.processes import ROOT


def test_the_variables_of_others_are_those_that_the_starter_set_names() -> None:
    named = set(
        re.findall(r"\$\{(\w+)\}", json.dumps(read_json(STARTER_FOLDER / "mcp.json"), default=str))
    )
    assert named == OTHER_VARIABLES["What the MCP servers of mcp.json need"].keys()


def test_the_file_of_settings_is_what_the_settings_say() -> None:
    assert GROUPS.keys() <= Settings.model_fields.keys()
    assert (ROOT / ".env.example").read_text(encoding="utf-8") == render_env_file()
