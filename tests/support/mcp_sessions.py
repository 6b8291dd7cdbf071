"""Sessions that follow a script, for tests of everything above the MCP libraries."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from ai_agent_service.config.server_definition import ServerDefinition, Transport
from ai_agent_service.core.context import RunContext
from ai_agent_service.mcp.base import RemoteTool, ServerConnectionError, SessionListener
from ai_agent_service.mcp.connection import Connection
from ai_agent_service.tools.base import ToolOutput

Answer = Callable[[], Awaitable[str]]

LOOK = RemoteTool("look", "Looks.", {"type": "object", "properties": {}})
LISTEN = RemoteTool("listen", "Listens.", {"type": "object", "properties": {}})


class ScriptedSession:
    """Session whose server has `tools` and answers each call with `answer()`; both may be replaced
    while it is open.

    `listing` and `pinging` are awaited before each of these answers, and may raise. A call in
    progress at the end breaks.
    """

    transport: Transport = "stdio"

    def __init__(self, *tools: RemoteTool, answer: Answer | None = None) -> None:
        self.tools = list(tools or [LOOK])
        self.answer: Answer = answer or says("seen")
        self.listing: Answer = says("")
        self.pinging: Answer = says("")
        self.listed: list[float] = []
        """When each listing began."""
        self.pings = 0
        self.calls: list[str] = []
        self.closed = asyncio.Event()

    async def list_tools(self) -> list[RemoteTool]:
        """Return the current tools."""
        self.listed.append(time.monotonic())
        await self.listing()
        return list(self.tools)

    async def call(
        self, name: str, arguments: dict[str, object], context: RunContext
    ) -> ToolOutput:
        """Return what `answer` does, unless the session is closed first."""
        self.calls.append(name)
        answer, closed = (
            asyncio.ensure_future(self.answer()),
            asyncio.ensure_future(self.closed.wait()),
        )
        try:
            await asyncio.wait((answer, closed), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return ToolOutput(answer.result())
            raise ServerConnectionError("the session was closed")
        finally:
            answer.cancel()
            closed.cancel()

    async def ping(self) -> None:
        """Do what `pinging` does."""
        self.pings += 1
        await self.pinging()


class ScriptedOpener:
    """Opens `openings` in order, the last one repeatedly: a session, an error to raise, or an event
    to wait for before the next."""

    def __init__(self, *openings: ScriptedSession | BaseException | asyncio.Event) -> None:
        self._openings = list(openings)
        self.began: list[float] = []
        """When each opening began."""
        self.listener: SessionListener | None = None

    @asynccontextmanager
    async def __call__(self, listener: SessionListener) -> AsyncGenerator[ScriptedSession, None]:
        """Open the next of `openings`."""
        self.began.append(time.monotonic())
        self.listener = listener
        while isinstance(opening := self._next(), asyncio.Event):
            await opening.wait()
        if isinstance(opening, BaseException):
            raise opening
        try:
            yield opening
        finally:
            opening.closed.set()

    def _next(self) -> ScriptedSession | BaseException | asyncio.Event:
        return self._openings.pop(0) if len(self._openings) > 1 else self._openings[0]


def says(text: str) -> Answer:
    """Answer `text` at once."""

    async def answer() -> str:
        return text

    return answer


def fails(error: Exception) -> Answer:
    """Raise `error`."""

    async def answer() -> str:
        raise error

    return answer


def waits(event: asyncio.Event, then: str = "seen") -> Answer:
    """Answer `then` once `event` is set."""

    async def answer() -> str:
        await event.wait()
        return then

    return answer


def connection_to(
    *, tools_seconds: float = 3600.0, pin_tools: bool = False, off: str | None = None
) -> Connection:
    """Build a connection to a server called `eyes`, to be supervised with a ScriptedOpener."""
    definition = ServerDefinition.model_validate(
        {"server_label": "eyes", "command": "eyes", "pin_tools": pin_tools}
    )
    return Connection(definition, tools_seconds=tools_seconds, off=off)


@asynccontextmanager
async def supervised(connection: Connection, opener: ScriptedOpener) -> AsyncGenerator[None, None]:
    """Supervise `connection` during the block; supervision must not end by itself."""
    task = asyncio.create_task(connection.supervise(opener))
    try:
        yield
    finally:
        assert not task.done(), "the supervision ended"
        task.cancel()
        await asyncio.wait((task,), timeout=10)
        assert task.cancelled()


async def called(connection: Connection, name: str = "look") -> str:
    """Return the answer of the tool `name`."""
    tool = next(tool for tool in connection.tools if tool.remote.name == name)
    context = RunContext(run_id="run_1", agent_id="a", deadline=time.monotonic() + 60)
    async with asyncio.timeout(15):
        return (await tool.run({}, context)).content
