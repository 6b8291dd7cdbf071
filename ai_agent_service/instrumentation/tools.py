"""Trace the calls of tools, by the conventions for GenAI."""

from typing import Any

from ai_agent_service.core.context import RunContext
from ai_agent_service.core.messages import ToolCall, ToolResult
from ai_agent_service.core.text import replace_unstorable
from ai_agent_service.observability.tracing import AttributeValue, Tracing
from ai_agent_service.tools.toolset import Toolset

MAX_NAME_CHARACTERS = 100
"""Characters of a name, since a model may write anything."""


class TracedToolset(Toolset):
    """A Toolset with a span for each call, which is the current one while the tool runs."""

    def __init__(self, tracing: Tracing, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tracing = tracing

    async def execute(self, call: ToolCall, context: RunContext) -> ToolResult:
        """Execute `call`; see Toolset."""
        tracing = self._tracing
        name = replace_unstorable(call.name[:MAX_NAME_CHARACTERS])
        attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.type": "function",
            "gen_ai.tool.call.id": replace_unstorable(call.id[:MAX_NAME_CHARACTERS]),
        }
        span_name = f"execute_tool {name}" if call.name in self else "execute_tool"
        with tracing.open_span(span_name, attributes) as span:
            has_content = tracing.content and span.is_recording()
            if has_content:
                arguments = tracing.redact_text(call.arguments)
                span.set_attribute("gen_ai.tool.call.arguments", arguments)
            result = await super().execute(call, context)
            if result.is_error:
                tracing.record_error(span, "tool_error", result.content)
            elif has_content:
                span.set_attribute("gen_ai.tool.call.result", tracing.redact_text(result.content))
            return result
