"""Cache the results of tools whose answers may be a little old."""

import time
from collections import OrderedDict
from collections.abc import Mapping

import msgspec

from ai_agent_service.core.context import RunContext
from ai_agent_service.tools.base import Tool, ToolOutput, ToolSource

MAX_RESULTS = 128
"""Results kept per tool; the least recently used are dropped first."""

MAX_RESULT_BYTES = 256 * 1024
"""A larger result is not kept."""

_key = msgspec.json.Encoder(order="sorted", decimal_format="number")


class CachedTool:
    """`tool`, whose result for the same arguments is kept for `seconds`, unless it is an error."""

    def __init__(self, tool: Tool, *, seconds: float) -> None:
        self.spec = tool.spec
        self.timeout = tool.timeout
        self.parallel = tool.parallel
        self.max_output = tool.max_output
        self._tool = tool
        self._seconds = seconds
        self._results: OrderedDict[bytes, tuple[float, ToolOutput]] = OrderedDict()

    async def run(self, arguments: dict[str, object], context: RunContext) -> ToolOutput:
        """Return the kept result, else that of running the tool."""
        key = _key.encode(arguments)
        now = time.monotonic()
        if key in self._results:
            expires, output = self._results[key]
            if now < expires:
                self._results.move_to_end(key)
                return output
            del self._results[key]
        output = await self._tool.run(arguments, context)
        size = len(output.content.encode(errors="replace"))
        if size + sum(len(image.url) for image in output.images) <= MAX_RESULT_BYTES:
            self._results[key] = (time.monotonic() + self._seconds, output)
            while len(self._results) > MAX_RESULTS:
                self._results.popitem(last=False)
        return output


class CachedSource:
    """The tools of `source`. The results of those that `seconds` names are kept for so long, until
    the tool itself is replaced."""

    def __init__(self, source: ToolSource, seconds: Mapping[str, float]) -> None:
        self._source = source
        self._seconds = dict(seconds)
        self._all: tuple[Tool, ...] = ()
        self._wrapped: tuple[Tool, ...] = ()

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The current tools."""
        if (tools := self._source.tools) is not self._all:
            before = dict(zip(self._all, self._wrapped, strict=True))
            self._wrapped = tuple(before.get(tool) or self._wrap_tool(tool) for tool in tools)
            self._all = tools
        return self._wrapped

    @property
    def unavailable(self) -> str:
        """What cannot be used now."""
        return self._source.unavailable

    def _wrap_tool(self, tool: Tool) -> Tool:
        seconds = self._seconds.get(tool.spec.name)
        return tool if seconds is None else CachedTool(tool, seconds=seconds)
