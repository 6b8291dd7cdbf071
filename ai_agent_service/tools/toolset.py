"""Hold the tools of one agent and execute their calls."""

import asyncio
import logging
import time
from collections.abc import Iterable
from decimal import Decimal

import msgspec

from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import ToolError, ToolTimeoutError
from ai_agent_service.core.messages import Link, ToolCall, ToolOutcome, ToolResult, ToolSpec
from ai_agent_service.core.text import replace_unstorable, truncate_utf8
from ai_agent_service.observability.audit import audit
from ai_agent_service.observability.debug_log import debug_log, is_debug_enabled
from ai_agent_service.tools.base import DEFAULT_MAX_OUTPUT, Tool, ToolOutput
from ai_agent_service.tools.schema import SchemaError, complete_schema

logger = logging.getLogger(__name__)
_NOTHING = ToolOutput("")
CANCEL_GRACE = 0.9
"""Seconds that a cancelled tool has to clean up before it is left behind."""


class Toolset:
    """The tools that an agent may use now, by name; no other can be run.

    Of two tools with one name, the earlier one is used. Schemas are completed, and a tool whose
    schema no provider accepts is left out. `unavailable` says, in words for the
    model, what cannot be used now.
    """

    def __init__(
        self,
        tools: Iterable[Tool],
        *,
        default_timeout: float,
        unavailable: tuple[str, ...] = (),
        abandoned: set[asyncio.Task[ToolOutput]] | None = None,
    ) -> None:
        self._tools: dict[str, Tool] = {}
        specs: list[ToolSpec] = []
        for tool in tools:
            if tool.spec.name in self._tools:
                logger.warning("tool.name_taken", extra={"tool": tool.spec.name})
                continue
            try:
                parameters = complete_schema(tool.spec.parameters)
            except SchemaError as error:
                extra = {"tool": tool.spec.name, "problem": str(error)}
                logger.warning("tool.left_out", extra=extra)
                continue
            self._tools[tool.spec.name] = tool
            specs.append(msgspec.structs.replace(tool.spec, parameters=parameters))
        self._default_timeout = default_timeout
        self.specs: tuple[ToolSpec, ...] = tuple(specs)
        self.unavailable = unavailable
        self._abandoned = set() if abandoned is None else abandoned

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def is_parallel(self, name: str) -> bool:
        """Return whether a call of `name` may run beside others, as one that is refused may."""
        return name not in self._tools or self._tools[name].parallel

    async def execute(self, call: ToolCall, context: RunContext) -> ToolResult:
        """Execute `call` and return its result; it raises only cancellation, and reports all errors
        to the model.

        The call ends at the tool's own timeout or the run's deadline, whichever comes first.
        """
        started = time.monotonic()
        if is_debug_enabled():
            debug_log.debug(
                "tool.started",
                extra={**_build_log_fields(call, context), "arguments": call.arguments},
            )
        output = _NOTHING
        outcome: ToolOutcome = "success"
        tool = self._tools.get(call.name)
        limit = tool.max_output if tool is not None else DEFAULT_MAX_OUTPUT
        try:
            if tool is None:
                audit.warning(
                    "tool.refused", extra={"tool": call.name[:100], **context.audit_fields}
                )
                raise ToolError(f"There is no tool {call.name!r}. {self._describe_available()}")
            output = await self._run_with_timeout(tool, parse_arguments(call.arguments), context)
            content = truncate_utf8(replace_unstorable(output.content), limit)
        except ToolError as error:
            content = truncate_utf8(replace_unstorable(f"Error: {error}"), limit)
            outcome = (
                "refused"
                if tool is None
                else "timeout"
                if isinstance(error, ToolTimeoutError)
                else "error"
            )
        except Exception:
            # A tool is foreign code, whose errors end its call and not the chat.
            logger.exception("tool.failed", extra={"tool": call.name, "run_id": context.run_id})
            content = (
                f"Error: the tool {call.name!r} failed unexpectedly. Do without it, or try other"
                " arguments."
            )
            outcome = "error"
        result = ToolResult(
            call_id=call.id,
            name=call.name,
            content=content,
            images=output.images,
            links=tuple(map(_repair_link, output.links)),
            is_error=outcome != "success",
            seconds=time.monotonic() - started,
            outcome=outcome,
        )
        if is_debug_enabled():
            ended = {
                "outcome": outcome,
                "is_error": result.is_error,
                "seconds": round(result.seconds, 3),
                "result": content,
            }
            debug_log.debug("tool.ended", extra={**_build_log_fields(call, context), **ended})
        return result

    async def _run_with_timeout(
        self, tool: Tool, arguments: dict[str, object], context: RunContext
    ) -> ToolOutput:
        own = self._default_timeout if tool.timeout is None else tool.timeout
        limit = max(0.0, min(own, context.seconds_left))
        task = asyncio.ensure_future(_run(tool, arguments, context))
        try:
            done, _ = await asyncio.wait((task,), timeout=limit)
        except asyncio.CancelledError:
            await self._cancel(task, tool)
            raise
        if not done:
            await self._cancel(task, tool)
            raise ToolTimeoutError(
                f"the tool did not answer within {limit:.3g} seconds and was stopped"
            )
        if task.cancelled():
            raise ToolError("the tool stopped itself")
        return task.result()

    async def _cancel(self, task: asyncio.Task[ToolOutput], tool: Tool) -> None:
        task.cancel()
        done, _ = await asyncio.wait((task,), timeout=CANCEL_GRACE)
        if done:
            if not task.cancelled():
                task.exception()
            return
        logger.warning("tool.ignores_cancellation", extra={"tool": tool.spec.name})
        self._abandoned.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[ToolOutput]) -> None:
        self._abandoned.discard(task)
        if not task.cancelled():
            task.exception()

    def _describe_available(self) -> str:
        return f"There are: {', '.join(self._tools)}." if self._tools else "There are no tools."


def _repair_link(link: Link) -> Link:
    return Link(*map(replace_unstorable, msgspec.structs.astuple(link)))


def _build_log_fields(call: ToolCall, context: RunContext) -> dict[str, object]:
    return {
        "tool": call.name,
        "call_id": call.id,
        "run_id": context.run_id,
        "agent_id": context.agent_id,
    }


async def _run(tool: Tool, arguments: dict[str, object], context: RunContext) -> ToolOutput:
    """Run `tool`, and catch within the task what would end the process, since asyncio raises it at
    once."""
    try:
        return await tool.run(arguments, context)
    except (SystemExit, KeyboardInterrupt, BaseExceptionGroup) as error:
        raise ToolError(f"the tool ended itself ({type(error).__name__})") from None


def parse_arguments(text: str) -> dict[str, object]:
    """Return the arguments in `text`, a JSON object; no text means none. Raises ToolError with the
    problem and what is expected."""
    if not text.strip():
        return {}
    try:
        value = _decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ToolError(
            f"The arguments are not valid JSON ({error}). Call again with one JSON object."
        ) from None
    if not isinstance(value, dict):
        raise ToolError(
            f"The arguments are not a JSON object but {_KINDS.get(type(value), 'something else')}."
            " Call again with one JSON object."
        )
    return value


def _parse_number(text: str) -> float | Decimal:
    """Return a number with a fraction as a float, unless that would change its digits."""
    number = float(text)
    exact = Decimal(text)
    return number if Decimal(repr(number)) == exact else exact


_decode = msgspec.json.Decoder(float_hook=_parse_number).decode
_KINDS: dict[type, str] = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}
