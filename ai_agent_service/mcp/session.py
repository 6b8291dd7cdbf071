"""Open sessions with MCP servers through the fastmcp client.

Imported only if there is a server to connect to, since that takes a second.
"""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from typing import Any

import httpx2
from anyio import ClosedResourceError
from fastmcp.client import Client
from mcp import MCPError
from mcp.client._input_required import InputRequiredRoundsExceededError
from mcp.client.subscriptions import SubscriptionLost, listen
from mcp_types import (
    CONNECTION_CLOSED,
    METHOD_NOT_FOUND,
    CallToolResult,
    ErrorData,
    Implementation,
    LoggingMessageNotificationParams,
    ServerNotification,
    Tool,
    ToolListChangedNotification,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from ai_agent_service import __version__
from ai_agent_service.config.server_definition import ServerDefinition, Transport
from ai_agent_service.core.bounds import MAX_TOOL_PAGES
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import ToolError
from ai_agent_service.mcp.base import (
    McpSession,
    RemoteTool,
    ServerConnectionError,
    SessionListener,
    SessionOpener,
)
from ai_agent_service.mcp.content import to_tool_output
from ai_agent_service.mcp.http import RequestOutcome, build_http_transport, track_requests
from ai_agent_service.mcp.lenient import read_tool
from ai_agent_service.mcp.session_refusals import SESSION_STATUSES, is_session_refusal
from ai_agent_service.mcp.stdio import Stderr, StdioTransport, build_stdio_transport, open_stderr
from ai_agent_service.mcp.wording import (
    describe_status,
    redact_credentials,
    redact_output,
    sanitize_message,
)
from ai_agent_service.tools.base import ToolOutput

logger = logging.getLogger(__name__)

MAX_INVALID_LINES = 1_000
"""Lines on standard output that are not messages, after which a server is given up."""

MAX_TOOL_MESSAGE_LENGTH = 4_000
"""Characters of a server's refusal that reach the model."""

MAX_QUOTED_LINE = 200

LISTEN_RETRY_SECONDS = 5.0
PING_SECONDS = 10.0
SESSION_CHECK_SECONDS = 2.0

_CONNECTION_ERRORS = (httpx2.HTTPError, RuntimeError, OSError, ClosedResourceError)
_SESSION_ERRORS = (MCPError, ValidationError, *_CONNECTION_ERRORS)
_LIBRARY_WORDS = ("Server returned an error response", "Session terminated", "Not Found")
"""Words of the library for an HTTP error without a message of the server."""

_OTHER_VERSION = re.compile("Unsupported protocol version from the server: (.*)")
_WRONG_TRANSPORT_STATUSES = frozenset({400, 404, 405, 406, 415, 501})
"""HTTP statuses of a server that does not speak streamable HTTP at this address."""


def build_opener(
    definition: ServerDefinition, environment: Mapping[str, str], *, connect_seconds: float
) -> SessionOpener:
    """Return an opener for the server of `definition`; a command is searched in the PATH of
    `environment`."""
    return _FastMcpOpener(definition, environment, connect_seconds)


def quieten_libraries() -> None:
    """Keep the libraries' lines out of the log; ours report what matters once, without addresses or
    secrets."""
    fastmcp_logger = logging.getLogger("fastmcp")
    for handler in list(fastmcp_logger.handlers):
        fastmcp_logger.removeHandler(handler)
    fastmcp_logger.propagate = True
    for name in ("fastmcp", "mcp", "httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class _FastMcpOpener:
    """Opens sessions with one server, and remembers which transport it speaks."""

    def __init__(
        self, definition: ServerDefinition, environment: Mapping[str, str], connect_seconds: float
    ) -> None:
        self._definition = definition
        self._environment = environment
        self._connect_seconds = connect_seconds
        self._transport: Transport | None = (
            "stdio" if definition.command is not None else definition.transport
        )

    @asynccontextmanager
    async def __call__(self, listener: SessionListener) -> AsyncGenerator[McpSession, None]:
        """Yield a new session; raises ServerConnectionError."""
        async with AsyncExitStack() as stack:
            yield await self._connect(stack, listener)

    async def _connect(self, stack: AsyncExitStack, listener: SessionListener) -> McpSession:
        if self._transport is not None:
            return await stack.enter_async_context(self._open(self._transport, listener))
        try:
            session = await stack.enter_async_context(self._open("http", listener))
        except _UnsupportedTransportError as not_http:
            try:
                session = await stack.enter_async_context(self._open("sse", listener))
            except ServerConnectionError:
                raise not_http from None
        self._transport = session.transport
        return session

    @asynccontextmanager
    async def _open(
        self, transport: Transport, listener: SessionListener
    ) -> AsyncGenerator["_FastMcpSession", None]:
        """Yield a session over `transport`, closed in the order that leaves nothing behind."""
        handler = _NotificationHandler(self._definition, listener)
        stdio: StdioTransport | None = None
        stderr: Stderr | None = None
        async with AsyncExitStack() as stack:
            if transport == "stdio":
                stderr = await stack.enter_async_context(open_stderr(self._definition, listener))
                stdio = build_stdio_transport(self._definition, self._environment, stderr)
                # The client does not wait until a server that hangs at its start is gone.
                stack.push_async_callback(stdio.wait_closed)
            client: Client[Any] = Client(
                stdio or build_http_transport(self._definition, transport),
                name=self._definition.server_label,
                message_handler=handler.handle_message,
                log_handler=handler.handle_log,
                init_timeout=self._connect_seconds,
                client_info=Implementation(name="ai-agent-service", version=__version__),
            )
            outcome = RequestOutcome()
            try:
                with track_requests(outcome):
                    async with asyncio.timeout(self._connect_seconds + 1):
                        await client.__aenter__()
            except _SESSION_ERRORS as error:
                if stderr is not None:
                    await stderr.wait_for_end()
                raise self._build_error(error, outcome, stderr, handler) from None
            finally:
                if stderr is not None:
                    stderr.close_write_end()
            stack.push_async_callback(_close_client, client)
            session = _FastMcpSession(client, transport, self._definition, stderr, handler)
            stack.push_async_callback(_cancel_task, asyncio.create_task(_listen(client, listener)))
            yield session

    def _build_error(
        self,
        error: Exception,
        outcome: RequestOutcome,
        stderr: Stderr | None,
        handler: "_NotificationHandler",
    ) -> ServerConnectionError:
        """Return the reason why the session could not be opened."""
        reason = self._describe_start(_find_root_cause(error), outcome, stderr)
        if stderr is not None and stderr.last_lines:
            reason = f"{reason}: {stderr.last_lines}"
        elif handler.invalid_lines:
            line = handler.first_invalid_line
            reason = f"{reason}; it writes what is not a message of the protocol: {line}"
        reason = sanitize_message(reason, self._definition)
        is_unsupported = outcome.status in _WRONG_TRANSPORT_STATUSES
        kind = _UnsupportedTransportError if is_unsupported else ServerConnectionError
        return kind(reason, not_sent=True)

    def _describe_start(
        self, root: Exception, outcome: RequestOutcome, stderr: Stderr | None
    ) -> str:
        """Return what went wrong. A command that is given up ends too, which is not the reason."""
        if outcome.status is not None:
            said = root.error.message if isinstance(root, MCPError) else ""
            words = "" if said in ("", *_LIBRARY_WORDS) else f": {said}"
            return f"{describe_status(outcome.status)}{words}"
        if outcome.refusal:
            return outcome.refusal
        # In a task group the client's error loses its cause, so that only its message shows that
        # time ran out.
        if isinstance(root, TimeoutError) or "Failed to initialize server session" in str(root):
            return f"it did not answer within {self._connect_seconds:g} seconds"
        if (match := _OTHER_VERSION.search(str(root))) is not None:
            return f"it speaks version {match[1]} of the protocol, which is not supported"
        if isinstance(root, MCPError) and not _is_closed(root):
            return f"it refused the session ({root.error.message})"
        if isinstance(root, ValidationError):
            return f"its answer is not what MCP prescribes ({_describe_cause(root)})"
        if stderr is not None:
            return f"it {stderr.exit_reason or 'closed its output'}"
        return f"it cannot be reached ({_describe_cause(root)})"


class _UnsupportedTransportError(ServerConnectionError):
    """The server does not speak this transport."""


class _FastMcpSession:
    """An open session; see `McpSession`."""

    def __init__(
        self,
        client: Client[Any],
        transport: Transport,
        definition: ServerDefinition,
        stderr: Stderr | None,
        handler: "_NotificationHandler",
    ) -> None:
        self.transport: Transport = transport
        self._client = client
        self._definition = definition
        self._stderr = stderr
        self._handler = handler

    @property
    def _has_session(self) -> bool:
        return self.transport == "http" and self._client.transport.get_session_id() is not None

    async def list_tools(self) -> list[RemoteTool]:
        """Return all tools of the server, those before a page that it refuses too."""
        capabilities = self._client.server_capabilities
        if capabilities is not None and capabilities.tools is None:
            return []
        listed: list[RemoteTool] = []
        try:
            async with asyncio.timeout(PING_SECONDS):
                async for page in self._iterate_pages():
                    listed += map(read_tool, page)
        except _SESSION_ERRORS as error:
            reason = f"it does not list its tools ({self._describe_error(error)})"
            if not listed or not isinstance(error, MCPError) or _is_closed(error):
                raise ServerConnectionError(reason, not_sent=True) from None
            listed.append(RemoteTool("", "", {}, problem=f"after {len(listed)} tools {reason}"))
        return listed

    async def _iterate_pages(self) -> AsyncGenerator[list[Tool], None]:
        cursor: str | None = None
        seen: set[str | None] = set()
        while cursor not in seen:
            if len(seen) == MAX_TOOL_PAGES:
                raise RuntimeError("its list has no end")
            seen.add(cursor)
            result = await self._client.list_tools_mcp(cursor=cursor)
            yield result.tools
            if (cursor := result.next_cursor) is None:
                return

    async def call(
        self, name: str, arguments: dict[str, object], context: RunContext
    ) -> ToolOutput:
        """Run a tool; cancelling the call cancels it at the server."""

        async def forward_progress(
            progress: float, total: float | None, message: str | None
        ) -> None:
            text = redact_credentials(message or "", self._definition)
            context.report_progress(progress, total, text)

        outcome = RequestOutcome()
        try:
            with track_requests(outcome):
                result = await self._run_until_refused(
                    self._client.call_tool_mcp(
                        name, _convert_decimals(arguments), progress_handler=forward_progress
                    ),
                    outcome,
                )
        except MCPError as error:
            raise await self._build_call_error(error, outcome) from None
        except ValidationError:
            raise ToolError(
                "the tool's answer is not what the Model Context Protocol prescribes"
            ) from None
        except InputRequiredRoundsExceededError:
            raise ToolError(
                "the tool asks for more and more input, which nobody here can give"
            ) from None
        except _CONNECTION_ERRORS as error:
            how = "it cannot be reached" if outcome.was_not_sent else "the connection broke"
            raise ServerConnectionError(
                f"{how} ({self._describe_error(error)})", not_sent=outcome.was_not_sent
            ) from None
        self._handler.invalid_lines = 0
        try:
            output = to_tool_output(result.structured_content)
        except ToolError as failed:
            raise ToolError(redact_credentials(str(failed), self._definition)) from None
        return redact_output(output, self._definition)

    async def ping(self) -> None:
        """Return if the server answers."""
        if self._client.protocol_version in MODERN_PROTOCOL_VERSIONS:  # which have no ping
            await self.list_tools()
            return
        outcome = RequestOutcome()
        try:
            with track_requests(outcome):
                async with asyncio.timeout(PING_SECONDS):
                    await self._client.ping()
        except MCPError as error:
            if _is_closed(error) or _is_cut_off(error) or outcome.was_not_sent:
                raise ServerConnectionError("the connection broke") from None
            # METHOD_NOT_FOUND is the answer of a server that has no ping.
            if error.error.code != METHOD_NOT_FOUND:
                if outcome.status is not None:
                    raise ServerConnectionError(describe_status(outcome.status)) from None
                await self.list_tools()
        except TimeoutError:
            raise ServerConnectionError(
                f"it did not answer within {PING_SECONDS:g} seconds"
            ) from None
        except _CONNECTION_ERRORS as error:
            raise ServerConnectionError(
                f"it cannot be reached ({self._describe_error(error)})"
            ) from None

    async def _build_call_error(
        self, error: MCPError, outcome: RequestOutcome
    ) -> ToolError | ServerConnectionError:
        if outcome.was_not_sent:
            return ServerConnectionError("it cannot be reached", not_sent=True)
        if outcome.refusal:
            return ToolError(outcome.refusal)
        if _is_cut_off(error):
            return ToolError(
                "the server's answer broke off, and it is not known whether the call was"
                " carried out"
            )
        if _is_closed(error):
            if self._stderr is None:
                return ServerConnectionError("the connection broke")
            await self._stderr.wait_for_end()
            return ServerConnectionError(self._stderr.reason)
        status = None if outcome.was_accepted else outcome.status
        if status == 401:
            return ServerConnectionError(describe_status(status), not_sent=True)
        if is_session_refusal(error.error, status, has_session=self._has_session) and (
            refusal := await self._find_session_refusal()
        ):
            # The same words for a listing show that the tool did not speak.
            return ServerConnectionError(
                "it does not know the session any more",
                not_sent=status in SESSION_STATUSES
                or (refusal.code, refusal.message) == (error.error.code, error.error.message),
            )
        words = sanitize_message(error.error.message, self._definition, MAX_TOOL_MESSAGE_LENGTH)
        if status is not None and (status == 403 or status == 429 or status >= 500):
            said = "" if error.error.message in _LIBRARY_WORDS else f": {words}"
            return ToolError(f"the tool's server answered with {describe_status(status)}{said}")
        return ToolError(words or "the tool's server refused the call and did not say why")

    async def _find_session_refusal(self) -> ErrorData | None:
        """Return the error by which the server refuses to list its tools in this session; None if
        it lists them.

        A server that does not know a session refuses everything in it. It may answer a ping even
        then, as the Python library does before a session is initialized.
        """
        try:
            async with asyncio.timeout(SESSION_CHECK_SECONDS):
                await self._client.list_tools_mcp()
        except MCPError as error:
            return None if error.error.code == METHOD_NOT_FOUND else error.error
        except (ValidationError, *_CONNECTION_ERRORS) as error:
            return ErrorData(code=CONNECTION_CLOSED, message=str(error))
        return None

    async def _run_until_refused(
        self, call: Coroutine[Any, Any, CallToolResult], outcome: RequestOutcome
    ) -> CallToolResult:
        """Return the result of `call`; over the older HTTP the library would wait for the answer
        even if the server refused to take the call."""
        if self.transport != "sse":
            return await call
        running, refused = (
            asyncio.ensure_future(call),
            asyncio.ensure_future(outcome.refused.wait()),
        )
        try:
            await asyncio.wait((running, refused), return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
            assert outcome.status is not None
            raise ServerConnectionError(
                describe_status(outcome.status), not_sent=outcome.status < 500
            )
        finally:
            running.cancel()
            refused.cancel()
            await asyncio.wait((running, refused))

    def _describe_error(self, error: Exception) -> str:
        return sanitize_message(_describe_cause(_find_root_cause(error)), self._definition)


class _NotificationHandler:
    """Handles what a server sends without being asked."""

    def __init__(self, definition: ServerDefinition, listener: SessionListener) -> None:
        self._definition = definition
        self._listener = listener
        self.invalid_lines = 0
        """Lines since the last answer that were not messages."""
        self.first_invalid_line = ""

    async def handle_message(self, message: ServerNotification | Exception) -> None:
        """Handle a notification, or the error of reading a message."""
        if isinstance(message, ToolListChangedNotification):
            self._listener.handle_tools_changed()
        elif isinstance(message, Exception) and self._definition.command is not None:
            self.invalid_lines += 1
            if self.invalid_lines == 1:
                self.first_invalid_line = _quote_line(message)
                self._log("mcp.junk", problem="a line on stdout is not a message")
            if self.invalid_lines == MAX_INVALID_LINES:
                self._listener.handle_session_end(
                    f"it wrote {MAX_INVALID_LINES} lines to standard output that are not messages"
                    " of the protocol"
                )

    async def handle_log(self, params: LoggingMessageNotificationParams) -> None:
        """Log a line of the server's log."""
        if logger.isEnabledFor(logging.DEBUG):
            line = sanitize_message(str(params.data), self._definition)
            self._log("mcp.log", severity=params.level, line=line)

    def _log(self, event: str, **fields: str) -> None:
        logger.debug(event, extra={"server": self._definition.server_label, **fields})


async def _listen(client: Client[Any], listener: SessionListener) -> None:
    """Subscribe to changed tools at a server of the 2026 protocol; older ones report them
    unasked."""
    capabilities = client.server_capabilities
    if client.protocol_version not in MODERN_PROTOCOL_VERSIONS or not (
        capabilities and capabilities.tools and capabilities.tools.list_changed
    ):
        return
    while True:
        try:
            async with listen(client.session, tools_list_changed=True) as subscription:
                listener.handle_tools_changed()  # it may have missed a change
                async for _ in subscription:
                    listener.handle_tools_changed()
        except SubscriptionLost:
            pass
        except (MCPError, *_CONNECTION_ERRORS):
            return  # it does not offer this after all, or is gone, which the session notices
        await asyncio.sleep(LISTEN_RETRY_SECONDS)


def _quote_line(error: Exception) -> str:
    """Return the beginning of a line that the library refused."""
    line = (
        error.errors(include_url=False, include_context=False)[0]["input"]
        if isinstance(error, ValidationError)
        else ""
    )
    return line[:MAX_QUOTED_LINE].strip() if isinstance(line, str) else ""


async def _close_client(client: Client[Any]) -> None:
    """Leave a session; an error that broke it, which leaving raises again, is known by then."""
    try:
        await client.__aexit__(None, None, None)
    except _SESSION_ERRORS as error:
        logger.debug("mcp.left", extra={"server": client.name, "problem": type(error).__name__})


async def _cancel_task(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))  # raises only if this task is cancelled
    if not task.cancelled():
        task.exception()


def _find_root_cause(error: Exception) -> Exception:
    """Return the error that the client wrapped in its own."""
    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _describe_cause(error: Exception) -> str:
    match error:
        case TimeoutError():
            return "it takes too long"
        case ValidationError():  # whose own message shows what was sent
            first = error.errors(include_url=False, include_input=False)[0]
            return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        case MCPError():
            words = error.error.message
        case _:
            words = str(error).strip()
    return words or type(error).__name__


def _is_closed(error: MCPError) -> bool:
    """Return whether the library reports a closed connection; servers may use the code for other
    errors."""
    return error.error.code == CONNECTION_CLOSED and error.error.message == "Connection closed"


def _is_cut_off(error: MCPError) -> bool:
    """Return whether the library reports a stream that ended without the answer; the session may
    still work."""
    return error.error.code == CONNECTION_CLOSED and error.error.message.startswith("SSE stream ")


def _convert_decimals(value: Any) -> Any:
    """Return `value` with floats instead of Decimals, which JSON libraries do not know."""
    match value:
        case Decimal():
            number = float(value)
            if number in (float("inf"), float("-inf")):
                raise ToolError("a number in the arguments is too large")
            return number
        case dict():
            return {key: _convert_decimals(item) for key, item in value.items()}
        case list():
            return [_convert_decimals(item) for item in value]
        case _:
            return value
