"""Tools and sources of tools for tests of their wrappers."""

import time

from ai_agent_service.core.context import RunContext
from ai_agent_service.core.messages import ToolSpec
from ai_agent_service.tools.base import DEFAULT_MAX_OUTPUT, Tool, ToolOutput

CONTEXT = RunContext(run_id="run_1", agent_id="a", deadline=time.monotonic() + 600)


class Counting:
    """Tool that answers with the number of its runs, or with `output`, or raises `error`."""

    timeout: float | None = 7.0
    parallel = False
    max_output = DEFAULT_MAX_OUTPUT + 1

    def __init__(self, name: str) -> None:
        self.spec = ToolSpec(name, f"Counts {name}.", {"type": "object"})
        self.runs = 0
        self.output: ToolOutput | None = None
        self.error: Exception | None = None

    async def run(self, arguments: dict[str, object], context: RunContext) -> ToolOutput:
        """Count the run."""
        self.runs += 1
        if self.error is not None:
            raise self.error
        return self.output or ToolOutput(str(self.runs))


class Source:
    """Source whose tools and problem are set by the test."""

    def __init__(self, *tools: Tool, unavailable: str = "") -> None:
        self.tools: tuple[Tool, ...] = tools
        self.unavailable = unavailable
