"""Log at debug level what a model is asked and what it answers."""

import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

import msgspec

from ai_agent_service.core.errors import ServiceError
from ai_agent_service.core.events import ReasoningDelta, RefusalDelta, TextDelta
from ai_agent_service.core.messages import Message, TextPart, ToolCall
from ai_agent_service.observability.debug_log import debug_log, drop_empty, is_debug_enabled
from ai_agent_service.providers.base import ModelEvent, ModelFinished, ModelRequest, Provider


def stream_logged(
    provider: Provider, request: ModelRequest, *, logged_count: int = 0, **named: Any
) -> AsyncGenerator[ModelEvent, None]:
    """Return `provider.stream(request)` with two debug lines: `model.asked`, without the first
    `logged_count` messages, which are logged already, and the answer.

    `named` are further fields of the lines. Without debug lines this costs nothing.
    """
    return (
        _stream_logged(provider, request, logged_count, named)
        if is_debug_enabled()
        else provider.stream(request)
    )


async def _stream_logged(
    provider: Provider, request: ModelRequest, logged_count: int, named: dict[str, Any]
) -> AsyncGenerator[ModelEvent, None]:
    named = {**named, "provider": provider.name, "model": request.model}
    asked = drop_empty(
        messages_before=logged_count or None,
        messages=[_describe_message(message) for message in request.messages[logged_count:]],
        tools=[spec.name for spec in request.tools],
        tool_choice=msgspec.to_builtins(request.tool_choice),
        settings=dict(request.settings),
    )
    debug_log.debug("model.asked", extra={**named, **asked})
    text: list[str] = []
    reasoning: list[str] = []
    outcome: dict[str, Any] = {}
    event_name = "model.left"
    began = time.monotonic()
    first: float | None = None
    try:
        async with aclosing(provider.stream(request)) as events:
            async for event in events:
                first = time.monotonic() - began if first is None else first
                match event:
                    case TextDelta(text=piece) | RefusalDelta(text=piece):
                        text.append(piece)
                    case ReasoningDelta(text=piece):
                        reasoning.append(piece)
                    case ModelFinished():
                        event_name = "model.answered"
                        usage = msgspec.to_builtins(event.usage) or {}
                        outcome = drop_empty(
                            finish_reason=event.reason,
                            calls=_describe_calls(event.tool_calls),
                            usage={name: count for name, count in usage.items() if count},
                        )
                yield event
    except ServiceError as error:
        event_name, outcome = "model.failed", {"code": error.code, "reason": error.message}
        raise
    finally:
        took = {"first_seconds": first, "seconds": time.monotonic() - began}
        seconds = {name: round(value, 3) for name, value in took.items() if value is not None}
        said = drop_empty(reasoning="".join(reasoning), text="".join(text))
        debug_log.debug(event_name, extra={**named, **outcome, **seconds, **said})


def _describe_message(message: Message) -> dict[str, Any]:
    """Return the texts and calls of `message`, and how many other parts it has."""
    parts = () if isinstance(message.content, str) else message.content
    others = sum(not isinstance(part, TextPart) for part in parts) + len(message.images)
    return drop_empty(
        role=message.role,
        call_id=message.tool_call_id,
        text=message.text,
        calls=_describe_calls(message.tool_calls),
        images_and_files=others or None,
    )


def _describe_calls(calls: Iterable[ToolCall]) -> list[dict[str, str]]:
    """Return `calls` without the provider's data, which is opaque and may be long."""
    return [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in calls]
