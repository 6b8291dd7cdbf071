"""Reads mcp.json into server definitions, all faults of the file at once."""

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, quote_plus

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ai_agent_service.config.json_files import digest_of, expand_variables, nearest, read_json
from ai_agent_service.core.errors import Fault

Transport = Literal["stdio", "http", "sse"]

MIN_SECRET = 6
"""Characters from which on the value of a variable is kept out of every message; shorter ones would black out ordinary words."""

_ALIASES = {"url": "server_url", "headers": "header"}
"""Names that other MCP hosts give to our fields."""

_OF_OTHER_HOSTS = frozenset({"type", "transport", "server_description", "description", "alwaysAllow", "autoApprove", "icon"})
"""Fields that other MCP hosts write and that ask nothing of us."""

_TRANSPORTS: dict[object, Transport] = {
    "stdio": "stdio",
    "http": "http",
    "streamable-http": "http",
    "streamable_http": "http",
    "streamableHttp": "http",
    "sse": "sse",
}
_PLACEHOLDER = re.compile(r"\$\{[^}]*\}")
_HEADER_NAME = re.compile(r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
_NAMES_A_SECRET = re.compile(r"(?i)auth|key|token|secret|password|cookie")
_LITERAL = frozenset({"server_label", "require_approval"})


class ServerDefinition(BaseModel):
    """One MCP server of mcp.json, with its variables expanded.

    It has either a `server_url` or a `command`. `transport` is None where a server at a `server_url` is asked what it speaks. `missing`
    are the variables that it names and that are not set: such a server is off, and its fields hold nothing of it. `secrets` are the
    values that its variables took and the credentials that it names itself, to be kept out of every message; `credentials` are
    those among them that are keys by their names or by their place in a header, to be kept out of what tools return too. `written` is a
    digest of the entry as it stands in the file, without the credentials in it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    server_label: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,63}$",
        description="What agents call it by: 1 to 64 letters, digits, spaces and `. _ -`; in the form with `mcpServers`, its key there.",
    )
    server_url: str | None = Field(
        default=None, description="The address of a server that is reached over HTTP; also `url`. It or `command` is needed."
    )
    header: dict[str, str] = Field(default={}, description="Headers that are sent to the address; also `headers`.")
    command: str | None = Field(default=None, description="The command that runs the server.")
    args: tuple[str, ...] = Field(default=(), description="The command's arguments.")
    env: dict[str, str] = Field(
        default={},
        description="Variables of the command, which gets `HOME`, `LOGNAME`, `PATH`, `SHELL`, `TERM` and `USER` of ours and no others.",
    )
    cwd: str | None = Field(default=None, description="The folder that the command runs in.")
    require_approval: str | dict[str, Any] | None = Field(
        default=None, description="Read and kept; there is nobody to ask for approval here, and what is not `never` is warned of."
    )
    pin_tools: bool = Field(
        default=False,
        description="Withhold a tool whose description or parameters change after they were first seen, until the service is restarted.",
    )
    disabled: bool = Field(default=False, description="Leave the server out.")
    transport: Transport | None = Field(
        default=None, description="What it speaks, where that is not to be found out; also `type`, and `streamable-http` for `http`."
    )
    missing: tuple[str, ...] = ()
    secrets: tuple[str, ...] = Field(default=(), repr=False)
    credentials: tuple[str, ...] = Field(default=(), repr=False)
    written: str = Field(default="", repr=False)

    @property
    def off(self) -> str | None:
        """Why nothing is to connect to it, in a sentence; None for a server that is on."""
        if self.disabled:
            return "It is disabled in the MCP configuration."
        if self.missing:
            verb = "is" if len(self.missing) == 1 else "are"
            return f"{' and '.join(self.missing)} {verb} not set."
        return None

    def not_installed(self, environment: Mapping[str, str]) -> str | None:
        """What is wrong with its command if it is not there, looked up by its own PATH or that of `environment`, or by its path in its
        `cwd`; None if it is."""
        if self.command is None:
            return None
        by_path = self.command != Path(self.command).name
        path = self.env.get("PATH") or environment.get("PATH")
        if shutil.which(Path(self.cwd or "") / self.command if by_path else self.command, path=path) is not None:
            return None
        return f"The command {self.command!r} is not found; install it, or name it with its full path."

    @field_validator("header", "env", "args", "disabled", "pin_tools", mode="before")
    @classmethod
    def _null_means_default(cls, value: object, info: Any) -> object:
        return cls.model_fields[info.field_name].default if value is None else value

    @field_validator("env", "header", mode="before")
    @classmethod
    def _numbers_as_text(cls, value: object) -> object:
        """A number or a boolean stands for its text: `"PORT": 8080` is what operators write."""
        if not isinstance(value, dict):
            return value
        return {
            name: str(item).lower() if isinstance(item, bool) else str(item) if isinstance(item, int | float) else item
            for name, item in value.items()
        }

    @field_validator("server_url")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"^https?://[^/\s]", value):
            raise ValueError("an address beginning with http:// or https:// is needed")
        if value is not None and (re.search(r"\s", value) or not value.isprintable()):
            raise ValueError("an address has neither spaces nor control characters")
        return value

    @field_validator("header")
    @classmethod
    def _sendable(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not _HEADER_NAME.match(name):
                raise ValueError("a header's name has letters, digits and - only")
            if not text.isascii() or not text.isprintable():
                raise ValueError(f"the value of {name} has a line break or a character that no header may have")
        return value

    @field_validator("args", "env", "command", "cwd")
    @classmethod
    def _without_nul(cls, value: Any) -> Any:
        texts = [value] if isinstance(value, str) else [*value, *value.values()] if isinstance(value, dict) else value or ()
        if any("\0" in text for text in texts):
            raise ValueError("a text in it has the character NUL")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> "ServerDefinition":
        if self.command is not None and not self.command.strip():
            raise ValueError("command is empty")
        if self.missing:
            return self
        if (self.server_url is None) == (self.command is None):
            raise ValueError("it needs either a server_url or a command" + (", not both" if self.command else ""))
        if self.command is None and (self.args or self.env or self.cwd):
            raise ValueError("args, env and cwd belong to a command")
        if self.command is not None and self.header:
            raise ValueError("header belongs to a server_url")
        if self.transport is not None and (self.transport == "stdio") != (self.command is not None):
            raise ValueError(f"the transport {self.transport} does not go with {'a command' if self.command else 'a server_url'}")
        return self


class Servers(msgspec.Struct, frozen=True):
    """What mcp.json says: its servers, and what an operator should know about them though it is no fault."""

    definitions: tuple[ServerDefinition, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def labels(self) -> frozenset[str]:
        """The labels of all servers, of those that are off too."""
        return frozenset(definition.server_label for definition in self.definitions)


def read_servers(path: Path, environment: Mapping[str, str]) -> tuple[Servers, list[Fault]]:
    """The MCP servers that `path` defines, in either form that MCP hosts write, and everything wrong with it; an absent file has none.

    The forms are a list of objects with `server_label`, and an object whose `mcpServers` maps labels to objects. `${NAME}` is expanded
    once in every string but a label.
    """
    if not path.exists():
        return Servers(), []
    value, faults = read_json(path)
    if faults:
        return Servers(), faults
    if not _is_known_form(value):
        return Servers(), [
            Fault(
                file=str(path),
                problem="this is neither a list of servers nor an object with mcpServers",
                remedy='Write [{"server_label": ..., "server_url": ...}] or {"mcpServers": {...}}',
            )
        ]
    definitions: list[ServerDefinition] = []
    warnings: list[str] = []
    seen: set[str] = set()
    for where, entry in _entries(value):
        if not isinstance(entry, dict):
            faults.append(Fault(file=str(path), where=where, problem="this is not an object", remedy="Write {...}"))
            continue
        strict = isinstance(value, list)
        entry, found = _with_our_names(entry, warnings if not strict else None, where)
        definition, more = _read_server(entry, environment)
        found += more
        label = entry.get("server_label")
        if isinstance(label, str):
            if label in seen:
                found.append(Fault(file="", field="server_label", problem="another server has this label", remedy="Rename one of them"))
            seen.add(label)
        faults += (msgspec.structs.replace(fault, file=str(path), where=where) for fault in found)
        if definition is not None:
            definitions.append(definition)
            warnings += _warnings_about(definition)
    return Servers(tuple(definitions), tuple(warnings)), faults


def _is_known_form(value: object) -> bool:
    return isinstance(value, list) or (isinstance(value, dict) and isinstance(_by_label(value), dict))


def _by_label(value: dict[str, Any]) -> Any:
    """The servers by their labels, under the name that most hosts use, or that of Visual Studio Code."""
    return value.get("mcpServers", value.get("servers"))


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Each server's place in the file and its object, with its label in it."""
    if isinstance(value, list):
        for number, entry in enumerate(value, 1):
            label = entry.get("server_label") if isinstance(entry, dict) else None
            yield f"server {label!r}" if isinstance(label, str) else f"server number {number}", entry
        return
    for label, entry in _by_label(value).items():
        yield f"server {label!r}", {"server_label": label, **entry} if isinstance(entry, dict) else entry


def _with_our_names(entry: dict[str, Any], lenient: list[str] | None, where: str) -> tuple[dict[str, Any], list[Fault]]:
    """`entry` with our field names and without what only other hosts understand.

    A file that is shared with other hosts may have fields of theirs, which are told of in `lenient`; in our own form (None) an unknown
    field is a fault.
    """
    found: dict[str, Any] = {}
    faults: list[Fault] = []
    for name, value in entry.items():
        field = _ALIASES.get(name, name)
        if field in found:
            problem = (
                f"{name} and {field if name != field else next(alias for alias, of in _ALIASES.items() if of == field)} are both given"
            )
            faults.append(Fault(file="", field=name, problem=problem, remedy="Keep one of them"))
        elif field in ("type", "transport"):
            # OpenAI's own list form says {"type": "mcp"}.
            if value in _TRANSPORTS:
                found["transport"] = _TRANSPORTS[value]
            elif value != "mcp":
                problem = f"{value!r} is not a transport" if isinstance(value, str) else "this is not the name of a transport"
                faults.append(Fault(file="", field=name, problem=problem, remedy="Write stdio, http or sse, or leave it out"))
        elif field in _FIELDS:
            found[field] = value
        elif field not in _OF_OTHER_HOSTS:
            remedy = nearest(name, {*_FIELDS, *_ALIASES, "transport"})
            if lenient is None:
                faults.append(Fault(file="", field=name, problem="this field is not known", remedy=remedy))
            else:
                lenient.append(f"MCP {where}: the field {name} is not known and has no effect. {remedy}")
    return found, faults


_FIELDS = frozenset(ServerDefinition.model_fields) - {"missing", "secrets", "credentials", "written", "transport"}


def _read_server(entry: dict[str, Any], environment: Mapping[str, str]) -> tuple[ServerDefinition | None, list[Fault]]:
    """The server of `entry` and its faults, their file and place left open."""
    missing: set[str] = set()
    used: dict[str, str] = {}
    written = digest_of(_without_credentials(entry))
    watched = _Watched(environment, used)
    expanded = {key: item if key in _LITERAL else expand_variables(item, watched, missing) for key, item in entry.items()}
    faults = []
    for field in ("server_url", "header", "env"):
        for place in _placeholders(entry.get(field)) - {f"${{{name}}}" for name in {*used, *missing}}:
            problem = f"{place} is not a variable that is filled in here"
            faults.append(Fault(file="", field=field, problem=problem, remedy="Write ${NAME}, with the name of an environment variable"))
    plain = {value for value in (*used.values(), *_written_secrets(expanded)) if len(value) >= MIN_SECRET}
    headers = str(expanded.get("header", ""))
    keys = {value for name, value in used.items() if _NAMES_A_SECRET.search(name) or value in headers} | set(_written_secrets(expanded))
    credentials = sorted(keys & plain, key=len, reverse=True)
    # An address has them percent-encoded, and whoever repeats it does so too.
    secrets = sorted(
        {form for value in plain for form in (value, quote(value), quote(value, safe=""), quote_plus(value))}, key=len, reverse=True
    )
    try:
        if not missing:
            ours = {"secrets": tuple(secrets), "credentials": tuple(credentials), "written": written}
            return ServerDefinition.model_validate({**expanded, **ours}), faults
        # What else is wrong with it is told all the same; then nothing of it is kept, for its literals must not be sent.
        checked = ServerDefinition.model_validate(_filled_in(expanded))
        transport = checked.transport or ("stdio" if checked.command is not None else "http")
        kept = {"server_label", "require_approval", "pin_tools", "disabled"}
        names = tuple(sorted(missing))
        return ServerDefinition(**checked.model_dump(include=kept), transport=transport, missing=names, written=written), faults
    except ValidationError as error:
        return None, [*faults, *(_fault(part) for part in error.errors(include_input=False, include_url=False))]


def _filled_in(value: Any) -> Any:
    """`value` with something harmless in the place of each variable that is not set."""
    if isinstance(value, str):
        return _PLACEHOLDER.sub("x", re.sub(r"^\$\{[^}]*\}(?=/|$)", "http://x", value))
    if isinstance(value, dict):
        return {key: _filled_in(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled_in(item) for item in value]
    return value


def _written_secrets(entry: Mapping[str, object]) -> Iterator[str]:
    """Credentials that stand in the file itself, by the names of their headers and variables; of `Bearer KEY` the key."""
    for field in ("header", "env"):
        values = entry.get(field)
        for name, value in values.items() if isinstance(values, dict) else ():
            if _NAMES_A_SECRET.search(str(name)) and isinstance(value, str) and value.strip():
                yield value.split()[-1]


def _without_credentials(entry: Mapping[str, object]) -> dict[str, object]:
    """`entry` with the names alone of headers and variables whose values are credentials that stand in the file."""
    found = dict(entry)
    for field in ("header", "env"):
        values = found.get(field)
        if isinstance(values, dict):
            found[field] = {
                name: "" if _NAMES_A_SECRET.search(str(name)) and not _PLACEHOLDER.search(str(value)) else value
                for name, value in values.items()
            }
    return found


class _Watched(Mapping[str, str]):
    """An environment that remembers which of its variables were asked for."""

    def __init__(self, environment: Mapping[str, str], used: dict[str, str]) -> None:
        self._environment, self._used = environment, used

    def __getitem__(self, name: str) -> str:
        value = self._environment[name]
        self._used[name] = value
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._environment)

    def __len__(self) -> int:
        return len(self._environment)


def _placeholders(value: object) -> set[str]:
    if isinstance(value, str):
        return set(_PLACEHOLDER.findall(value))
    if isinstance(value, dict):
        return {place for item in value.values() for place in _placeholders(item)}
    return set()


def _warnings_about(definition: ServerDefinition) -> list[str]:
    if definition.require_approval not in (None, "never"):
        return [
            f"MCP server {definition.server_label!r}: require_approval is kept, but there is nobody to ask here: agents call the "
            "tools that they are allowed without approval"
        ]
    return []


def _fault(part: Any) -> Fault:
    field = ".".join(str(step) for step in part["loc"])
    problem, remedy = part["msg"].removeprefix("Value error, "), "Correct it; docs/reference.md describes every field"
    match part["type"]:
        case "missing":
            problem, remedy = "this field is missing", "Add it"
        case "string_pattern_mismatch":
            problem, remedy = "a label has letters, digits, spaces and . _ - only, 64 at most", "Rename the server"
        case _:
            pass
    return Fault(file="", field=field, problem=problem, remedy=remedy)
