"""A run as OpenAI's chunks of a chat completion."""

import time

import msgspec

from ai_agent_service.api.http.errors import encode_error
from ai_agent_service.api.http.run_response import Frames
from ai_agent_service.api.openai.chat_schema import (
    CalledFunction,
    ChatCompletionChunk,
    ChunkChoice,
    CompletionTokensDetails,
    CompletionUsage,
    Delta,
    PromptTokensDetails,
    ToolCallDelta,
)
from ai_agent_service.core.errors import ServiceError
from ai_agent_service.core.events import (
    ReasoningDelta,
    RefusalDelta,
    RunEvent,
    RunFinished,
    TextDelta,
)
from ai_agent_service.core.ids import generate_id
from ai_agent_service.core.messages import ToolCall
from ai_agent_service.core.usage import Usage

_encoder = msgspec.json.Encoder()


class ChunkFrames(Frames):
    """A run as OpenAI's chunks; our own tools do not show, for a client would take them for calls
    of its own."""

    def __init__(
        self,
        model: str,
        *,
        include_usage: bool,
        fingerprint: str | msgspec.UnsetType = msgspec.UNSET,
    ) -> None:
        self._fingerprint = fingerprint
        self._id = generate_id("chatcmpl-")
        self._created = int(time.time())
        self._model = model
        self._include_usage = include_usage
        self._role_is_sent = False
        # One text chunk differs from the next in its text alone, so that everything around it is
        # encoded once.
        self._before, self._after = self._encode_frame(Delta(content="")).split(b'""')

    def render_event(self, event: RunEvent) -> bytes:
        """A chunk for a delta, nothing for the rest."""
        if isinstance(event, TextDelta):
            frame = b"%b%b%b" % (self._before, _encoder.encode(event.text), self._after)
            return frame if self._role_is_sent else self._put_role_before(frame)
        if isinstance(event, ReasoningDelta):
            return self._encode_chunk(Delta(reasoning_content=event.text))
        if isinstance(event, RefusalDelta):
            return self._encode_chunk(Delta(refusal=event.text))
        return b""

    def render_finish(self, event: RunFinished) -> bytes:
        """The client's calls, the finish reason, and the usage if it was asked for."""
        frames = []
        if event.tool_calls:
            calls = [
                ToolCallDelta(number, call.id, to_called_function(call))
                for number, call in enumerate(event.tool_calls)
            ]
            frames.append(self._encode_chunk(Delta(tool_calls=calls)))
        frames.append(self._encode_chunk(Delta(), event.reason))
        if self._include_usage and (usage := self.build_usage(event)) is not None:
            frames.append(
                b'data: %b,"usage":%b}\n\n' % (self.encode_envelope(), _encoder.encode(usage))
            )
        return b"".join(frames)

    def build_usage(self, event: RunFinished) -> CompletionUsage | None:
        """What the run took; None where it is not known."""
        return None if event.usage is None else to_completion_usage(event.usage)

    def render_error(self, error: ServiceError) -> bytes:
        """The error as clients of OpenAI know it from a stream."""
        return b"data: %b\n\n" % encode_error(error)

    def encode_envelope(self) -> bytes:
        """A chunk without choices, its closing brace left out for what is to stand in it."""
        return _encoder.encode(
            ChatCompletionChunk(self._id, self._created, self._model, [], self._fingerprint)
        ).removesuffix(b"}")

    def encode_custom_chunk(self, delta: dict[str, object]) -> bytes:
        """A chunk whose delta has what OpenAI's does not know."""
        choice = _encoder.encode(
            {"index": 0, "delta": delta, "finish_reason": None, "logprobs": None}
        )
        envelope = self.encode_envelope().replace(b'"choices":[]', b'"choices":[%b]' % choice)
        return self._put_role_before(b"data: %b}\n\n" % envelope)

    def _encode_chunk(self, delta: Delta, finish_reason: str | None = None) -> bytes:
        frame = self._encode_frame(delta, finish_reason)
        return self._put_role_before(frame, content=not delta.refusal)

    def _put_role_before(self, frame: bytes, *, content: bool = True) -> bytes:
        """Return the stream's first `frame` after one with the role alone, as OpenAI sends it:
        some clients read no text from the chunk that has the role. It has empty `content`, unless
        none follows."""
        if self._role_is_sent:
            return frame
        self._role_is_sent = True
        role = Delta(role="assistant", content="") if content else Delta(role="assistant")
        return self._encode_frame(role) + frame

    def _encode_frame(self, delta: Delta, finish_reason: str | None = None) -> bytes:
        chunk = ChatCompletionChunk(
            self._id,
            self._created,
            self._model,
            [ChunkChoice(delta, finish_reason)],
            self._fingerprint,
        )
        return b"data: %b\n\n" % _encoder.encode(chunk)


def to_completion_usage(usage: Usage) -> CompletionUsage:
    """Usage in OpenAI's form."""
    return CompletionUsage(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        PromptTokensDetails(usage.cached_tokens),
        CompletionTokensDetails(usage.reasoning_tokens),
        msgspec.UNSET if usage.cost is None else usage.cost,
    )


def to_called_function(call: ToolCall) -> CalledFunction:
    """What is called, in OpenAI's form."""
    return CalledFunction(call.name, call.arguments)
