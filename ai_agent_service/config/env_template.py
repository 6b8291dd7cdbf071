"""Writes the settings as a file to edit: .env.example, and the .env of `ai-agent-service init`."""

from collections.abc import Iterator

from ai_agent_service.config.definition import read_descriptions
from ai_agent_service.config.settings import Settings

HEADER = """\
# Settings: uncomment what you change. They are read from .env in the folder that the service is
# started in; the environment wins over it.
# Any further variable may stand there too: ${NAME} in agent_config.json and mcp.json takes it.
"""

GROUPS = {
    "service_name": "The service",
    "agent_config_file": "Where the configuration lies",
    "default_provider": "Providers: set what you use",
    "data_dir": "Memory",
    "api_keys": "Who may do what",
    "request_timeout": "Limits",
    "evaluation_output_dir": "Evaluation",
}
"""What the settings from each of these on are about."""

OTHER_VARIABLES = {
    "What the MCP servers of mcp.json need": {
        "DEEPWIKI_API_KEY": "The key of the MCP server deepwiki; unset, it is off.",
        "GITHUB_TOKEN": "The token of the MCP server github; unset, it is off.",
    },
    "What else is read": {
        "AAS_API_KEY": "The key that ai-agent-service reload sends, with the scope admin.",
        "OTEL_EXPORTER_OTLP_ENDPOINT": (
            "Where traces go, such as http://127.0.0.1:4318; needs the extra otel. Unset, there are"
            " none."
        ),
    },
}
"""Variables that are no settings of ours, and what they are for."""


def render_env_file() -> str:
    """Every variable with what it is for and its default, commented out."""
    return HEADER + "".join(_render_lines())


def _render_lines() -> Iterator[str]:
    descriptions = read_descriptions(Settings)
    for name, field in Settings.model_fields.items():
        if name in GROUPS:
            yield _format_title(GROUPS[name])
        is_unset = field.default in (None, ()) or name == "service_version"
        default = "" if is_unset else str(field.default)
        yield _format_entry(name.upper(), descriptions[name], default)
    for title, variables in OTHER_VARIABLES.items():
        yield _format_title(title)
        for name, description in variables.items():
            yield _format_entry(name, description, "")


def _format_title(text: str) -> str:
    return f"\n#### {text} ####\n"


def _format_entry(name: str, description: str, value: str) -> str:
    return f"\n# {description}\n# {name}={value}\n"
