"""Run MCP servers as commands."""

import asyncio
import logging
import os
import re
import signal
import sys
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Unpack

from anyio import BrokenResourceError, EndOfStream
from fastmcp.client.transports import ClientTransport
from fastmcp.client.transports.base import SessionKwargs, TransportOptions
from mcp import ClientSession
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter
from pydantic import ValidationError

from ai_agent_service.config.server_definition import ServerDefinition
from ai_agent_service.mcp import process_guard as guard
from ai_agent_service.mcp.base import ServerConnectionError, SessionListener
from ai_agent_service.mcp.bounds import PIECE_BYTES, LineReader, MessageTooLargeError, Pace
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

FLUSH_SECONDS = 0.5
"""How long a command has to read what was sent to it before its input is closed."""

GUARD_SECONDS = 2 * guard.GRACE_SECONDS + guard.KILL_SECONDS + 1
"""How long a guard may take to end its command."""


def build_stdio_transport(
    definition: ServerDefinition, environment: Mapping[str, str], stderr: "Stderr"
) -> "StdioTransport":
    """Return the transport that runs the command of `definition`, found in its own PATH or that of
    `environment`; raises ServerConnectionError."""
    assert definition.command is not None
    if problem := definition.find_command_problem(environment):
        raise ServerConnectionError(problem, not_sent=True)
    if definition.cwd is not None and not Path(definition.cwd).is_dir():
        raise ServerConnectionError(f"its cwd {definition.cwd!r} is no folder", not_sent=True)
    return StdioTransport(definition, stderr)


class StdioTransport(ClientTransport):
    """Runs a command under a guard, and reads its output within bounds.

    The client's own transport stops waiting for a hanging server before that has ended, joins an
    endless line in quadratic time, and does not notice that the guard is gone.
    """

    def __init__(self, definition: ServerDefinition, stderr: "Stderr") -> None:
        self._definition = definition
        self._stderr = stderr
        self._closed = asyncio.Event()
        self._closed.set()
        self._ending: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def connect_session(
        self,
        *,
        transport_options: TransportOptions | None = None,
        **session_kwargs: Unpack[SessionKwargs],
    ) -> AsyncGenerator[ClientSession, None]:
        """Start the command, and end it at the exit."""
        async with (
            self._run() as (read, write),
            LenientSession(read, write, **session_kwargs) as session,
        ):
            yield session

    async def wait_closed(self) -> None:
        """Return when nothing of the command is left."""
        await self._closed.wait()

    @asynccontextmanager
    async def _run(self) -> AsyncGenerator[tuple["_MessageReader", "_MessageWriter"], None]:
        """Start the guard with the command, and yield the streams of messages; end both at the
        exit."""
        self._closed.clear()
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            stack.callback(self._closed.set)
            (child_input, output), (input_, child_output) = _open_pipe(), _open_pipe()
            with child_input, child_output:
                # As the protocol of a writer; nothing is read by it.
                protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
                try:
                    writing, _ = await loop.connect_write_pipe(lambda: protocol, output)
                except BaseException:
                    input_.close()
                    raise
                stack.callback(writing.close)
                lines = asyncio.StreamReader(PIECE_BYTES)
                reading, _ = await loop.connect_read_pipe(
                    lambda: asyncio.StreamReaderProtocol(lines), input_
                )
                stack.callback(reading.close)
                process = await self._start_guard(child_input, child_output)
            watch = asyncio.create_task(_watch_guard(process, self._stderr))
            stack = stack.pop_all()
        try:
            yield (
                _MessageReader(LineReader(lines, self._definition.max_message_bytes), self._stderr),
                _MessageWriter(asyncio.StreamWriter(writing, protocol, None, loop)),
            )
        finally:
            # The client cancels this after three seconds, which the command may need.
            self._ending = asyncio.create_task(_end_guard(process, writing, watch, stack))
            await asyncio.shield(self._ending)

    async def _start_guard(
        self, child_input: BinaryIO, child_output: BinaryIO
    ) -> asyncio.subprocess.Process:
        definition = self._definition
        assert definition.command is not None
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", guard.__file__),
            *([f"--user={definition.user}"] if definition.user else ()),
            *(definition.command, *definition.args),
            stdin=child_input,
            stdout=child_output,
            stderr=self._stderr.write_end,
            env={**get_default_environment(), **definition.user_variables, **definition.env},
            cwd=definition.cwd,
            start_new_session=True,
        )


def _open_pipe() -> tuple[BinaryIO, BinaryIO]:
    """Return the ends of a new pipe, for reading and for writing."""
    read, write = os.pipe()
    return os.fdopen(read, "rb", buffering=0), os.fdopen(write, "wb", buffering=0)


async def _watch_guard(process: asyncio.subprocess.Process, stderr: "Stderr") -> None:
    """Wait for the guard's end, and report it; a guard that was killed leaves its group to us."""
    await process.wait()
    _kill_group(process)
    await stderr.wait_for_end()
    stderr.report_end("lost the process that guards it")


async def _end_guard(
    process: asyncio.subprocess.Process,
    writing: asyncio.WriteTransport,
    watch: asyncio.Task[None],
    stack: AsyncExitStack,
) -> None:
    """Close the command's standard input, which has the guard end it, wait until it has, and leave
    `stack`."""
    async with stack:
        writing.close()
        for seconds in (FLUSH_SECONDS, GUARD_SECONDS):
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await process.wait()
                    break
            if writing.get_write_buffer_size():  # which would keep the command's input open
                writing.abort()
        _kill_group(process)
        await process.wait()
        watch.cancel()
        await asyncio.wait((watch,))


def _kill_group(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


class _MessageReader:
    """The messages of a command; a line that is not a message becomes an exception."""

    def __init__(self, lines: LineReader, stderr: "Stderr") -> None:
        self._lines = lines
        self._stderr = stderr

    async def receive(self) -> SessionMessage | Exception:
        """Return the next message; raises EndOfStream."""
        try:
            line = await self._lines.read_line()
        except MessageTooLargeError as error:
            self._stderr.report_end(f"wrote a line that cannot be read: {error}")
            raise EndOfStream from None
        if line is None:
            raise EndOfStream
        return _parse_line(line)

    async def aclose(self) -> None:
        """Do nothing: the transport is closed by its owner."""

    def __aiter__(self) -> "_MessageReader":
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> "_MessageReader":
        return self

    async def __aexit__(self, *_: object) -> None:
        """Do nothing, as `aclose`."""


def _parse_line(line: bytes) -> SessionMessage | Exception:
    text = line.decode(errors="replace")
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(text, by_name=False))
    except ValidationError as error:
        return error  # the session repairs its message


class _MessageWriter:
    """Sends messages to a command."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def send(self, item: SessionMessage) -> None:
        """Send a message, once the command reads; raises BrokenResourceError."""
        message = item.message.model_dump_json(by_alias=True, exclude_unset=True)
        try:
            self._writer.write(f"{message}\n".encode(errors="replace"))
            await self._writer.drain()
        except (OSError, RuntimeError):
            raise BrokenResourceError from None

    async def aclose(self) -> None:
        """Do nothing: the transport is closed by its owner."""

    async def __aenter__(self) -> "_MessageWriter":
        return self

    async def __aexit__(self, *_: object) -> None:
        """Do nothing, as `aclose`."""


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
        pace = Pace(STDERR_BYTES_PER_SECOND, STDERR_BYTES_PER_SECOND)
        while piece := await reader.read(PIECE_BYTES):
            *lines, rest = (rest + piece).split(b"\n")
            rest = rest[-MAX_STDERR_LINE:]
            for line in lines:
                self._handle_line(line)
            pace.charge(len(piece))
            await pace.wait()
        self._handle_line(rest)
        self.report_end("ended")

    def report_end(self, how: str) -> None:
        """Report that the server has ended or is to end; the first reason stays."""
        self.exit_reason = self.exit_reason or how
        self._end.set()
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
            self.report_end(how[:MAX_STDERR_LINE].decode(errors="replace"))

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
