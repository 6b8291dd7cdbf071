"""Trace the answers of a provider, by the conventions for GenAI."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from ai_agent_service.core.events import TextDelta
from ai_agent_service.core.text import replace_unstorable
from ai_agent_service.instrumentation.genai_content import (
    build_input_messages,
    build_output_messages,
    build_tool_definitions,
)
from ai_agent_service.observability.tracing import (
    AttributeValue,
    Span,
    SpanKind,
    Tracing,
    build_context,
    read_conversation,
    use_context,
)
from ai_agent_service.providers.base import ModelEvent, ModelFinished, ModelRequest, Provider
from ai_agent_service.providers.wrapper import WrappedProvider

PROVIDER_NAMES = {"azure_openai": "azure.ai.openai"}
"""The conventions' names of providers that have another name here."""

_SETTINGS = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "num_predict": "gen_ai.request.max_tokens",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
}


class TracedProvider(WrappedProvider):
    """`provider`, with a span for each answer from the request to its end, which is sent to the
    provider's server."""

    def __init__(self, provider: Provider, tracing: Tracing) -> None:
        super().__init__(provider)
        self._tracing = tracing

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """Yield the answer as it comes; see Provider."""
        tracing = self._tracing
        span = tracing.start(
            f"chat {replace_unstorable(request.model)}",
            _build_attributes(self.name, request),
            kind=SpanKind.CLIENT,
        )
        said: list[str] | None = [] if tracing.content and span.is_recording() else None
        if said is not None:
            messages = tracing.encode_json(build_input_messages(request.messages))
            span.set_attribute("gen_ai.input.messages", messages)
            if request.tools:
                tools = tracing.encode_json(build_tool_definitions(request.tools))
                span.set_attribute("gen_ai.tool.definitions", tools)
        began = time.monotonic()
        with tracing.end_on_exit(span):
            # A provider sends its request before the first event. The span is not the current one
            # after that, since a consumer may continue in another task.
            with use_context(build_context(span)):
                events = self._provider.stream(request)
            async with aclosing(events):
                with use_context(build_context(span)):
                    first = await anext(events, None)
                if first is None:
                    return
                span.set_attribute("gen_ai.response.time_to_first_chunk", time.monotonic() - began)
                self._record_event(first, span, said)
                yield first
                async for event in events:
                    if said is not None or isinstance(event, ModelFinished):
                        self._record_event(event, span, said)
                    yield event

    def _record_event(self, event: ModelEvent, span: Span, said: list[str] | None) -> None:
        if isinstance(event, TextDelta) and said is not None:
            said.append(event.text)
        if not isinstance(event, ModelFinished):
            return
        span.set_attribute("gen_ai.response.finish_reasons", (event.reason,))
        if (usage := event.usage) is not None:
            span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)
            if usage.cached_tokens:
                span.set_attribute("gen_ai.usage.cache_read.input_tokens", usage.cached_tokens)
            if usage.reasoning_tokens:
                span.set_attribute("gen_ai.usage.reasoning.output_tokens", usage.reasoning_tokens)
        if said is not None:
            answer = build_output_messages("".join(said), event.tool_calls, event.reason)
            span.set_attribute("gen_ai.output.messages", self._tracing.encode_json(answer))
        span.end()


def _build_attributes(provider: str, request: ModelRequest) -> dict[str, AttributeValue]:
    """Return the attributes of a span at its start."""
    attributes: dict[str, AttributeValue] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": PROVIDER_NAMES.get(provider, provider),
        "gen_ai.request.model": replace_unstorable(request.model),
        "gen_ai.request.stream": True,
    }
    if (session := read_conversation()) is not None:
        attributes["gen_ai.conversation.id"] = session
    for name, attribute in _SETTINGS.items():
        value = request.settings.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            attributes[attribute] = value
    return attributes
