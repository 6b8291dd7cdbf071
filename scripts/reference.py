"""Writes docs/reference.md out of the code: every setting, every field of the files, every command,
route and error: `make reference`."""

import ast
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import BaseModel

from ai_agent_service import __version__
from ai_agent_service.api.http.access import ScopeRequirement
from ai_agent_service.api.http.errors import FRAMEWORK_ERRORS
from ai_agent_service.cli.main import cli
from ai_agent_service.config.agent_definition import (
    AccessDefinition,
    AgentDefinition,
    AllowedTools,
    FallbackDefinition,
)
from ai_agent_service.config.definition import read_descriptions
from ai_agent_service.config.display_definition import DisplayDefinition, SuggestionPrompt
from ai_agent_service.config.memory_definition import CompressionDefinition, MemoryDefinition
from ai_agent_service.config.server_definition import ServerDefinition
from ai_agent_service.config.settings import Settings, load_settings
from ai_agent_service.core import bounds
from ai_agent_service.core.errors import RequestError, ServiceError, UpstreamError
from ai_agent_service.runtime.configuration import load_configuration
from ai_agent_service.runtime.plugin_loader import load_plugins
from ai_agent_service.server.application import create_app

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference.md"
WIDTH = 110
"""Characters in a line of a command's help."""

AGENTS: Mapping[str, tuple[str, type[BaseModel]]] = {
    "An agent": ("One object of the list in `agent_config.json`.", AgentDefinition),
    "fallback": ("An object of the agent's `fallback`.", FallbackDefinition),
    "allowed_mcp_servers": ("The value of each label in `allowed_mcp_servers`.", AllowedTools),
    "access": (
        (
            "The agent's `access`. Only [verified users](security.md#who-the-user-is) have groups"
            " and roles."
        ),
        AccessDefinition,
    ),
    "display": ("The agent's `display`.", DisplayDefinition),
    "suggestion_prompts": ("An object of `suggestion_prompts` in `display`.", SuggestionPrompt),
    "resource_config": ("`memory` in the agent's `resource_config`.", MemoryDefinition),
    "compression": ("`compression` in `memory`.", CompressionDefinition),
}
"""What is told of agent_config.json, by headings, which are named as the field that leads to
them."""

OWN = {"missing", "problem", "secrets", "credentials", "written", "prompt"}
"""Fields that are filled in when the files are read, and that nobody writes."""

OTHERS = {
    "AAS_API_KEY": "The key that `ai-agent-service reload` and `make webui` call the service with.",
    "GITHUB_TOKEN, DEEPWIKI_API_KEY": (
        "Taken by `${NAME}` in the shipped `mcp.json`, as any variable may be; a server whose"
        " variable is not set is off."
    ),
    "HTTP_PROXY, HTTPS_PROXY, NO_PROXY": (
        "The proxy by which providers and MCP servers are reached."
    ),
    "OTEL_EXPORTER_OTLP_ENDPOINT": (
        "Switches [traces](operations.md#traces) on, where the extra `otel` is installed; the other"
        " standard variables of OpenTelemetry work as well."
    ),
    "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": (
        "`true`: what is said stands in the traces."
    ),
    "NO_COLOR": "Log lines on a terminal without colours.",
}
"""Variables that are no settings: who reads them and what for."""

ABSTRACT = (ServiceError, RequestError, UpstreamError)
"""Errors that are always raised as one of their branches."""


def page() -> str:
    """The whole page."""
    parts = [
        "# Reference",
        (
            "All that can be set, called and answered, written out of the code by `make reference`."
            " What it is good for is told by\n[Configuration](configuration.md), [MCP"
            " servers](mcp.md), [Memory](memory.md), [Security](security.md) and [The"
            " API](api.md).\nEvery metric is in [Operations](operations.md#metrics), every field of"
            " a case in [Evaluation](evaluation.md#datasets)."
        ),
        "## Environment",
        (
            "In the environment, which wins, or in `.env`. A variable that is empty counts as"
            " unset. Seconds may have a fraction."
        ),
        *_settings(),
        "### Other variables",
        _table(("variable", "meaning"), ((_names(name), text) for name, text in OTHERS.items())),
        "Those of `make webui` are told in [Open WebUI](open-webui.md#on-this-machine).",
        "## agent_config.json",
        (
            "`${NAME}` in any string but a prompt, a description or a `display` takes the value of"
            " that variable. Unknown fields are faults."
        ),
        *_models(AGENTS),
        "## mcp.json",
        (
            "A list of objects, or an object whose `mcpServers` (or `servers`) maps labels to"
            " objects. `${NAME}` in any string but a label\ntakes the value of that variable."
        ),
        fields_of(ServerDefinition),
        "## Commands",
        (
            "They are in `.venv/bin` where the service is run out of its repository. Code 0: done;"
            " 1: it failed, or was found wanting; 2:\nwhat was given is wrong, and all of it is"
            " told."
        ),
        *_commands(cli, ["ai-agent-service"]),
        "## Routes",
        _table(("route", "what it does", "needs"), _routes()),
        "## Errors",
        (
            "In the shape of [OpenAI's errors](api.md). Where there are more exact codes, the one"
            " in the second column is told if none of\nthem fits."
        ),
        _table(
            ("status", "code", "more exact codes", "type", "retry", "meaning"), sorted(_errors())
        ),
        "## Limits",
        (
            "Limits of what comes in, which are not settings. Settings that limit are"
            " `MAX_REQUEST_BYTES`, `MAX_ANSWER_CHARACTERS`, `MAX_CONCURRENT_REQUESTS` and"
            " `LOG_QUEUE_LINES`, and `max_message_bytes` of an MCP server."
        ),
        _table(("limit", "value", "meaning"), _bounds()),
    ]
    return "\n\n".join(parts) + "\n"


def fields_of(model: type[BaseModel]) -> str:
    """The table of a model's fields; raises LookupError for one without a description."""
    schema = model.model_json_schema()
    kinds = dict.fromkeys(schema.get("required", ()), "required")
    meanings = read_descriptions(model)
    rows = (
        _row(name, meanings[name], field, kinds.get(name, "optional"))
        for name, field in schema["properties"].items()
        if name not in OWN
    )
    return _table(("field", "takes", "default", "meaning"), rows)


def _settings() -> Iterator[str]:
    """Each group of .env.example as a heading and a table."""
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    properties = Settings.model_json_schema()["properties"]
    meanings = read_descriptions(Settings)
    for heading, text in re.findall(
        r"^#### (.+) ####\n((?:(?!####).*\n?)*)", example, re.MULTILINE
    ):
        names = [
            name
            for each in re.findall(r"^# ([A-Z_]+)=", text, re.MULTILINE)
            if (name := each.lower()) in properties
        ]
        if names:
            yield f"### {heading}"
            rows = (
                _row(name.upper(), meanings[name], properties[name], "of the environment")
                for name in names
            )
            yield _table(("variable", "takes", "default", "meaning"), rows)


def _models(models: Mapping[str, tuple[str, type[BaseModel]]]) -> Iterator[str]:
    for heading, (about, model) in models.items():
        yield f"### {heading}"
        yield about
        yield fields_of(model)


def _row(name: str, meaning: str, field: dict[str, Any], kind: str) -> tuple[str, ...]:
    """The row of a field that is `required` or `optional` in a file, or `of the environment`;
    `field` is its JSON Schema."""
    if not meaning:
        raise LookupError(f"{name} has no description: write one where it is defined")
    takes = _takes(field, name)
    if kind == "of the environment":
        takes = takes.replace("a list of texts", "texts, with commas between")
    return f"`{name}`", takes, kind if kind == "required" else _default(field), meaning


def _default(field: dict[str, Any]) -> str:
    default = field.get("default")
    if default == __version__:
        return "the program's"
    if isinstance(default, dict) or default in (None, "", []):
        return ""
    return f"`{default}`" if isinstance(default, str) else f"`{json.dumps(default)}`"


def _takes(field: dict[str, Any], name: str) -> str:
    """In words what a field of this schema takes."""
    ways = [way for way in field.get("anyOf", [field]) if way.get("type") != "null"]
    return " or ".join(dict.fromkeys(_one_way(way, name) for way in ways))


def _one_way(way: dict[str, Any], name: str) -> str:
    if "enum" in way:
        return ", ".join(f"`{value}`" for value in way["enum"])
    if "$ref" in way:
        return f"[an object](#{name})"
    match way.get("type"):
        case "integer":
            return "a whole number" + _limits(way)
        case "number":
            return "a number" + _limits(way)
        case "boolean":
            return "`true`, `false`"
        case "array":
            at_most = f", {way['maxItems']} at most" if "maxItems" in way else ""
            return (
                f"a list of [objects](#{name})" if "$ref" in way["items"] else "a list of texts"
            ) + at_most
        case "object":
            inner = way.get("additionalProperties")
            return (
                f"an object of [objects](#{name})"
                if isinstance(inner, dict) and "$ref" in inner
                else "an object"
            )
        case _:
            pass
    if way.get("writeOnly"):
        return "a secret"
    if way.get("format") == "path":
        return "a path"
    return "a text" + (f" of {way['maxLength']:,} characters at most" if "maxLength" in way else "")


def _limits(way: dict[str, Any]) -> str:
    least = (
        f" from {way['minimum']:,}"
        if "minimum" in way
        else f" over {way['exclusiveMinimum']:,}"
        if "exclusiveMinimum" in way
        else ""
    )
    return least + (f" to {way['maximum']:,}" if "maximum" in way else "")


def _commands(
    command: click.Command, names: list[str], parent: click.Context | None = None
) -> Iterator[str]:
    """The help of each command that does something."""
    context = click.Context(
        command, info_name=names[-1], parent=parent, max_content_width=WIDTH, terminal_width=WIDTH
    )
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _commands(inner, [*names, name], context)
        return
    yield f"### {' '.join(names[1:])}"
    yield f"```text\n{command.get_help(context)}\n```"


def _routes() -> Iterator[tuple[str, ...]]:
    plugins, _ = load_plugins()
    settings = load_settings(
        agent_config_file=ROOT / "agent_config.json",
        mcp_config_file=ROOT / "mcp.json",
        prompts_dir=ROOT / "prompts",
    )
    for found in iter_route_contexts(create_app(load_configuration(settings, plugins)).routes):
        route = found.original_route
        assert isinstance(route, APIRoute)
        allowed = [
            call.call
            for call in route.dependant.dependencies
            if isinstance(call.call, ScopeRequirement)
        ]
        scopes = [f"the scope `{each.scope}`" if each.scope else "a key" for each in allowed]
        about = route.summary or (route.description or "").partition("\n")[0].rstrip(".")
        for method in sorted((route.methods or set()) - {"HEAD"}):
            yield f"`{method} {route.path_format}`", about, scopes[0] if scopes else "nothing"


def _errors() -> Iterator[tuple[str, ...]]:
    exact = _exact_codes()
    classes: list[type[ServiceError]] = [ServiceError]
    for each in classes:
        classes += each.__subclasses__()
    ours = {
        each
        for each in classes
        if each.__module__ == ServiceError.__module__ and each not in ABSTRACT
    }
    for each in ours:
        codes = ", ".join(f"`{code}`" for code in sorted(exact.get(each.__name__, ())))
        yield (
            str(each.status),
            f"`{each.default_code}`",
            codes,
            f"`{each.type}`",
            "yes" if _is_retried(each.status, each.headers) else "no",
            " ".join((each.__doc__ or "").split()),
        )
    told = {each.default_code for each in ours}
    for status, (code, message) in FRAMEWORK_ERRORS.items():
        if code not in told:
            retry = "yes" if _is_retried(status, {}) else "no"
            yield str(status), f"`{code}`", "", f"`{RequestError.type}`", retry, message


def _is_retried(status: int, headers: Mapping[str, str]) -> bool:
    """Return whether OpenAI's libraries retry an answer: 408, 409, 429 and 5xx without the header
    against it."""
    may_pass = status in (408, 409, 429) or status >= 500
    return may_pass and headers.get("x-should-retry") != "false"


def _exact_codes() -> dict[str, set[str]]:
    """The codes that errors are raised with in place of that of their class, by the class."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "ai_agent_service").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                values = [each.value for each in node.keywords if each.arg == "code"]
                codes = {
                    each.value
                    for each in values
                    if isinstance(each, ast.Constant) and isinstance(each.value, str)
                }
                found.setdefault(node.func.id, set()).update(codes)
    return found


def _bounds() -> Iterator[tuple[str, ...]]:
    """Yield each limit of core/bounds.py: its name, its value and its docstring."""
    for name, text in pairwise(ast.parse(inspect.getsource(bounds)).body):
        match name, text:
            case (
                ast.Assign(targets=[ast.Name(id=found)]),
                ast.Expr(value=ast.Constant(value=str(meaning))),
            ):
                yield f"`{found}`", f"{getattr(bounds, found):,}", " ".join(meaning.split())
            case _:
                pass


def _names(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [
        heads,
        ("---",) * len(heads),
        *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} is written.")
