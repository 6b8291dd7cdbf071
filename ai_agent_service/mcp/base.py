"""What a connection to an MCP server offers, whatever carries it."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from ai_agent_service.config.server_definition import ServerDefinition, Transport
from ai_agent_service.core.context import RunContext
from ai_agent_service.tools.base import ToolOutput


class ServerConnectionError(Exception):
    """The server cannot be reached, or not any more; the message says why, in words for the
    operator and without secrets.

    `not_sent` is set where it is certain that the server did nothing of what was asked.
    """

    def __init__(self, reason: str, *, not_sent: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.not_sent = not_sent


class RemoteTool(msgspec.Struct, frozen=True):
    """A tool as its server lists it; `parameters` is the JSON Schema of its arguments."""

    name: str
    description: str
    parameters: dict[str, object]


class McpSession(Protocol):
    """An open session with a server; safe for parallel calls."""

    @property
    def transport(self) -> Transport:
        """What carries it."""
        ...

    async def list_tools(self) -> list[RemoteTool]:
        """All tools of the server; raises ServerConnectionError."""
        ...

    async def call(
        self, name: str, arguments: dict[str, object], context: RunContext
    ) -> ToolOutput:
        """Runs a tool; raises ToolError with the server's words, or ServerConnectionError."""
        ...

    async def ping(self) -> None:
        """Returns if the server answers; raises ServerConnectionError."""
        ...


class SessionListener(Protocol):
    """Whoever wants to know what happens to a session beside the calls; its methods are called in
    the session's event loop."""

    def handle_tools_changed(self) -> None:
        """The server says that its list of tools is another one now."""
        ...

    def handle_session_end(self, reason: str) -> None:
        """The server has ended or cannot be understood."""
        ...


class SessionOpener(Protocol):
    """Opens sessions with one server."""

    def __call__(self, listener: SessionListener) -> AbstractAsyncContextManager[McpSession]:
        """A new session, which is closed with all that belongs to it at the end; raises
        ServerConnectionError."""
        ...


class OpenerFactory(Protocol):
    """Makes the opener of a server; what it takes to connect is loaded with it."""

    def __call__(
        self,
        definition: ServerDefinition,
        environment: Mapping[str, str],
        *,
        connect_seconds: float,
    ) -> SessionOpener: ...
