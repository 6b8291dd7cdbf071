"""Run MCP servers as commands."""

import asyncio
import logging
import os
import re
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TextIO, Unpack

from fastmcp.client.transports import ClientTransport
from fastmcp.client.transports.base import SessionKwargs, TransportOptions
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

from ai_agent_service.config.server_definition import ServerDefinition
from ai_agent_service.mcp import process_guard as guard
from ai_agent_service.mcp.base import ServerConnectionError, SessionListener
from ai_agent_service.mcp.client_session import LenientSession
from ai_agent_service.mcp.wording import sanitize_message

logger = logging.getLogger(__name__)

STDERR_BYTES_PER_SECOND = 1024 * 1024
"""Of a server's standard error; beyond that, reading waits, and so does the server."""

MAX_STDERR_LINE = 2_000
END_WAIT_SECONDS = 0.5

_NOISE = re.compile(
    r"\s+at |\s*[\]\[{}()^~]+[,;]?\s*$|Node\.js v|npm (?:ERR!|error) A complete log|Traceback \("
)
"""Lines around an error that do not say what it is: frames of a stack, brackets, versions."""


def build_stdio_transport(
    definition: ServerDefinition, environment: Mapping[str, str], stderr: "Stderr"
) -> "StdioTransport":
    """Return the transport that runs the command of `definition`, found in its own PATH or that of
    `environment`; raises ServerConnectionError."""
    assert definition.command is not None
    if definition.find_command_problem(environment):
        raise ServerConnectionError(
            f"the command {definition.command!r} is not found any more", not_sent=True
        )
    if definition.cwd is not None and not Path(definition.cwd).is_dir():
        raise ServerConnectionError(f"its cwd {definition.cwd!r} is no folder", not_sent=True)
    command, *arguments = definition.command, *definition.args
    if os.name == "posix":
        command, arguments = sys.executable, ["-I", "-S", guard.__file__, command, *arguments]
    parameters = StdioServerParameters(
        command=command,
        args=arguments,
        env=definition.env,
        cwd=definition.cwd,
        encoding_error_handler="replace",
    )
    return StdioTransport(parameters, stderr.write_end)


class StdioTransport(ClientTransport):
    """Runs a command. The client's own transport stops waiting for a hanging server before that has
    ended."""

    def __init__(self, parameters: StdioServerParameters, stderr: TextIO) -> None:
        self._parameters = parameters
        self._stderr = stderr
        self._closed = asyncio.Event()
        self._closed.set()

    @asynccontextmanager
    async def connect_session(
        self,
        *,
        transport_options: TransportOptions | None = None,
        **session_kwargs: Unpack[SessionKwargs],
    ) -> AsyncGenerator[ClientSession, None]:
        """Start the command, and end it at the exit."""
        self._closed.clear()
        try:
            async with (
                stdio_client(self._parameters, errlog=self._stderr) as (read, write),
                LenientSession(read, write, **session_kwargs) as session,
            ):
                yield session
        finally:
            self._closed.set()

    async def wait_closed(self) -> None:
        """Return when nothing of the command is left."""
        await self._closed.wait()


class Stderr:
    """A server's standard error: logged at debug level, with its last lines kept."""

    def __init__(self, definition: ServerDefinition, listener: SessionListener) -> None:
        read, write = os.pipe()
        self.write_end = os.fdopen(write, "w", encoding="utf-8")
        self.read_end = os.fdopen(read, "rb", buffering=0)
        self.exit_reason = ""
        self._definition = definition
        self._listener = listener
        self._lines: deque[str] = deque(maxlen=3)
        self._end = asyncio.Event()

    @property
    def last_lines(self) -> str:
        """The last lines that were not empty."""
        return " | ".join(self._lines)

    def close_write_end(self) -> None:
        """Leave the write end to the server, so that its end is noticed."""
        self.write_end.close()

    async def wait_for_end(self) -> None:
        """Return when all is read, or soon if a process that the server left behind keeps it
        open."""
        with suppress(TimeoutError):
            async with asyncio.timeout(END_WAIT_SECONDS):
                await self._end.wait()

    async def read(self, reader: asyncio.StreamReader) -> None:
        """Read until the last process that has the other end is gone."""
        rest = b""
        allowance = float(STDERR_BYTES_PER_SECOND)
        before = time.monotonic()
        while piece := await reader.read(64 * 1024):
            *lines, rest = (rest + piece).split(b"\n")
            rest = rest[-MAX_STDERR_LINE:]
            for line in lines:
                self._handle_line(line)
            now = time.monotonic()
            allowance += (now - before) * STDERR_BYTES_PER_SECOND
            allowance = min(STDERR_BYTES_PER_SECOND, allowance) - len(piece)
            before = now
            if allowance < 0:
                await asyncio.sleep(-allowance / STDERR_BYTES_PER_SECOND)
        self._handle_line(rest)
        self._end.set()
        if not self.exit_reason:
            self.exit_reason = "ended"
        self._listener.handle_session_end(self.reason)

    def _handle_line(self, line: bytes) -> None:
        said, mark, how = line.partition(guard.EXITED.encode())
        text = said[:MAX_STDERR_LINE].decode(errors="replace").rstrip()
        if text.strip():
            if not _NOISE.match(text):
                self._lines.append(text)
            if logger.isEnabledFor(logging.DEBUG):
                line_said = sanitize_message(text, self._definition)
                extra = {"server": self._definition.server_label, "line": line_said}
                logger.debug("mcp.stderr", extra=extra)
        if mark:
            self.exit_reason = how[:MAX_STDERR_LINE].decode(errors="replace")
            self._end.set()
            self._listener.handle_session_end(self.reason)

    @property
    def reason(self) -> str:
        """How the server ended, and its last lines."""
        words = f": {self.last_lines}" if self.last_lines else ""
        return sanitize_message(
            f"it {self.exit_reason or 'closed its output'}{words}", self._definition
        )


@asynccontextmanager
async def open_stderr(
    definition: ServerDefinition, listener: SessionListener
) -> AsyncGenerator[Stderr, None]:
    stderr = Stderr(definition, listener)
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), stderr.read_end
    )
    task = asyncio.create_task(stderr.read(reader))
    try:
        yield stderr
    finally:
        stderr.close_write_end()
        transport.close()
        task.cancel()
        await asyncio.wait((task,))  # raises only if this task is cancelled
