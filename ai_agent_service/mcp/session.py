"""Sessions with MCP servers by way of the fastmcp client; imported only where there is a server to connect to, for it takes a second."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from typing import Any

import httpx2
import msgspec
from anyio import ClosedResourceError
from fastmcp.client import Client
from mcp import MCPError
from mcp.client._input_required import InputRequiredRoundsExceededError
from mcp.client.subscriptions import SubscriptionLost, listen
from mcp_types import (
    CONNECTION_CLOSED,
    METHOD_NOT_FOUND,
    Implementation,
    LoggingMessageNotificationParams,
    ServerNotification,
    ToolListChangedNotification,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from ai_agent_service import __version__
from ai_agent_service.config.server_definition import ServerDefinition, Transport
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import ToolFailed
from ai_agent_service.mcp.base import Listener, RemoteTool, ServerLost, Session, SessionOpener
from ai_agent_service.mcp.content import output_of
from ai_agent_service.mcp.http import Asked, asked_now, http_transport
from ai_agent_service.mcp.stdio import Stderr, StdioTransport, stderr_of, stdio_transport
from ai_agent_service.mcp.wording import status_words, without_its_keys, words_of
from ai_agent_service.tools.base import ToolOutput

logger = logging.getLogger(__name__)

MAX_JUNK_LINES = 1_000
"""Lines on standard output that are no messages, after which a server is given up; each costs our time."""

MAX_TOOL_WORDS = 4_000
"""Characters of a server's refusal that the model is told."""

LISTEN_AGAIN_SECONDS = 5.0
PING_SECONDS = 10.0
FORGOTTEN_SECONDS = 2.0

_BROKEN = (httpx2.HTTPError, RuntimeError, OSError, ClosedResourceError)
_NOT_THIS_WAY = frozenset({400, 404, 405, 406, 415, 501})
"""HTTP statuses by which a server tells that it does not speak streamable HTTP at this address."""


def opener_of(definition: ServerDefinition, environment: Mapping[str, str], *, connect_seconds: float) -> SessionOpener:
    """Opens sessions with the server of `definition`; a command is looked up by the PATH of `environment`."""
    return _Opener(definition, environment, connect_seconds)


def quieten_libraries() -> None:
    """Keeps the libraries' own lines out of the log: what matters of them is told by us, once, and without addresses or secrets."""
    fastmcp_logger = logging.getLogger("fastmcp")
    for handler in list(fastmcp_logger.handlers):
        fastmcp_logger.removeHandler(handler)
    fastmcp_logger.propagate = True
    for name in ("fastmcp", "mcp", "httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class _Opener:
    """Opens sessions with one server, and remembers which transport it speaks."""

    def __init__(self, definition: ServerDefinition, environment: Mapping[str, str], connect_seconds: float) -> None:
        self._definition = definition
        self._environment = environment
        self._connect_seconds = connect_seconds
        self._transport: Transport | None = "stdio" if definition.command is not None else definition.transport

    @asynccontextmanager
    async def __call__(self, listener: Listener) -> AsyncGenerator[Session, None]:
        """A new session; raises ServerLost."""
        async with AsyncExitStack() as stack:
            yield await self._connected(stack, listener)

    async def _connected(self, stack: AsyncExitStack, listener: Listener) -> Session:
        if self._transport is not None:
            return await stack.enter_async_context(self._open(self._transport, listener))
        try:
            session = await stack.enter_async_context(self._open("http", listener))
        except _NotThisWay as not_http:
            try:
                session = await stack.enter_async_context(self._open("sse", listener))
            except ServerLost:
                raise not_http from None
        self._transport = session.transport
        return session

    @asynccontextmanager
    async def _open(self, transport: Transport, listener: Listener) -> AsyncGenerator["_Session", None]:
        """A session over `transport`, closed in the order that leaves nothing behind."""
        handler = _Handler(self._definition, listener)
        asked = Asked()
        stdio: StdioTransport | None = None
        stderr: Stderr | None = None
        async with AsyncExitStack() as stack:
            if transport == "stdio":
                stderr = await stack.enter_async_context(stderr_of(self._definition, listener))
                stdio = stdio_transport(self._definition, self._environment, stderr)
                stack.push_async_callback(stdio.closed)  # the client does not wait for a server that hangs at its start to be gone
            client: Client[Any] = Client(
                stdio or http_transport(self._definition, transport),
                name=self._definition.server_label,
                message_handler=handler.on_message,
                log_handler=handler.on_log,
                init_timeout=self._connect_seconds,
                client_info=Implementation(name="ai-agent-service", version=__version__),
            )
            token = asked_now.set(asked)
            try:
                async with asyncio.timeout(self._connect_seconds + 1):
                    await client.__aenter__()
            except (MCPError, ValidationError, TimeoutError, *_BROKEN) as error:
                if stderr is not None:
                    await stderr.finished()
                raise self._failure(error, asked, stderr) from None
            finally:
                asked_now.reset(token)
                if stderr is not None:
                    stderr.close_our_end()
            stack.push_async_callback(_left, client)
            session = _Session(client, transport, self._definition, stderr, handler)
            stack.push_async_callback(_ended, asyncio.create_task(_listen(client, listener)))
            yield session

    def _failure(self, error: Exception, asked: Asked, stderr: Stderr | None) -> ServerLost:
        """Why no session came about."""
        root = _root(error)
        # Through a task group the client's error loses its cause, and only its words tell that time ran out.
        if isinstance(root, TimeoutError) or "Failed to initialize server session" in str(root):
            reason = f"it did not answer within {self._connect_seconds:g} seconds"
        elif stderr is not None and stderr.how_it_ended:
            reason = f"it {stderr.how_it_ended}"
        elif asked.status is not None:
            reason = status_words(asked.status)
        elif isinstance(root, MCPError):
            reason = f"it refused the session ({root.error.message})"
        elif isinstance(root, ValidationError):
            reason = "its answer is not what MCP prescribes"
        else:
            reason = f"it cannot be reached ({str(root).strip() or type(root).__name__})"
        if stderr is not None and stderr.last_words:
            reason = f"{reason}: {stderr.last_words}"
        reason = words_of(reason, self._definition)
        if asked.status in _NOT_THIS_WAY:
            return _NotThisWay(reason, not_sent=True)
        return ServerLost(reason, not_sent=True)


class _NotThisWay(ServerLost):
    """The server does not speak this transport."""


class _Session:
    """A session that is open; see ai_agent_service/mcp/base.py."""

    def __init__(
        self, client: Client[Any], transport: Transport, definition: ServerDefinition, stderr: Stderr | None, handler: "_Handler"
    ) -> None:
        self.transport: Transport = transport
        self._client = client
        self._definition = definition
        self._stderr = stderr
        self._handler = handler

    async def list_tools(self) -> list[RemoteTool]:
        """All tools of the server."""
        capabilities = self._client.server_capabilities
        if capabilities is not None and capabilities.tools is None:
            return []
        try:
            async with asyncio.timeout(PING_SECONDS):
                tools = await self._client.list_tools()
        except (MCPError, ValidationError, TimeoutError, *_BROKEN) as error:
            raise ServerLost(f"it does not tell its tools ({self._words(error)})", not_sent=True) from None
        return [RemoteTool(tool.name, tool.description or tool.title or "", tool.input_schema) for tool in tools]

    async def call(self, name: str, arguments: dict[str, object], context: RunContext) -> ToolOutput:
        """Runs a tool; cancelling the call cancels it at the server."""
        asked = Asked()
        token = asked_now.set(asked)

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            context.report_progress(progress, total, without_its_keys(message or "", self._definition))

        try:
            result = await self._client.call_tool_mcp(name, _plain(arguments), progress_handler=on_progress)
        except MCPError as error:
            raise await self._failed(error, asked) from None
        except ValidationError:
            raise ToolFailed("the tool's answer is not what the Model Context Protocol prescribes") from None
        except InputRequiredRoundsExceededError:
            raise ToolFailed("the tool asks for more and more input, which nobody here can give") from None
        except _BROKEN as error:
            how = "it cannot be reached" if asked.found_nobody else "the connection broke"
            raise ServerLost(f"{how} ({self._words(error)})", not_sent=asked.found_nobody) from None
        finally:
            asked_now.reset(token)
        self._handler.junk = 0
        try:
            output = output_of(result)
        except ToolFailed as failed:
            raise ToolFailed(without_its_keys(str(failed), self._definition)) from None
        return msgspec.structs.replace(output, content=without_its_keys(output.content, self._definition))

    async def ping(self) -> None:
        """Returns if the server answers."""
        if self._client.protocol_version in MODERN_PROTOCOL_VERSIONS:  # which have no ping
            await self.list_tools()
            return
        asked = Asked()
        token = asked_now.set(asked)
        try:
            async with asyncio.timeout(PING_SECONDS):
                await self._client.ping()
        except MCPError as error:
            if _is_closed(error) or _is_cut_off(error) or asked.found_nobody:
                raise ServerLost("the connection broke") from None
            if asked.status is not None and error.error.code != METHOD_NOT_FOUND:  # which is said by a server that has no ping
                raise ServerLost(status_words(asked.status)) from None
        except TimeoutError:
            raise ServerLost(f"it did not answer within {PING_SECONDS:g} seconds") from None
        except _BROKEN as error:
            raise ServerLost(f"it cannot be reached ({self._words(error)})") from None
        finally:
            asked_now.reset(token)

    async def _failed(self, error: MCPError, asked: Asked) -> ToolFailed | ServerLost:
        if asked.found_nobody:
            return ServerLost("it cannot be reached", not_sent=True)
        if _is_cut_off(error):
            return ToolFailed("the server's answer broke off, and it is not known whether the call was carried out")
        if _is_closed(error):
            if self._stderr is None:
                return ServerLost("the connection broke")
            await self._stderr.finished()
            return ServerLost(self._stderr.reason)
        status = None if asked.was_taken else asked.status
        if status == 401:
            return ServerLost(status_words(status), not_sent=True)
        if status in (400, 404) and await self._is_forgotten(status):
            return ServerLost("it does not know the session any more", not_sent=True)
        if status is not None and (status == 403 or status >= 500):
            return ToolFailed(f"the tool's server answered with {status_words(status)}")
        words = words_of(error.error.message, self._definition, MAX_TOOL_WORDS)
        return ToolFailed(words or "the tool's server refused the call and did not say why")

    async def _is_forgotten(self, status: int) -> bool:
        """Whether a call that was refused with this HTTP status was so because the server does not know the session.

        The status for that is 404. Some servers say 400, and then they refuse whatever else is asked in the session.
        """
        if self.transport != "http" or self._client.transport.get_session_id() is None:
            return False
        if status == 404:
            return True
        try:
            async with asyncio.timeout(FORGOTTEN_SECONDS):
                await self._client.ping()
        except (MCPError, TimeoutError, *_BROKEN):
            return True
        return False

    def _words(self, error: Exception) -> str:
        root = _root(error)
        words = root.error.message if isinstance(root, MCPError) else str(root).strip()
        if isinstance(root, TimeoutError):
            words = "it takes too long"
        if "pagination limit" in words:
            words = "its list has no end"
        if isinstance(root, ValidationError):  # whose own words show what was sent
            first = root.errors(include_url=False, include_input=False)[0]
            words = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        return words_of(words or type(root).__name__, self._definition)


class _Handler:
    """What a server says unasked."""

    def __init__(self, definition: ServerDefinition, listener: Listener) -> None:
        self._definition = definition
        self._listener = listener
        self.junk = 0
        """Lines since the last answer that were no messages."""

    async def on_message(self, message: ServerNotification | Exception) -> None:
        """A notification, or the error that reading something else was."""
        if isinstance(message, ToolListChangedNotification):
            self._listener.tools_changed()
        elif isinstance(message, Exception) and self._definition.command is not None:
            self.junk += 1
            if self.junk == 1:
                logger.debug("mcp.junk", extra={"server": self._definition.server_label, "problem": "a line on stdout is not a message"})
            if self.junk == MAX_JUNK_LINES:
                self._listener.ended(f"it wrote {MAX_JUNK_LINES} lines to standard output that are not messages of the protocol")

    async def on_log(self, params: LoggingMessageNotificationParams) -> None:
        """A line of the server's log."""
        if logger.isEnabledFor(logging.DEBUG):
            line = words_of(str(params.data), self._definition)
            logger.debug("mcp.log", extra={"server": self._definition.server_label, "severity": params.level, "line": line})


async def _listen(client: Client[Any], listener: Listener) -> None:
    """Asks a server of the 2026 protocol to tell of changed tools, which it does only when asked; older ones tell by themselves."""
    capabilities = client.server_capabilities
    if client.protocol_version not in MODERN_PROTOCOL_VERSIONS or not (
        capabilities and capabilities.tools and capabilities.tools.list_changed
    ):
        return
    while True:
        try:
            async with listen(client.session, tools_list_changed=True) as subscription:
                listener.tools_changed()  # what happened until now was not told
                async for _ in subscription:
                    listener.tools_changed()
        except SubscriptionLost:
            pass
        except (MCPError, *_BROKEN):
            return  # it does not offer this after all, or is gone, which others notice
        await asyncio.sleep(LISTEN_AGAIN_SECONDS)


async def _left(client: Client[Any]) -> None:
    """Leaves a session; what broke it, which leaving it tells once more, is known by then."""
    try:
        await client.__aexit__(None, None, None)
    except (MCPError, ValidationError, *_BROKEN) as error:
        logger.debug("mcp.left", extra={"server": client.name, "problem": type(error).__name__})


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))  # which raises nothing but the cancellation of whoever waits
    if not task.cancelled():
        task.exception()


def _root(error: Exception) -> Exception:
    """What the client wrapped in words of its own."""
    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _is_closed(error: MCPError) -> bool:
    """Whether the library says that the connection is gone; a server may use the same code for errors of its own."""
    return error.error.code == CONNECTION_CLOSED and error.error.message == "Connection closed"


def _is_cut_off(error: MCPError) -> bool:
    """Whether the library says that the stream which was to have the answer ended without it; the session may be well."""
    return error.error.code == CONNECTION_CLOSED and error.error.message.startswith("SSE stream ")


def _plain(value: Any) -> Any:
    """`value` with numbers that JSON's libraries know."""
    match value:
        case Decimal():
            number = float(value)
            if number in (float("inf"), float("-inf")):
                raise ToolFailed("a number in the arguments is too large")
            return number
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case _:
            return value
