"""An agent whose runs are spans of a trace, by the conventions for GenAI."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import ClassVar

from ai_agent_service.agents.base import BaseAgent, Turn
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.events import RunEvent, RunFailed, RunFinished, TextDelta
from ai_agent_service.core.text import replace_unstorable
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


class TracedAgent(BaseAgent):
    """`agent`, with a span for each run, which is the current one as long as the run goes on."""

    type: ClassVar[str] = ""

    def __init__(self, agent: BaseAgent, tracing: Tracing) -> None:
        super().__init__(agent.definition, agent.parts)
        self._agent = agent
        self._tracing = tracing

    async def model(self) -> str:
        """The agent's."""
        return await self._agent.model()

    async def problem(self) -> str | None:
        """The agent's."""
        return await self._agent.problem()

    async def run(self, turn: Turn, context: RunContext) -> AsyncGenerator[RunEvent, None]:
        """Takes the turn; see BaseAgent."""
        tracing = self._tracing
        session = None if context.session is None else replace_unstorable(context.session)
        span = tracing.start(
            f"invoke_agent {self.agent_id}", self._build_attributes(turn, context, session)
        )
        said: list[str] | None = [] if tracing.content and span.is_recording() else None
        if said is not None:
            span.set_attribute(
                "gen_ai.input.messages", tracing.encode_json(build_input_messages(turn.messages))
            )
        undo = attach_context(build_context(span, conversation=session))
        try:
            with tracing.end_on_exit(span):
                async with aclosing(self._agent.run(turn, context)) as events:
                    async for event in events:
                        if isinstance(event, RunFinished | RunFailed):
                            self._end_span(event, span, said)
                        elif said is not None and isinstance(event, TextDelta):
                            said.append(event.text)
                        yield event
        finally:
            undo()

    def _build_attributes(
        self, turn: Turn, context: RunContext, session: str | None
    ) -> dict[str, AttributeValue]:
        attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.id": self.agent_id,
            "gen_ai.agent.name": self.agent_id,
            "gen_ai.agent.version": self.version,
            "ai_agent_service.run.id": context.run_id,
        }
        if (model := turn.model or self.definition.model) is not None:
            attributes["gen_ai.request.model"] = replace_unstorable(model)
        if session is not None:
            attributes["gen_ai.conversation.id"] = session
        if context.task is not None:
            attributes["ai_agent_service.task"] = context.task
        return attributes

    def _end_span(self, event: RunFinished | RunFailed, span: Span, said: list[str] | None) -> None:
        if event.usage is not None:
            span.set_attribute("gen_ai.usage.input_tokens", event.usage.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", event.usage.completion_tokens)
        if isinstance(event, RunFailed):
            self._tracing.record_error(span, event.error)
        else:
            span.set_attribute("gen_ai.response.finish_reasons", (event.reason,))
            if said is not None:
                answer = build_output_messages("".join(said), event.tool_calls, event.reason)
                span.set_attribute("gen_ai.output.messages", self._tracing.encode_json(answer))
        span.end()  # whoever takes the last event closes the generator, which is no cancellation
