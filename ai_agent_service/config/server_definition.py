"""Reads mcp.json into server definitions, all faults of the file at once."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ai_agent_service.config.definition import Definition, use_default_for_null

Transport = Literal["stdio", "http", "sse"]

_HEADER_NAME = re.compile(r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")


class ServerDefinition(Definition):
    """One MCP server of mcp.json, with its variables expanded.

    It has either a `server_url` or a `command`. `transport` is None where a server at a
    `server_url` is asked what it speaks. `missing` are the variables that it names and that are not
    set, and `problem` is what is wrong with an entry of another host's: such a server is off, and
    its fields hold nothing of it. `secrets` are the values that its
    variables took and the credentials that it names itself, to be kept out of every message;
    `credentials` are those among them that are keys by their names or by their place in a header,
    to be kept out of what tools return too. `written` is a digest of the entry as it stands in the
    file, without the credentials in it.
    """

    server_label: str = Field(pattern=r"\S")
    """What agents call it by, in any characters; in the form with `mcpServers`, its key there."""
    server_url: str | None = None
    """The address of a server that is reached over HTTP; also `url`. It or `command` is needed."""
    header: dict[str, str] = Field(default={})
    """Headers that are sent to the address; also `headers`."""
    command: str | None = None
    """The command that runs the server."""
    args: tuple[str, ...] = ()
    """The command's arguments."""
    env: dict[str, str] = Field(default={})
    """Variables of the command, which gets `HOME`, `LOGNAME`, `PATH`, `SHELL`, `TERM` and `USER` of
    ours and no others."""
    cwd: str | None = None
    """The folder that the command runs in."""
    user: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")
    """The user of this machine that the command runs as; the service must run as root."""
    max_message_bytes: int = Field(default=64 * 1024 * 1024, ge=64 * 1024)
    """The largest message that the server may send: a line of a command, an answer or an event over
    HTTP."""
    require_approval: str | dict[str, Any] | None = None
    """Read and kept; there is nobody to ask for approval here, and what is not `never` is warned
    of."""
    pin_tools: bool = False
    """Withhold a tool whose description or parameters change after they were first seen, until the
    service is restarted."""
    include_tools: tuple[str, ...] | None = None
    """The only tools that agents may have of it; also `includeTools`."""
    exclude_tools: tuple[str, ...] = ()
    """Tools that no agent may have; also `excludeTools` and `disabledTools`."""
    disabled: bool = False
    """Leave the server out."""
    transport: Transport | None = None
    """What it speaks, where that is not to be found out; also `type`, and `streamable-http` for
    `http`."""
    missing: tuple[str, ...] = ()
    problem: str = ""
    secrets: tuple[str, ...] = Field(default=(), repr=False)
    credentials: tuple[str, ...] = Field(default=(), repr=False)
    written: str = Field(default="", repr=False)

    @property
    def off_reason(self) -> str | None:
        """Why nothing is to connect to it, in a sentence; None for a server that is on."""
        if self.disabled:
            return "It is disabled in the MCP configuration."
        if self.problem:
            return self.problem
        if self.missing:
            verb = "is" if len(self.missing) == 1 else "are"
            return f"{' and '.join(self.missing)} {verb} not set."
        return None

    def allows(self, tool: str) -> bool:
        """Return whether agents may have a tool of the server, as far as its entry says."""
        is_included = self.include_tools is None or tool in self.include_tools
        return is_included and tool not in self.exclude_tools

    def find_command_problem(self, environment: Mapping[str, str]) -> str | None:
        """What is wrong with its command if it is not there, looked up by its own PATH or that of
        `environment`, or by its path in its `cwd`; None if it is."""
        if self.command is None:
            return None
        if self.user is not None and (problem := _find_user_problem(self.user)):
            return problem
        by_path = self.command != Path(self.command).name
        path = self.env.get("PATH") or environment.get("PATH")
        if (
            shutil.which(
                Path(self.cwd or "") / self.command if by_path else self.command, path=path
            )
            is not None
        ):
            return None
        return (
            f"The command {self.command!r} is not found; install it, or name it with its full path."
        )

    @property
    def user_variables(self) -> dict[str, str]:
        """The variables of its `user` that differ from ours."""
        if self.user is None:
            return {}
        return {"HOME": _find_home(self.user) or "/", "LOGNAME": self.user, "USER": self.user}

    _replace_null = field_validator(
        *("header", "env", "args", "disabled", "pin_tools", "exclude_tools", "max_message_bytes"),
        mode="before",
    )(use_default_for_null)

    @field_validator("env", "header", mode="before")
    @classmethod
    def _convert_numbers(cls, value: object) -> object:
        """A number or a boolean stands for its text: `"PORT": 8080` is what operators write."""
        if not isinstance(value, dict):
            return value
        return {
            name: (
                str(item).lower()
                if isinstance(item, bool)
                else str(item)
                if isinstance(item, int | float)
                else item
            )
            for name, item in value.items()
        }

    @field_validator("server_url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"^https?://[^/\s]", value):
            raise ValueError("an address beginning with http:// or https:// is needed")
        if value is not None and (re.search(r"\s", value) or not value.isprintable()):
            raise ValueError("an address has neither spaces nor control characters")
        return value

    @field_validator("header")
    @classmethod
    def _check_header(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not _HEADER_NAME.match(name):
                raise ValueError("a header's name has letters, digits and - only")
            if not text.isascii() or not text.isprintable():
                raise ValueError(
                    f"the value of {name} has a line break or a character that no header may have"
                )
        return value

    @field_validator("args", "env", "command", "cwd", "user")
    @classmethod
    def _reject_nul(cls, value: Any) -> Any:
        texts = (
            [value]
            if isinstance(value, str)
            else [*value, *value.values()]
            if isinstance(value, dict)
            else value or ()
        )
        if any("\0" in text for text in texts):
            raise ValueError("a text in it has the character NUL")
        return value

    @model_validator(mode="after")
    def _check_transport(self) -> "ServerDefinition":
        if self.command is not None and not self.command.strip():
            raise ValueError("command is empty")
        if self.missing or self.problem:
            return self
        if (self.server_url is None) == (self.command is None):
            raise ValueError(
                "it needs either a server_url or a command" + (", not both" if self.command else "")
            )
        if self.command is None and (self.args or self.env or self.cwd):
            raise ValueError("args, env and cwd belong to a command")
        if self.command is None and self.user:
            raise ValueError("user belongs to a command")
        if self.command is not None and self.header:
            raise ValueError("header belongs to a server_url")
        if self.transport is not None and (self.transport == "stdio") != (self.command is not None):
            raise ValueError(
                f"the transport {self.transport} does not go with"
                f" {'a command' if self.command else 'a server_url'}"
            )
        return self


def _find_user_problem(user: str) -> str | None:
    """Return what keeps a command from running as `user`, or None."""
    if _find_home(user) is None:
        return f"The user {user!r} is not known on this machine; create it, or correct the name."
    if os.geteuid() != 0:
        return (
            f"Only root can run a command as the user {user!r}; start the service as root, or"
            " remove user."
        )
    return None


def _find_home(user: str) -> str | None:
    """Return the home folder of a user of this machine; None if there is no such user."""
    try:
        return str(Path(f"~{user}").expanduser())
    except RuntimeError:
        return None
