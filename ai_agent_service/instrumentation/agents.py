"""An agent whose runs are spans of a trace, by the conventions for GenAI."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import ClassVar

from ai_agent_service.agents.base import BaseAgent, Turn
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.events import RunEvent, RunFailed, RunFinished, TextDelta
from ai_agent_service.core.text import storable
from ai_agent_service.instrumentation.genai_content import input_messages, output_messages
from ai_agent_service.observability.tracing import AttributeValue, Span, Tracing, inside, now_inside


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
        session = None if context.session is None else storable(context.session)
        span = tracing.start(f"invoke_agent {self.agent_id}", self._attributes(turn, context, session))
        said: list[str] | None = [] if tracing.content and span.is_recording() else None
        if said is not None:
            span.set_attribute("gen_ai.input.messages", tracing.json(input_messages(turn.messages)))
        undo = now_inside(inside(span, conversation=session))
        try:
            with tracing.ending(span):
                async with aclosing(self._agent.run(turn, context)) as events:
                    async for event in events:
                        if isinstance(event, RunFinished | RunFailed):
                            self._end(event, span, said)
                        elif said is not None and isinstance(event, TextDelta):
                            said.append(event.text)
                        yield event
        finally:
            undo()

    def _attributes(self, turn: Turn, context: RunContext, session: str | None) -> dict[str, AttributeValue]:
        attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.id": self.agent_id,
            "gen_ai.agent.name": self.agent_id,
            "gen_ai.agent.version": self.version,
            "ai_agent_service.run.id": context.run_id,
        }
        if (model := turn.model or self.definition.model) is not None:
            attributes["gen_ai.request.model"] = storable(model)
        if session is not None:
            attributes["gen_ai.conversation.id"] = session
        if context.task is not None:
            attributes["ai_agent_service.task"] = context.task
        return attributes

    def _end(self, event: RunFinished | RunFailed, span: Span, said: list[str] | None) -> None:
        if event.usage is not None:
            span.set_attribute("gen_ai.usage.input_tokens", event.usage.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", event.usage.completion_tokens)
        if isinstance(event, RunFailed):
            self._tracing.failed(span, event.error)
        else:
            span.set_attribute("gen_ai.response.finish_reasons", (event.reason,))
            if said is not None:
                answer = output_messages("".join(said), event.tool_calls, event.reason)
                span.set_attribute("gen_ai.output.messages", self._tracing.json(answer))
        span.end()  # whoever takes the last event closes the generator, which is no cancellation
