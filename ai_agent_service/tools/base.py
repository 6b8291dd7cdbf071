"""Define the interfaces of tools and of their sources."""

from typing import Protocol, runtime_checkable

import msgspec

from ai_agent_service.core.context import RunContext
from ai_agent_service.core.messages import ImagePart, Link, ToolSpec

DEFAULT_MAX_OUTPUT = 64 * 1024


class ToolOutput(msgspec.Struct, frozen=True):
    """The result of a tool: text and images for the model.

    `links` are for users whose client can show them; no model sees them.
    """

    content: str
    images: tuple[ImagePart, ...] = ()
    links: tuple[Link, ...] = ()


@runtime_checkable
class Tool(Protocol):
    """A function that a model may call.

    `timeout` is in seconds (None: TOOL_EXECUTION_TIMEOUT), `max_output` in bytes of UTF-8. A tool
    that is not `parallel` never runs beside another call of the same step.
    """

    @property
    def spec(self) -> ToolSpec: ...
    @property
    def timeout(self) -> float | None: ...
    @property
    def parallel(self) -> bool: ...
    @property
    def max_output(self) -> int: ...

    async def run(self, arguments: dict[str, object], context: RunContext) -> ToolOutput:
        """Run the tool once; raises ToolError with words that the model can act on."""
        ...


class ToolSource(Protocol):
    """Tools that change while the service runs."""

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The current tools: the same object as long as nothing has changed."""
        ...

    @property
    def unavailable(self) -> str:
        """What cannot be used now, in words for the model; empty if all can."""
        ...
