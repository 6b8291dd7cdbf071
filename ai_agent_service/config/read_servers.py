"""Reads mcp.json into server definitions, with every fault at once."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import msgspec
from pydantic import ValidationError

from ai_agent_service.config.faults import (
    EntryKind,
    build_validation_faults,
    number_entries,
    read_entries,
)
from ai_agent_service.config.json_files import expand_variables, hash_json, read_json, suggest_name
from ai_agent_service.config.other_hosts import select_servers, translate_entry
from ai_agent_service.config.server_definition import ServerDefinition, Transport
from ai_agent_service.core.errors import Fault

_FIELDS = frozenset(ServerDefinition.model_fields) - {
    "missing",
    "secrets",
    "credentials",
    "written",
    "transport",
    "problem",
}

_SERVER = EntryKind(
    noun="server",
    id_field="server_label",
    id_noun="label",
    id_rule="a label is not blank",
    form="{...}",
)

MIN_SECRET_LENGTH = 6
"""Characters from which on the value of a variable is kept out of every message; shorter ones would
black out ordinary words."""

_ALIASES = {"url": "server_url", "headers": "header"}
"""Names that other MCP hosts give to our fields."""

_IGNORED_FIELDS = frozenset({"server_description", "description", "icon"})
"""Fields that ask nothing of us; OpenAI's list has the first."""

_TRANSPORTS: dict[object, Transport] = {
    "stdio": "stdio",
    "http": "http",
    "streamable-http": "http",
    "streamable_http": "http",
    "streamableHttp": "http",
    "sse": "sse",
}

_OTHER_FORM = re.compile(
    r"\$\{(?:env:)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^{}]*))?\}"
)
_PLACEHOLDER = re.compile(r"\$\{[^}]*\}")

_SECRET_NAME = re.compile(r"(?i)auth|key|token|secret|password|cookie")

_UNEXPANDED_FIELDS = frozenset({"server_label", "require_approval"})


class ServerDefinitions(msgspec.Struct, frozen=True):
    """What mcp.json says: its servers, and what an operator should know about them though it is no
    fault."""

    definitions: tuple[ServerDefinition, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def labels(self) -> frozenset[str]:
        """The labels of all servers, of those that are off too."""
        return frozenset(definition.server_label for definition in self.definitions)


def read_servers(
    path: Path, environment: Mapping[str, str]
) -> tuple[ServerDefinitions, list[Fault]]:
    """The MCP servers that `path` defines, in either form that MCP hosts write, and everything
    wrong with it; an absent file has none.

    The forms are a list of objects with `server_label`, and an object whose `mcpServers` maps
    labels to objects. `${NAME}` is expanded once in every string but a label.
    """
    if not path.exists():
        return ServerDefinitions(), []
    value, faults = read_json(path)
    if faults:
        return ServerDefinitions(), faults
    if not isinstance(value, list):
        return _read_other_host(path, value, environment)
    warnings: list[str] = []

    def read(entry: dict[str, Any], where: str) -> tuple[ServerDefinition | None, list[Fault]]:
        entry, faults = _normalize_fields(entry)
        definition, found = _read_server(entry, environment)
        if definition is not None:
            warnings.extend(_collect_warnings(definition))
        return definition, [*faults, *found]

    definitions, faults = read_entries(path, number_entries(value, _SERVER), _SERVER, read)
    return ServerDefinitions(tuple(definitions), tuple(warnings)), faults


def _read_other_host(
    path: Path, value: object, environment: Mapping[str, str]
) -> tuple[ServerDefinitions, list[Fault]]:
    """Read a file of another MCP host. An entry that cannot be used here is off and says why."""
    entries = select_servers(value)
    if entries is None:
        problem = "this is neither a list of servers nor an object with mcpServers"
        remedy = 'Write [{"server_label": ..., "server_url": ...}] or {"mcpServers": {...}}'
        return ServerDefinitions(), [Fault(file=str(path), problem=problem, remedy=remedy)]
    definitions: list[ServerDefinition] = []
    warnings: list[str] = []
    for label, entry in entries.items():
        if not label.strip():
            warnings.append("An MCP server without a label is left out")
            continue
        fields, warning, problem = translate_entry(label, entry)
        definition = _read_translated(label, fields, problem, environment)
        warnings += [warning] if warning else []
        if definition.problem and not definition.disabled:
            warnings.append(f"MCP server {label!r}: it is off. {definition.problem}")
        definitions.append(definition)
        warnings += _collect_warnings(definition)
    return ServerDefinitions(tuple(definitions), tuple(warnings)), []


def _read_translated(
    label: str, fields: dict[str, Any], problem: str, environment: Mapping[str, str]
) -> ServerDefinition:
    if not problem:
        definition, faults = _read_server({**fields, "server_label": label}, environment)
        if definition is not None and not faults:
            return definition
        problem = " ".join(
            f"{fault.field}: {fault.problem}." if fault.field else f"{fault.problem}."
            for fault in faults
        )
    transport: Transport = "stdio" if "command" in fields else "http"
    is_disabled = fields.get("disabled") is True
    written = hash_json(_strip_credentials(fields))
    return ServerDefinition(
        server_label=label,
        transport=transport,
        disabled=is_disabled,
        problem=problem,
        written=written,
    )


def _normalize_fields(entry: dict[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    """Return an entry of our own form with our field names; an unknown field is a fault."""
    found: dict[str, Any] = {}
    faults: list[Fault] = []
    for name, value in entry.items():
        field = _ALIASES.get(name, name)
        if field in found:
            other = field
            if name == field:
                other = next(alias for alias, target in _ALIASES.items() if target == field)
            problem = f"{name} and {other} are both given"
            faults.append(Fault(field=name, problem=problem, remedy="Keep one of them"))
        elif field in ("type", "transport"):
            # OpenAI's own list form says {"type": "mcp"}.
            if value in _TRANSPORTS:
                found["transport"] = _TRANSPORTS[value]
            elif value != "mcp":
                problem = (
                    f"{value!r} is not a transport"
                    if isinstance(value, str)
                    else "this is not the name of a transport"
                )
                remedy = "Write stdio, http or sse, or leave it out"
                faults.append(Fault(field=name, problem=problem, remedy=remedy))
        elif field in _FIELDS:
            found[field] = value
        elif field not in _IGNORED_FIELDS:
            remedy = suggest_name(name, {*_FIELDS, *_ALIASES, "transport"})
            faults.append(Fault(field=name, problem="this field is not known", remedy=remedy))
    return found, faults


def _read_server(
    entry: dict[str, Any], environment: Mapping[str, str]
) -> tuple[ServerDefinition | None, list[Fault]]:
    """The server of `entry` and its faults, their file and place left open."""
    missing: set[str] = set()
    used: dict[str, str] = {}
    written = hash_json(_strip_credentials(entry))
    entry = {key: _resolve_forms(item, environment) for key, item in entry.items()}
    watched = _TrackedEnvironment(environment, used)
    expanded = {
        key: item if key in _UNEXPANDED_FIELDS else expand_variables(item, watched, missing)
        for key, item in entry.items()
    }
    filled = {f"${{{name}}}" for name in {*used, *missing}}
    faults = [
        Fault(
            field=field,
            problem=f"{place} is not a variable that is filled in here",
            remedy="Write ${NAME}, with the name of an environment variable",
        )
        for field in ("server_url", "header", "env")
        for place in _find_placeholders(entry.get(field)) - filled
    ]
    plain = {
        value
        for value in (*used.values(), *_find_literal_secrets(expanded))
        if len(value) >= MIN_SECRET_LENGTH
    }
    headers = str(expanded.get("header", ""))
    keys = {
        value for name, value in used.items() if _SECRET_NAME.search(name) or value in headers
    } | set(_find_literal_secrets(expanded))
    credentials = sorted(keys & plain, key=len, reverse=True)
    # An address has them percent-encoded, and whoever repeats it does so too.
    secrets = sorted(
        {
            form
            for value in plain
            for form in (value, quote(value), quote(value, safe=""), quote_plus(value))
        },
        key=len,
        reverse=True,
    )
    try:
        if not missing:
            ours = {
                "secrets": tuple(secrets),
                "credentials": tuple(credentials),
                "written": written,
            }
            return ServerDefinition.model_validate({**expanded, **ours}), faults
        # What else is wrong with it is told all the same; then nothing of it is kept, for its
        # literals must not be sent.
        checked = ServerDefinition.model_validate(_fill_placeholders(expanded))
        transport = checked.transport or ("stdio" if checked.command is not None else "http")
        kept = {"server_label", "require_approval", "pin_tools", "disabled"}
        kept |= {"include_tools", "exclude_tools"}
        names = tuple(sorted(missing))
        return (
            ServerDefinition(
                **checked.model_dump(include=kept),
                transport=transport,
                missing=names,
                written=written,
            ),
            faults,
        )
    except ValidationError as error:
        return None, [*faults, *build_validation_faults(error, ServerDefinition, kind=_SERVER)]


def _resolve_forms(value: Any, environment: Mapping[str, str]) -> Any:
    """Return `value` with `${NAME}` for `${env:NAME}`, and for `${NAME:-default}` if it is set."""

    def replace(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        return f"${{{name}}}" if default is None or environment.get(name) else default

    match value:
        case str():
            return _OTHER_FORM.sub(replace, value)
        case dict():
            return {key: _resolve_forms(item, environment) for key, item in value.items()}
        case list():
            return [_resolve_forms(item, environment) for item in value]
        case _:
            return value


def _fill_placeholders(value: Any) -> Any:
    """`value` with something harmless in the place of each variable that is not set."""
    if isinstance(value, str):
        return _PLACEHOLDER.sub("x", re.sub(r"^\$\{[^}]*\}(?=/|$)", "http://x", value))
    if isinstance(value, dict):
        return {key: _fill_placeholders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill_placeholders(item) for item in value]
    return value


def _find_literal_secrets(entry: Mapping[str, object]) -> Iterator[str]:
    """Credentials that stand in the file itself, by the names of their headers and variables; of
    `Bearer KEY` the key."""
    for field in ("header", "env"):
        values = entry.get(field)
        for name, value in values.items() if isinstance(values, dict) else ():
            if _SECRET_NAME.search(str(name)) and isinstance(value, str) and value.strip():
                yield value.split()[-1]


def _strip_credentials(entry: Mapping[str, object]) -> dict[str, object]:
    """`entry` with the names alone of headers and variables whose values are credentials that stand
    in the file."""
    found = dict(entry)
    for field in ("header", "env"):
        values = found.get(field)
        if isinstance(values, dict):
            found[field] = {
                name: (
                    ""
                    if _SECRET_NAME.search(str(name)) and not _PLACEHOLDER.search(str(value))
                    else value
                )
                for name, value in values.items()
            }
    return found


class _TrackedEnvironment(Mapping[str, str]):
    """An environment that remembers which of its variables were asked for."""

    def __init__(self, environment: Mapping[str, str], used: dict[str, str]) -> None:
        self._environment, self._keep = environment, used

    def __getitem__(self, name: str) -> str:
        value = self._environment[name]
        self._keep[name] = value
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._environment)

    def __len__(self) -> int:
        return len(self._environment)


def _find_placeholders(value: object) -> set[str]:
    if isinstance(value, str):
        return set(_PLACEHOLDER.findall(value))
    if isinstance(value, dict):
        return {place for item in value.values() for place in _find_placeholders(item)}
    return set()


def _collect_warnings(definition: ServerDefinition) -> list[str]:
    if definition.require_approval not in (None, "never"):
        return [
            f"MCP server {definition.server_label!r}: require_approval is kept, but there is nobody"
            " to ask here: agents call the tools that they are allowed without approval"
        ]
    return []
