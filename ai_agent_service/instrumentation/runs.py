"""Spans of runs, by OpenTelemetry's conventions for GenAI."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.events import RunFailed, RunFinished
from ai_agent_service.core.text import replace_unstorable
from ai_agent_service.core.turn import Turn
from ai_agent_service.instrumentation.genai_content import (
    build_input_messages,
    build_output_messages,
)
from ai_agent_service.observability.tracing import (
    AttributeValue,
    Span,
    Tracing,
    attach_context,
    build_context,
)


class RunTracer:
    """Opens a span for each run, which is the current one as long as the run goes on."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    @contextmanager
    def trace(
        self, agent: BaseAgent, turn: Turn, context: RunContext
    ) -> Generator["TracedRun", None, None]:
        """Hold the span of the run."""
        tracing = self._tracing
        session = None if context.session is None else replace_unstorable(context.session)
        span = tracing.start(
            f"invoke_agent {agent.agent_id}", _build_attributes(agent, turn, context, session)
        )
        if tracing.content and span.is_recording():
            messages = tracing.encode_json(build_input_messages(turn.messages))
            span.set_attribute("gen_ai.input.messages", messages)
        undo = attach_context(build_context(span, conversation=session))
        try:
            with tracing.end_on_exit(span):
                yield TracedRun(tracing, span)
        finally:
            undo()


class TracedRun:
    """The span of one run."""

    def __init__(self, tracing: Tracing, span: Span) -> None:
        self._tracing = tracing
        self._span = span

    def end(self, event: RunFinished | RunFailed, text: Callable[[], str]) -> None:
        """End the span with the last event; `text` returns the answer's text."""
        span = self._span
        if event.usage is not None:
            span.set_attribute("gen_ai.usage.input_tokens", event.usage.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", event.usage.completion_tokens)
        if isinstance(event, RunFailed):
            self._tracing.record_error(span, event.error)
        else:
            span.set_attribute("gen_ai.response.finish_reasons", (event.reason,))
            if self._tracing.content and span.is_recording():
                answer = build_output_messages(text(), event.tool_calls, event.reason)
                span.set_attribute("gen_ai.output.messages", self._tracing.encode_json(answer))
        span.end()


def _build_attributes(
    agent: BaseAgent, turn: Turn, context: RunContext, session: str | None
) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.id": agent.agent_id,
        "gen_ai.agent.name": agent.agent_id,
        "gen_ai.agent.version": agent.version,
        "ai_agent_service.run.id": context.run_id,
    }
    if (model := turn.model or agent.definition.model) is not None:
        attributes["gen_ai.request.model"] = replace_unstorable(model)
    if session is not None:
        attributes["gen_ai.conversation.id"] = session
    if context.task is not None:
        attributes["ai_agent_service.task"] = context.task
    return attributes
