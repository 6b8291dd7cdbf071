"""Keep one MCP server connected by one task, and its tools up to date."""

import asyncio
import logging
import random
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Literal

import msgspec

from ai_agent_service.config.server_definition import ServerDefinition
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import ToolError
from ai_agent_service.core.text import replace_unstorable
from ai_agent_service.mcp.base import McpSession, RemoteTool, ServerConnectionError, SessionOpener
from ai_agent_service.mcp.tool import McpTool
from ai_agent_service.tools.base import ToolOutput
from ai_agent_service.tools.schema import SchemaError

logger = logging.getLogger(__name__)

State = Literal["off", "starting", "ready", "down"]
"""`off`: not to be connected. `starting`: being connected, for the first time or again. `down`:
connecting failed and is retried."""

FIRST_PAUSE = 0.5
MAX_PAUSE = 60.0
STABLE_SECONDS = 5.0
"""After a connection that lasted this long, the next one is tried at once."""

RECONNECT_WAIT_SECONDS = 3.0
"""Seconds that a call waits for a server that is being connected again."""

CHECK_SECONDS = 30.0
"""Between two pings of a server without calls."""

MAX_FAILED_CHECKS = 3
"""After so many failed pings in a row a server is given up even during calls; until then it may be
busy with one of them."""

REFRESH_PAUSE = 1.0
"""The shortest time between two listings of the tools."""


class ServerStatus(msgspec.Struct, frozen=True):
    """The state of a server; `since` is when it was reached, in Unix seconds, `connect_seconds` how
    long the last start took, and `problems` what is left out of its list of tools, and why."""

    label: str
    transport: str
    state: State
    tools: tuple[str, ...]
    error: str | None
    since: float
    restarts: int
    schema_changes: int
    quarantined: tuple[str, ...]
    problems: tuple[str, ...]
    connect_seconds: float | None


class Connection:
    """The connection to the server of `definition`, which `supervise` keeps up until it is
    cancelled.

    A list of tools is used for `tools_seconds`; `off` is why the server is not to be connected. It
    is a ToolSource: `tools` are those of the last list, also while the server is down, since it may
    be back before a model calls them.
    """

    def __init__(
        self, definition: ServerDefinition, *, tools_seconds: float, off: str | None = None
    ) -> None:
        self.label = definition.server_label
        self.tools: tuple[McpTool, ...] = ()
        self.state: State = "off" if off else "starting"
        self.error = off
        self.definition = definition
        self._tools_seconds = tools_seconds
        self._transport = definition.transport or (
            "stdio" if definition.command is not None else "http"
        )
        self._session: McpSession | None = None
        self._since = time.time()
        self._restarts = 0
        self._connect_seconds: float | None = None
        self._calls = 0
        self._was_ready = False
        self._settled = asyncio.Event()
        self._wake = asyncio.Event()
        self._lost = asyncio.Event()
        self._lost_reason: str | None = None
        self._tools_are_old = False
        self._first_seen: dict[str, RemoteTool] = {}
        self._last_seen: dict[str, RemoteTool] = {}
        self._schema_changes = 0
        self._quarantined: frozenset[str] = frozenset()
        self._problems: tuple[str, ...] = ()
        if self.state == "off":
            self._settled.set()

    @property
    def unavailable(self) -> str:
        """What cannot be used now, in words for the model; a server that is off is not part of this
        installation."""
        if self.state in ("ready", "off"):
            return ""
        return f"the tools of {self.label}" + (
            " (it is just starting)" if self.state == "starting" else ""
        )

    @property
    def status(self) -> ServerStatus:
        """The current state."""
        return ServerStatus(
            label=self.label,
            transport=self._transport,
            state=self.state,
            tools=tuple(replace_unstorable(tool.remote.name) for tool in self.tools),
            error=self.error,
            since=self._since,
            restarts=self._restarts,
            schema_changes=self._schema_changes,
            quarantined=tuple(sorted(self._quarantined)),
            problems=self._problems,
            connect_seconds=self._connect_seconds,
        )

    async def wait_for_start(self) -> None:
        """Return once a start in progress has succeeded or failed."""
        await self._settled.wait()

    async def supervise(self, opener: SessionOpener) -> None:
        """Keep the connection up until cancelled; then close it and all that belongs to it."""
        failures, reported = 0, ""
        while True:
            began = time.monotonic()
            reason = await self._run_session(opener)
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise asyncio.CancelledError  # a library may have swallowed it
            was_ready = self._was_ready
            lasted = time.monotonic() - began
            self._restarts += 1
            failures = 0 if was_ready and lasted >= STABLE_SECONDS else failures + 1
            if was_ready and failures <= 1:
                # It worked until now: a server that was restarted is back at once.
                pause = FIRST_PAUSE / 5 * random.random()  # noqa: S311 - jitter, no secret
            else:
                self._set_state("down", reason)
                pause = (
                    min(MAX_PAUSE, FIRST_PAUSE * 2 ** min(failures - 1, 10))
                    * (1 + random.random())  # noqa: S311
                    / 2
                )
            level = logging.WARNING if was_ready or reason != reported else logging.DEBUG
            reported = reason
            if was_ready and not logger.isEnabledFor(logging.DEBUG):
                # After it come a command's last words, which may repeat what it was called with.
                reason = reason.partition(": ")[0]
            extra = {"server": self.label, "reason": reason, "again_in_seconds": round(pause, 1)}
            logger.log(level, "mcp.down", extra=extra)
            self._was_ready = False
            await asyncio.sleep(pause)

    async def call(
        self, tool: McpTool, arguments: dict[str, object], context: RunContext
    ) -> ToolOutput:
        """Run `tool`; raises ToolError. A call is retried only if it is certain that the server did
        not start the first."""
        if tool.remote.name in self._quarantined:
            raise ToolError(
                "this tool was changed by its server after it was first seen and is withheld until"
                " the operator has looked at it"
            )
        for is_last in (False, True):
            session = self._session or await self._wait_for_session(context)
            self._calls += 1
            try:
                return await session.call(tool.remote.name, arguments, context)
            except ServerConnectionError as lost:
                self._drop_session(session, lost.reason)
                if not lost.not_sent:
                    raise ToolError(
                        f"the connection to {self.label} broke during the call, and it is not known"
                        " whether it was carried out"
                    ) from None
                if is_last:
                    raise self._build_unavailable_error() from None
            finally:
                self._calls -= 1
        raise AssertionError("unreachable")

    def fail(self, reason: str) -> None:
        """Leave the server down permanently, for `reason`."""
        self._set_state("down", reason)

    def handle_tools_changed(self) -> None:
        """List the tools again, since the server says that they changed."""
        self._tools_are_old = True
        self._wake.set()

    def handle_session_end(self, reason: str) -> None:
        """End the session of a server that has ended or cannot be understood."""
        self._lost_reason = self._lost_reason or reason
        self._lost.set()

    async def _run_session(self, opener: SessionOpener) -> str:
        """Connect, stay connected as long as possible, and return why the session ended."""
        self._lost_reason, self._tools_are_old = None, False
        self._lost.clear()
        self._wake.clear()
        began = time.monotonic()
        try:
            async with opener(self) as session:
                try:
                    listed = await session.list_tools()
                except ServerConnectionError as lost:
                    # Leaving the session ends a command, which would hide the reason.
                    return self._select_reason(lost)
                self._update_tools(listed)
                self._connect_seconds = time.monotonic() - began
                self._transport = session.transport
                self._session = session
                self._was_ready = True
                self._set_state("ready", None)
                seconds = round(self._connect_seconds, 2)
                extra = {"server": self.label, "tools": len(self.tools), "seconds": seconds}
                logger.info("mcp.ready", extra=extra)
                try:
                    reason = await self._watch_session(session)
                finally:
                    self._session = None
                    self._set_state("starting", self._lost_reason)
                self.error = reason
                return reason
        except ServerConnectionError as lost:
            return lost.reason
        except asyncio.CancelledError as error:
            # A library's own cancellations may leak; only ours is requested of this task.
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            return self._log_unexpected(error)
        except Exception as error:  # noqa: BLE001 - it is logged with its traceback
            # Whatever a library or a server does, it takes down this server and no chat.
            return self._log_unexpected(error)

    def _log_unexpected(self, error: BaseException) -> str:
        logger.error("mcp.failed", extra={"server": self.label}, exc_info=error)
        self.error = f"it failed unexpectedly ({type(error).__name__})"
        return self.error

    async def _watch_session(self, session: McpSession) -> str:
        """Watch `session` while it lasts; return why it ended."""
        care = asyncio.create_task(self._poll_session(session))
        lost = asyncio.create_task(self._lost.wait())
        try:
            await asyncio.wait((care, lost), return_when=asyncio.FIRST_COMPLETED)
            return self._lost_reason or care.result()
        finally:
            care.cancel()
            lost.cancel()
            await asyncio.gather(care, lost, return_exceptions=True)

    async def _poll_session(self, session: McpSession) -> str:
        """Refresh the list of tools and ping a silent server; return why it does not answer."""
        listed = time.monotonic()
        failed = 0
        while True:
            left = listed + self._tools_seconds - time.monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(CHECK_SECONDS, left))):
                    await self._wake.wait()
            self._wake.clear()
            try:
                if self._tools_are_old or time.monotonic() >= listed + self._tools_seconds:
                    await asyncio.sleep(listed + REFRESH_PAUSE - time.monotonic())
                    self._tools_are_old = False
                    listed = time.monotonic()
                    self._update_tools(await session.list_tools())
                else:
                    await session.ping()
                failed = 0
            except ServerConnectionError as lost:
                self._tools_are_old = True
                failed += 1
                if not self._calls or failed == MAX_FAILED_CHECKS:
                    return lost.reason

    def _select_reason(self, lost: ServerConnectionError) -> str:
        """Return the better known reason: the listener may know more than the caller."""
        return self._lost_reason or lost.reason

    def _update_tools(self, listed: Iterable[RemoteTool]) -> None:
        """Make `listed` the tools; tools that did not change keep their objects."""
        offered: dict[str, McpTool] = {}
        quarantined = set()
        problems: list[str] = []
        before = {tool.remote.name: tool for tool in self.tools}
        names = set()
        for remote in listed:
            if remote.problem:
                problems.append(remote.problem)
                continue
            if remote.name in names or not self.definition.allows(remote.name):
                continue
            names.add(remote.name)
            first = self._first_seen.setdefault(remote.name, remote)
            last = self._last_seen.get(remote.name, remote)
            self._last_seen[remote.name] = remote
            if remote != last:
                self._schema_changes += 1
                changed = "parameters" if remote.parameters != last.parameters else "description"
                extra = {"server": self.label, "tool": remote.name, "changed": changed}
                logger.warning("mcp.tool_changed", extra=extra)
            if remote != first and self.definition.pin_tools:
                quarantined.add(remote.name)
                continue
            old = before.get(remote.name)
            try:
                offered[remote.name] = (
                    old
                    if old is not None and old.remote == remote
                    else McpTool(self.label, remote, self.call)
                )
            except SchemaError as error:
                problems.append(f"the tool {remote.name!r} is left out: {error}")
        self._report_problems(problems)
        # A run may still know a tool that is not listed any more.
        self._quarantined = frozenset(quarantined | (self._quarantined - names))
        if (tools := tuple(offered.values())) != self.tools:
            self.tools = tools

    def _report_problems(self, problems: Iterable[str]) -> None:
        """Keep what is left out, and log it once."""
        known = set(self._problems)
        self._problems = tuple(dict.fromkeys(map(replace_unstorable, problems)))
        for problem in self._problems:
            if problem not in known:
                extra = {"server": self.label, "problem": problem}
                logger.warning("mcp.left_out", extra=extra)

    async def _wait_for_session(self, context: RunContext) -> McpSession:
        """Return the session of a server that is being connected again; raises ToolError if it is
        down."""
        if self.state == "starting":
            context.report_progress(0, None, f"{self.label} is being started again")
            with suppress(TimeoutError):
                async with asyncio.timeout(RECONNECT_WAIT_SECONDS):
                    await self._settled.wait()
        if self._session is None:
            raise self._build_unavailable_error()
        return self._session

    def _drop_session(self, session: McpSession, reason: str) -> None:
        """Stop using `session`; a newer one is kept."""
        if self._session is session:
            self._session = None
            self._set_state("starting", reason)
            self.handle_session_end(reason)

    def _build_unavailable_error(self) -> ToolError:
        return ToolError(
            f"{self.label} is not available at the moment, so this tool cannot be used. Answer"
            " without it, and say so."
        )

    def _set_state(self, state: State, error: str | None) -> None:
        if state != self.state:
            self.state, self._since = state, time.time()
        self.error = error
        if state == "starting":
            self._settled.clear()
        else:
            self._settled.set()
