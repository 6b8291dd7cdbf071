"""Sessions with MCP servers by way of the fastmcp client; imported only where there is a server to connect to, for it takes a second."""

import asyncio
import logging
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import ContextVar
from decimal import Decimal
from http import HTTPStatus
from pathlib import Path
from typing import Any, Unpack

import httpx2
from anyio import ClosedResourceError
from fastmcp.client import Client
from fastmcp.client.transports import ClientTransport, SSETransport, StdioTransport, StreamableHttpTransport
from fastmcp.client.transports.base import SessionKwargs, TransportOptions
from mcp import ClientSession, MCPError
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost, listen
from mcp_types import (
    CONNECTION_CLOSED,
    CallToolResult,
    Implementation,
    LoggingMessageNotificationParams,
    ServerNotification,
    ToolListChangedNotification,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from app import __version__
from app.config.mcp import ServerDefinition, Transport
from app.core.context import RunContext
from app.core.errors import ToolFailed
from app.core.text import storable, without_secrets
from app.mcp import guard
from app.mcp.base import Listener, RemoteTool, ServerLost, Session, SessionOpener
from app.mcp.results import output_of
from app.tools.base import ToolOutput

logger = logging.getLogger(__name__)

MAX_EVENT_BYTES = 64 * 1024 * 1024
"""Of one event over HTTP: a result with its images."""

MAX_JUNK_LINES = 1_000
"""Lines on standard output that are no messages, after which a server is given up; each costs our time."""

MAX_REASON = 400
"""Characters of a server's own words in what we report of it."""

STDERR_BYTES_PER_SECOND = 1024 * 1024
"""Of a server's standard error; beyond, reading waits, and so does the server."""

MAX_STDERR_LINE = 2_000
LISTEN_AGAIN_SECONDS = 5.0
PING_SECONDS = 10.0
FORGOTTEN_SECONDS = 2.0

_statuses: ContextVar[list[int] | None] = ContextVar("_statuses", default=None)
"""Where the HTTP statuses of failed requests go: those made for the call under way."""

_NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
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


class _Unchecked(ClientSession):
    """A session that takes a tool's structured content as it is.

    The library would fail a call whose result does not match the tool's output schema, and would list the tools in the middle of it; the
    result is read by a model, which is not so particular.
    """

    async def validate_tool_result(self, name: str, result: CallToolResult) -> None:
        """Accepts it."""


_OPTIONS = TransportOptions(session_class=_Unchecked)


class _Transport(ClientTransport):
    """Opens such sessions, whichever transport is behind it."""

    @asynccontextmanager
    async def connect_session(
        self, *, transport_options: TransportOptions | None = None, **session_kwargs: Unpack[SessionKwargs]
    ) -> AsyncGenerator[ClientSession, None]:
        """A session; see fastmcp."""
        async with super().connect_session(transport_options=_OPTIONS, **session_kwargs) as session:
            yield session


class _Stdio(_Transport, StdioTransport):
    """A command; what the client itself leaves of one that hangs at its start is taken away by `disconnect`."""


class _Http(_Transport, StreamableHttpTransport):
    """An address that speaks streamable HTTP."""


class _Sse(_Transport, SSETransport):
    """An address that speaks the older HTTP with server-sent events."""


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
        statuses: list[int] = []
        token = _statuses.set(statuses)
        stdio: _Stdio | None = None
        stderr: _Stderr | None = None
        async with AsyncExitStack() as stack:
            if transport == "stdio":
                stderr = await stack.enter_async_context(_stderr_of(self._definition, listener))
                stdio = self._stdio(stderr)
                stack.push_async_callback(stdio.disconnect)  # the client itself leaves a server that hangs at its start to its fate
            client: Client[Any] = Client(
                stdio or self._over_http(transport),
                name=self._definition.server_label,
                message_handler=handler.on_message,
                log_handler=handler.on_log,
                init_timeout=self._connect_seconds,
                client_info=Implementation(name="ai-agent-service", version=__version__),
            )
            try:
                async with asyncio.timeout(self._connect_seconds + 1):
                    await client.__aenter__()
            except (MCPError, ValidationError, TimeoutError, *_BROKEN) as error:
                if stderr is not None:
                    await stderr.finished()
                raise self._failure(error, statuses, stderr) from None
            finally:
                _statuses.reset(token)
                if stderr is not None:
                    stderr.close_our_end()
            stack.push_async_exit(client.__aexit__)
            session = _Session(client, transport, self._definition, stderr)
            stack.push_async_callback(_ended, asyncio.create_task(_listen(client, listener)))
            yield session

    def _stdio(self, stderr: "_Stderr") -> _Stdio:
        definition = self._definition
        assert definition.command is not None
        path = definition.env.get("PATH") or self._environment.get("PATH")
        if shutil.which(definition.command, path=path) is None:
            raise ServerLost(f"the command {definition.command!r} is not found; install it, or name it with its full path", not_sent=True)
        if definition.cwd is not None and not Path(definition.cwd).is_dir():
            raise ServerLost(f"its cwd {definition.cwd!r} is no folder", not_sent=True)
        command = [definition.command, *definition.args]
        if os.name == "posix":
            command = [sys.executable, "-I", "-S", guard.__file__, *command]
        return _Stdio(command[0], command[1:], env=dict(definition.env), cwd=definition.cwd, keep_alive=False, log_file=stderr.theirs)

    def _over_http(self, transport: Transport) -> _Http | _Sse:
        definition = self._definition
        assert definition.server_url is not None
        if transport == "sse":
            return _Sse(definition.server_url, headers=definition.header, sse_read_timeout=86_400, httpx_client_factory=_http_client)
        return _Http(
            definition.server_url, headers=definition.header, httpx_client_factory=_http_client, max_sse_event_size=MAX_EVENT_BYTES
        )

    def _failure(self, error: Exception, statuses: list[int], stderr: "_Stderr | None") -> ServerLost:
        """Why no session came about."""
        root = error.__cause__ if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception) else error
        if stderr is not None and stderr.how_it_ended:
            reason = f"it {stderr.how_it_ended}"
        elif isinstance(root, TimeoutError) or isinstance(root.__cause__, TimeoutError):
            reason = f"it did not answer within {self._connect_seconds:g} seconds"
        elif statuses:
            reason = _status_reason(statuses[-1])
        elif isinstance(root, MCPError):
            reason = f"it refused the session ({root.error.message})"
        elif isinstance(root, ValidationError):
            reason = "its answer is not what MCP prescribes"
        else:
            reason = f"it cannot be reached ({str(root).strip() or type(root).__name__})"
        if stderr is not None and stderr.last_words:
            reason = f"{reason}: {stderr.last_words}"
        reason = _safe(reason, self._definition)
        if statuses and statuses[-1] in _NOT_THIS_WAY:
            return _NotThisWay(reason, not_sent=True)
        return ServerLost(reason, not_sent=True)


class _NotThisWay(ServerLost):
    """The server does not speak this transport."""


class _Session:
    """A session that is open; see app/mcp/base.py."""

    def __init__(self, client: Client[Any], transport: Transport, definition: ServerDefinition, stderr: "_Stderr | None") -> None:
        self.transport: Transport = transport
        self._client = client
        self._definition = definition
        self._stderr = stderr

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
        statuses: list[int] = []
        token = _statuses.set(statuses)

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            context.report_progress(progress, total, message or "")

        try:
            result = await self._client.call_tool_mcp(name, _plain(arguments), progress_handler=on_progress)
        except MCPError as error:
            raise await self._failed(error, statuses) from None
        except ValidationError:
            raise ToolFailed("the tool's answer is not what the Model Context Protocol prescribes") from None
        except _NOT_SENT as error:
            raise ServerLost(f"it cannot be reached ({self._words(error)})", not_sent=True) from None
        except _BROKEN as error:
            raise ServerLost(f"the connection broke ({self._words(error)})") from None
        finally:
            _statuses.reset(token)
        return output_of(result)

    async def ping(self) -> None:
        """Returns if the server answers."""
        if self._client.protocol_version in MODERN_PROTOCOL_VERSIONS:  # which have no ping
            await self.list_tools()
            return
        try:
            async with asyncio.timeout(PING_SECONDS):
                await self._client.ping()
        except MCPError as error:
            if _is_closed(error):
                raise ServerLost("the connection broke") from None
        except TimeoutError:
            raise ServerLost(f"it did not answer within {PING_SECONDS:g} seconds") from None
        except _BROKEN as error:
            raise ServerLost(f"it cannot be reached ({self._words(error)})") from None

    async def _failed(self, error: MCPError, statuses: list[int]) -> ToolFailed | ServerLost:
        status = statuses[-1] if statuses else None
        if _is_closed(error):
            if self._stderr is not None:
                await self._stderr.finished()
            return ServerLost(self._stderr.reason if self._stderr is not None else "the connection broke")
        if status in (401, 403):
            return ServerLost(_status_reason(status), not_sent=True)
        if status in (400, 404) and await self._is_forgotten(status):
            return ServerLost("it does not know the session any more", not_sent=True)
        if status is not None and status >= 500:
            return ToolFailed(f"the tool's server answered with {_status_reason(status)}")
        return ToolFailed(_safe(error.error.message, self._definition) or "the tool's server refused the call and did not say why")

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
        words = error.error.message if isinstance(error, MCPError) else str(error).strip()
        return _safe(words or type(error).__name__, self._definition)


class _Handler:
    """What a server says unasked."""

    def __init__(self, definition: ServerDefinition, listener: Listener) -> None:
        self._definition = definition
        self._listener = listener
        self._junk = 0

    async def on_message(self, message: ServerNotification | Exception) -> None:
        """A notification, or the error that reading something else was."""
        if isinstance(message, ToolListChangedNotification):
            self._listener.tools_changed()
        elif isinstance(message, Exception) and self._definition.command is not None:
            self._junk += 1
            if self._junk == 1:
                logger.debug("mcp.junk", extra={"server": self._definition.server_label, "problem": "a line on stdout is not a message"})
            if self._junk == MAX_JUNK_LINES:
                self._listener.ended(f"it wrote {MAX_JUNK_LINES} lines to standard output that are not messages of the protocol")

    async def on_log(self, params: LoggingMessageNotificationParams) -> None:
        """A line of the server's log."""
        if logger.isEnabledFor(logging.DEBUG):
            line = _safe(str(params.data), self._definition)
            logger.debug("mcp.log", extra={"server": self._definition.server_label, "level": params.level, "line": line})


async def _listen(client: Client[Any], listener: Listener) -> None:
    """Asks a server of the 2026 protocol to tell of changed tools, which it does only when asked; older ones tell by themselves."""
    capabilities = client.server_capabilities
    if client.protocol_version not in MODERN_PROTOCOL_VERSIONS or not (
        capabilities and capabilities.tools and capabilities.tools.list_changed
    ):
        return
    while True:
        with suppress(SubscriptionLost, TimeoutError):
            try:
                async with listen(client.session, tools_list_changed=True) as subscription:
                    async for _ in subscription:
                        listener.tools_changed()
            except (MCPError, ListenNotSupportedError, *_BROKEN) as error:
                if isinstance(error, SubscriptionLost):
                    raise
                return  # it does not offer this after all, or is gone, which others notice
        await asyncio.sleep(LISTEN_AGAIN_SECONDS)
        listener.tools_changed()  # what happened in between is not told


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


class _Stderr:
    """A server's standard error: read to its end, logged at debug level, its last lines remembered."""

    def __init__(self, definition: ServerDefinition, listener: Listener) -> None:
        read, write = os.pipe()
        self.theirs = os.fdopen(write, "w", encoding="utf-8")
        self.ours = os.fdopen(read, "rb", buffering=0)
        self.how_it_ended = ""
        self._definition = definition
        self._listener = listener
        self._lines: deque[str] = deque(maxlen=3)
        self._end = asyncio.Event()

    @property
    def last_words(self) -> str:
        """The last lines that were not empty."""
        return " | ".join(self._lines)

    def close_our_end(self) -> None:
        """Leaves the writing to the server, so that its end is seen."""
        self.theirs.close()

    async def finished(self) -> None:
        """Returns when all is read; a process that the server left behind does not keep us."""
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await self._end.wait()

    async def read(self, reader: asyncio.StreamReader) -> None:
        """Reads until the last process that holds the other end is gone."""
        rest = b""
        allowance = float(STDERR_BYTES_PER_SECOND)
        before = time.monotonic()
        while piece := await reader.read(64 * 1024):
            *lines, rest = (rest + piece).split(b"\n")
            rest = rest[:MAX_STDERR_LINE]
            for line in lines:
                self._line(line)
            now = time.monotonic()
            allowance = min(STDERR_BYTES_PER_SECOND, allowance + (now - before) * STDERR_BYTES_PER_SECOND) - len(piece)
            before = now
            if allowance < 0:
                await asyncio.sleep(-allowance / STDERR_BYTES_PER_SECOND)
        self._line(rest)
        self._end.set()
        if not self.how_it_ended:
            self.how_it_ended = "ended"
        self._listener.ended(self.reason)

    def _line(self, line: bytes) -> None:
        text = line[:MAX_STDERR_LINE].decode(errors="replace").rstrip()
        if text.startswith(guard.EXITED):
            self.how_it_ended = text.removeprefix(guard.EXITED)
            self._end.set()
            self._listener.ended(self.reason)
        elif text.strip():
            self._lines.append(text)
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug("mcp.stderr", extra={"server": self._definition.server_label, "line": _safe(text, self._definition)})

    @property
    def reason(self) -> str:
        """How the server ended, and its last words."""
        words = f": {self.last_words}" if self.last_words else ""
        return _safe(f"it {self.how_it_ended or 'closed its output'}{words}", self._definition)


@asynccontextmanager
async def _stderr_of(definition: ServerDefinition, listener: Listener) -> AsyncGenerator[_Stderr, None]:
    stderr = _Stderr(definition, listener)
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), stderr.ours)
    task = asyncio.create_task(stderr.read(reader))
    try:
        yield stderr
    finally:
        stderr.close_our_end()
        await _ended(task)
        transport.close()


def _http_client(
    headers: dict[str, str] | None = None, timeout: httpx2.Timeout | None = None, auth: httpx2.Auth | None = None, **_: Any
) -> httpx2.AsyncClient:
    """A client without a limit on how long an answer takes: each call has its own, and a stream of notifications has none."""
    return httpx2.AsyncClient(
        headers=headers,
        auth=auth,
        timeout=httpx2.Timeout(10.0, read=None),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
        event_hooks={"response": [_note_status]},
    )


async def _note_status(response: httpx2.Response) -> None:
    statuses = _statuses.get()
    if response.status_code >= 400 and statuses is not None:
        statuses.append(response.status_code)


def _status_reason(status: int) -> str:
    try:
        phrase = f" {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = ""
    hint = "; check the header and the variables in its definition" if status in (401, 403) else ""
    return f"HTTP {status}{phrase}{hint}"


def _is_closed(error: MCPError) -> bool:
    """Whether the library says that the connection is gone; a server may use the same code for errors of its own."""
    words = error.error.message
    return error.error.code == CONNECTION_CLOSED and (words == "Connection closed" or words.startswith("SSE stream "))


def _safe(text: str, definition: ServerDefinition) -> str:
    """`text` on one line, cut, and without the values of the server's variables."""
    return storable(without_secrets(" ".join(text.split()), definition.secrets))[:MAX_REASON]


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
