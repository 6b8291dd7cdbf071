"""Translate the entries that other MCP hosts write into ours.

The names are those of Claude Desktop and Code, Cursor, Visual Studio Code, Windsurf, Cline, Roo,
Gemini CLI, LM Studio, opencode, Zed, Continue and the Copilot agent. A field grants nothing here.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ai_agent_service.config.json_files import suggest_name

_WRAPPERS = ("mcpServers", "servers", "context_servers", "amp.mcpServers", "mcp.servers", "mcp")

_FIELDS = {
    "server_url": ("httpUrl", "serverUrl", "url", "server_url"),
    "header": ("headers", "header"),
    "command": ("command",),
    "args": ("args",),
    "env": ("env", "environment"),
    "cwd": ("cwd", "workingDirectory"),
    "transport": ("transport", "transportType", "type"),
    "disabled": ("disabled",),
    "require_approval": ("require_approval",),
    "pin_tools": ("pin_tools",),
    "include_tools": ("includeTools", "include_tools", "enabledTools", "tools"),
    "exclude_tools": ("excludeTools", "exclude_tools", "disabledTools"),
}
"""Our fields, and their names in other hosts; the first that an entry has is taken."""

_WITHOUT_EFFECT = {
    "timeout": "TOOL_EXECUTION_TIMEOUT bounds a call; hosts count it in seconds or milliseconds",
    "envFile": "its variables belong in env",
    "autoApprove": "it grants nothing: agents have what allowed_mcp_servers names",
    "alwaysAllow": "it grants nothing: agents have what allowed_mcp_servers names",
    "trust": "it grants nothing: agents have what allowed_mcp_servers names",
    "auth": "a token belongs in header",
    "oauth": "a token belongs in header",
    "authProviderType": "a token belongs in header",
    "headersHelper": "a token belongs in header",
    "sandbox": "a command runs as the service does",
    "sandboxEnabled": "a command runs as the service does",
}
"""Fields that an operator may miss here, and why."""

_NOTES = frozenset(
    {"server_label", "name", "title", "description", "server_description", "icon", "iconUrl"}
    | {"gallery", "version", "metadata", "dev", "watchPaths", "$schema", "source", "extensionName"}
)
"""Fields that ask nothing of us."""

_TRANSPORTS = {
    "stdio": "stdio",
    "local": "stdio",
    "command": "stdio",
    "http": "http",
    "streamablehttp": "http",
    "sse": "sse",
    "remote": None,
    "mcp": None,
}

_OF_COMMAND = ("args", "env", "cwd")
_OPENCODE_VARIABLE = re.compile(r"(?<!\$)\{env:([A-Za-z_]\w*)\}")
_HOST_VARIABLE = re.compile(
    r"\$\{(?:(?:input|command|config):[^}]*|(?:file|workspaceFolder)\w*(?::[^}]*)?)\}"
)


def select_servers(value: object) -> dict[str, object] | None:
    """Return the entries of a file of another host by their labels; None if it is not one."""
    if not isinstance(value, dict):
        return None
    for name in _WRAPPERS:
        if name in value:
            return _read_wrapper(value[name])
    return None


def _read_wrapper(value: object) -> dict[str, object] | None:
    if isinstance(value, list):
        named = [each for each in value if isinstance(each, dict)]
        return {str(each.get("name", f"server {n}")): each for n, each in enumerate(named, 1)}
    if isinstance(value, dict) and isinstance(inner := value.get("servers"), dict):
        return inner
    return value if isinstance(value, dict) else None


def translate_entry(label: str, entry: object) -> tuple[dict[str, Any], str, str]:
    """Return an entry with our field names, a warning of what has no effect in it, and the problem
    that keeps it off; both are empty if there are none."""
    if not isinstance(entry, dict):
        return {}, "", "Its entry is not an object."
    found, unused = _rename_fields(entry)
    _unfold_command(found)
    _read_switches(entry, found)
    unused += _drop_other_kind(found)
    if "transport" in found:
        _read_transport(found, unused)
    for name in ("include_tools", "exclude_tools"):
        if name in found:
            found[name] = _read_tool_names(found[name])
    found = {name: _translate_variables(value) for name, value in found.items()}
    warning = f"MCP server {label!r}: without effect here: {', '.join(unused)}" if unused else ""
    return found, warning, _find_host_variable(found)


def _rename_fields(entry: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the fields that have a meaning here, and the others that are worth a word."""
    found: dict[str, Any] = {}
    used = {"enabled"}
    for field, names in _FIELDS.items():
        given = [name for name in names if entry.get(name) is not None]
        used.update(names[:0] if len(given) > 1 else names, given[:1])
        if given:
            found[field] = entry[given[0]]
    known = {name for names in _FIELDS.values() for name in names}
    return found, [
        f"{name} ({_explain(name, known)})"
        for name, value in entry.items()
        if name not in used and name not in _NOTES and value not in (None, False, [], {}, "")
    ]


def _explain(name: str, known: set[str]) -> str:
    if name in known:
        return "another field says the same"
    return _WITHOUT_EFFECT.get(name) or f"it is not known. {suggest_name(name, known)}"


def _unfold_command(found: dict[str, Any]) -> None:
    """Read the forms of opencode, a list, and of Zed, an object."""
    command = found.get("command")
    if isinstance(command, dict):
        found.pop("command")
        for name, target in (("path", "command"), ("args", "args"), ("env", "env")):
            if command.get(name) is not None:
                found.setdefault(target, command[name])
    elif isinstance(command, list) and command:
        rest = found.get("args")
        found["command"] = command[0]
        found["args"] = [*command[1:], *(rest if isinstance(rest, list) else [])]


def _read_switches(entry: Mapping[str, Any], found: dict[str, Any]) -> None:
    """A server is off if either of `disabled` and `enabled` says so."""
    if str(entry.get("enabled", True)).lower() in ("false", "0"):
        found["disabled"] = True


def _drop_other_kind(found: dict[str, Any]) -> list[str]:
    """Take out what does not belong to the server's kind, and return what was not empty."""
    is_command = found.get("command") is not None
    if is_command and found.get("server_url") is not None:
        is_command = _normalize_transport(found.get("transport")) not in ("http", "sse")
    others = ("server_url", "header") if is_command else ("command", *_OF_COMMAND)
    given = [name for name in others if found.pop(name, None)]
    kind = "a command" if is_command else "an address"
    return [f"{name} (the server has {kind})" for name in given]


def _normalize_transport(value: object) -> str | None:
    return _TRANSPORTS.get(re.sub("[-_ ]", "", str(value).lower()))


def _read_transport(found: dict[str, Any], unused: list[str]) -> None:
    value = found.pop("transport")
    transport = _normalize_transport(value)
    if transport is not None and (transport == "stdio") == ("command" in found):
        found["transport"] = transport
    elif re.sub("[-_ ]", "", str(value).lower()) not in ("remote", "mcp"):
        unused.append(f"the transport {value!r} (what the server speaks is found out)")


def _read_tool_names(value: object) -> object:
    """Return names of tools, of `name(arguments)` the name; None for all tools."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        return value
    names = [each.partition("(")[0].strip() if isinstance(each, str) else each for each in value]
    return None if "*" in names else names


def _translate_variables(value: Any) -> Any:
    match value:
        case str():
            value = value.replace("${userHome}", "${HOME}")
            return _OPENCODE_VARIABLE.sub(r"${\1}", value)
        case dict():
            return {key: _translate_variables(item) for key, item in value.items()}
        case list():
            return [_translate_variables(item) for item in value]
        case _:
            return value


def _find_host_variable(found: Mapping[str, Any]) -> str:
    for text in _iterate_texts(found):
        if (match := _HOST_VARIABLE.search(text)) is not None:
            return (
                f"It needs {match[0]}, which only its host fills in; write ${{NAME}}, with the name"
                " of an environment variable."
            )
    return ""


def _iterate_texts(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for item in value.values():
                yield from _iterate_texts(item)
        case list():
            for item in value:
                yield from _iterate_texts(item)
        case _:
            pass
