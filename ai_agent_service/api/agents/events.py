"""The agents API's event stream: each run event as a JSON object with a type."""

import msgspec
from msgspec import UNSET, UnsetType

from ai_agent_service.api.http.errors import ErrorBody
from ai_agent_service.api.http.run_response import Frames
from ai_agent_service.api.openai.chat_schema import CompletionUsage
from ai_agent_service.api.openai.chat_stream import to_completion_usage
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import ServiceError
from ai_agent_service.core.events import (
    MemorySkipped,
    ReasoningDelta,
    RefusalDelta,
    RunEvent,
    RunFinished,
    TextDelta,
    ToolFinished,
    ToolProgress,
    ToolsMissing,
    ToolStarted,
)

_encoder = msgspec.json.Encoder()


class _TextDelta(msgspec.Struct):
    type: str
    text: str


class _ToolStarted(msgspec.Struct, tag_field="type", tag="tool_started"):
    id: str
    name: str
    arguments: str


class _ToolProgress(msgspec.Struct, tag_field="type", tag="tool_progress"):
    id: str
    name: str
    progress: float
    total: float | None
    message: str


class _MemorySkipped(msgspec.Struct, tag_field="type", tag="memory_skipped"):
    reason: str


class _ToolsMissing(msgspec.Struct, tag_field="type", tag="tools_missing"):
    reasons: tuple[str, ...]


class _ToolFinished(msgspec.Struct, tag_field="type", tag="tool_finished"):
    id: str
    name: str
    result: str
    is_error: bool
    seconds: float


class _RunFinished(msgspec.Struct, tag_field="type", tag="run_finished"):
    run_id: str
    finish_reason: str
    steps: int
    usage: CompletionUsage | UnsetType = UNSET


class _RunFailed(msgspec.Struct, tag_field="type", tag="run_failed"):
    run_id: str
    error: ErrorBody


class EventFrames(Frames):
    """A run's events as JSON objects: `text_delta`, `reasoning_delta`, `refusal_delta`,
    `tool_started`, `tool_progress`, `tool_finished`, `tools_missing`, `memory_skipped`, and last
    `run_finished` or `run_failed`."""

    def __init__(self, context: RunContext) -> None:
        self._run_id = context.run_id

    def render_event(self, event: RunEvent) -> bytes:
        """One event."""
        match event:
            case TextDelta(text=text):
                return _encode_frame(_TextDelta("text_delta", text))
            case ReasoningDelta(text=text):
                return _encode_frame(_TextDelta("reasoning_delta", text))
            case RefusalDelta(text=text):
                return _encode_frame(_TextDelta("refusal_delta", text))
            case ToolStarted(call=call):
                return _encode_frame(_ToolStarted(call.id, call.name, call.arguments))
            case ToolProgress(call=call):
                return _encode_frame(
                    _ToolProgress(call.id, call.name, event.progress, event.total, event.message)
                )
            case ToolFinished(result=result):
                return _encode_frame(
                    _ToolFinished(
                        result.call_id,
                        result.name,
                        result.content,
                        result.is_error,
                        round(result.seconds, 3),
                    )
                )
            case ToolsMissing(reasons=reasons):
                return _encode_frame(_ToolsMissing(reasons))
            case MemorySkipped(reason=reason):
                return _encode_frame(_MemorySkipped(reason))
            case _:
                return b""

    def render_finish(self, event: RunFinished) -> bytes:
        """Why and with what the run ended."""
        last = _RunFinished(self._run_id, event.reason, len(event.steps))
        if event.usage is not None:
            last.usage = to_completion_usage(event.usage)
        return _encode_frame(last)

    def render_error(self, error: ServiceError) -> bytes:
        """What broke the run."""
        return _encode_frame(
            _RunFailed(self._run_id, ErrorBody(error.message, error.type, error.param, error.code))
        )


def _encode_frame(event: msgspec.Struct) -> bytes:
    return b"data: %b\n\n" % _encoder.encode(event)
