"""The interface of a session with an MCP server, for every transport."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from ai_agent_service.config.server_definition import ServerDefinition, Transport
from ai_agent_service.core.context import RunContext
from ai_agent_service.tools.base import ToolOutput


class ServerConnectionError(Exception):
    """The server cannot be reached. The message is for the operator and contains no secrets.

    `not_sent` is set where it is certain that the server did not start what was requested.
    """

    def __init__(self, reason: str, *, not_sent: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.not_sent = not_sent


class RemoteTool(msgspec.Struct, frozen=True):
    """A tool as its server lists it; `parameters` should be the JSON Schema of its arguments.

    An entry with a `problem` cannot be offered; the problem says why, for the operator.
    """

    name: str
    description: str
    parameters: object
    problem: str = ""


class McpSession(Protocol):
    """An open session with a server; safe for parallel calls."""

    @property
    def transport(self) -> Transport:
        """The transport."""
        ...

    async def list_tools(self) -> list[RemoteTool]:
        """Return all tools of the server; raises ServerConnectionError."""
        ...

    async def call(
        self, name: str, arguments: dict[str, object], context: RunContext
    ) -> ToolOutput:
        """Run a tool; raises ToolError with the server's words, or ServerConnectionError."""
        ...

    async def ping(self) -> None:
        """Return if the server answers; raises ServerConnectionError."""
        ...


class SessionListener(Protocol):
    """Receives a session's events beside the calls, in the session's event loop."""

    def handle_tools_changed(self) -> None:
        """Handle a changed list of tools."""
        ...

    def handle_session_end(self, reason: str) -> None:
        """Handle the end of a server, or of a session that cannot be understood."""
        ...


class SessionOpener(Protocol):
    """Opens sessions with one server."""

    def __call__(self, listener: SessionListener) -> AbstractAsyncContextManager[McpSession]:
        """Yield a new session, and close all that belongs to it; raises ServerConnectionError."""
        ...


class OpenerFactory(Protocol):
    """Makes the opener of a server; loaded together with the libraries that connect."""

    def __call__(
        self,
        definition: ServerDefinition,
        environment: Mapping[str, str],
        *,
        connect_seconds: float,
    ) -> SessionOpener: ...
