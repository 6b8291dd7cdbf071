"""A run as OpenAI's chunks of a chat completion."""

import time

import msgspec

from ai_agent_service.api.http.errors import error_json
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
from ai_agent_service.core.events import ReasoningDelta, RefusalDelta, RunEvent, RunFinished, TextDelta
from ai_agent_service.core.ids import new_id
from ai_agent_service.core.messages import ToolCall
from ai_agent_service.core.usage import Usage

_encoder = msgspec.json.Encoder()


class ChunkFrames(Frames):
    """A run as OpenAI's chunks; our own tools do not show, for a client would take them for calls of its own."""

    def __init__(self, model: str, *, include_usage: bool, fingerprint: str | msgspec.UnsetType = msgspec.UNSET) -> None:
        self._fingerprint = fingerprint
        self._id = new_id("chatcmpl-")
        self._created = int(time.time())
        self._model = model
        self._include_usage = include_usage
        self._role_is_told = False
        # One text chunk differs from the next in its text alone, so that everything around it is encoded once.
        self._before, self._after = self._frame(Delta(content="")).split(b'""')

    def event(self, event: RunEvent) -> bytes:
        """A chunk for a delta, nothing for the rest."""
        if isinstance(event, TextDelta):
            if self._role_is_told:
                return b"%b%b%b" % (self._before, _encoder.encode(event.text), self._after)
            return self._chunk(Delta(content=event.text))
        if isinstance(event, ReasoningDelta):
            return self._chunk(Delta(reasoning_content=event.text))
        if isinstance(event, RefusalDelta):
            return self._chunk(Delta(refusal=event.text))
        return b""

    def finished(self, event: RunFinished) -> bytes:
        """The client's calls, the finish reason, and the usage if it was asked for."""
        frames = [] if self._role_is_told else [self._chunk(Delta(content=""))]
        if event.tool_calls:
            calls = [ToolCallDelta(number, call.id, called(call)) for number, call in enumerate(event.tool_calls)]
            frames.append(self._chunk(Delta(tool_calls=calls)))
        frames.append(self._chunk(Delta(), event.reason))
        if self._include_usage and (usage := self.usage(event)) is not None:
            frames.append(b'data: %b,"usage":%b}\n\n' % (self.without_choices(), _encoder.encode(usage)))
        return b"".join(frames)

    def usage(self, event: RunFinished) -> CompletionUsage | None:
        """What the run took; None where it is not known."""
        return None if event.usage is None else usage_of(event.usage)

    def failed(self, error: ServiceError) -> bytes:
        """The error as clients of OpenAI know it from a stream."""
        return b"data: %b\n\n" % error_json(error)

    def without_choices(self) -> bytes:
        """A chunk without choices, its closing brace left out for what is to stand in it."""
        return _encoder.encode(ChatCompletionChunk(self._id, self._created, self._model, [], self._fingerprint)).removesuffix(b"}")

    def chunk_with(self, delta: dict[str, object]) -> bytes:
        """A chunk whose delta has what OpenAI's does not know."""
        if not self._role_is_told:
            self._role_is_told = True
            delta = {"role": "assistant", **delta}
        choice = _encoder.encode({"index": 0, "delta": delta, "finish_reason": None, "logprobs": None})
        envelope = self.without_choices().replace(b'"choices":[]', b'"choices":[%b]' % choice)
        return b"data: %b}\n\n" % envelope

    def _chunk(self, delta: Delta, finish_reason: str | None = None) -> bytes:
        if not self._role_is_told:
            self._role_is_told = True
            delta.role = "assistant"
        return self._frame(delta, finish_reason)

    def _frame(self, delta: Delta, finish_reason: str | None = None) -> bytes:
        chunk = ChatCompletionChunk(self._id, self._created, self._model, [ChunkChoice(delta, finish_reason)], self._fingerprint)
        return b"data: %b\n\n" % _encoder.encode(chunk)


def usage_of(usage: Usage) -> CompletionUsage:
    """Usage in OpenAI's form."""
    return CompletionUsage(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        PromptTokensDetails(usage.cached_tokens),
        CompletionTokensDetails(usage.reasoning_tokens),
        msgspec.UNSET if usage.cost is None else usage.cost,
    )


def called(call: ToolCall) -> CalledFunction:
    """What is called, in OpenAI's form."""
    return CalledFunction(call.name, call.arguments)
