"""Speak OpenAI's chat completions over server-sent events, for every vendor that has them."""

import logging
from collections.abc import AsyncGenerator, Iterable, Mapping
from functools import partial
from typing import Any, Literal

import msgspec

from ai_agent_service.core.errors import ProviderProtocolError
from ai_agent_service.core.events import FinishReason, ReasoningDelta, RefusalDelta, TextDelta
from ai_agent_service.core.ids import generate_id
from ai_agent_service.core.messages import (
    AudioPart,
    Content,
    ContentPart,
    FilePart,
    ImagePart,
    Message,
    NamedTool,
    TextPart,
    ToolCall,
    ToolSpec,
)
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.base import ModelEvent, ModelFinished, ModelRequest
from ai_agent_service.providers.http import HttpClient
from ai_agent_service.providers.http_errors import (
    HttpTarget,
    parse_stream_error,
    raise_for_error_event,
)
from ai_agent_service.providers.provider_data import add_provider_data, read_provider_data
from ai_agent_service.providers.sse import EventReader
from ai_agent_service.providers.wire import stream_answer

logger = logging.getLogger(__name__)

FINISH_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


class Profile(msgspec.Struct, frozen=True):
    """How a vendor differs from the wire format.

    `extra_body` is added to each request; `renamed` maps OpenAI's setting names to the vendor's;
    `dropped` are settings it refuses; `reasoning_field` is where the reasoning before tool calls
    comes from and goes back to; `usage_option` says whether it knows
    `stream_options.include_usage`; `images` whether it takes images at all.
    """

    extra_body: Mapping[str, Any] = {}
    renamed: Mapping[str, str] = {}
    dropped: frozenset[str] = frozenset()
    reasoning_field: Literal["reasoning_content", "reasoning"] = "reasoning_content"
    usage_option: bool = True
    images: bool = True
    null_content: bool = False
    """Whether the content beside tool calls is null where there is no text, as OpenAI has it; some
    servers take only a text."""


_DEFAULT_PROFILE = Profile()


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCallDelta(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Part(msgspec.Struct):
    type: str = "text"
    text: str | None = None
    thinking: Any = None


class _Delta(msgspec.Struct):
    content: str | list[_Part] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCallDelta] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None
    index: int | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    cost: Any = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


def stream(
    http: HttpClient, target: HttpTarget, request: ModelRequest, profile: Profile
) -> AsyncGenerator[ModelEvent, None]:
    """Send `request` to `target` and yield the answer's events, as `Provider.stream` promises."""
    encode = partial(encode_request, profile=profile, provider=target.provider)
    answer = _AnswerAssembler(target, request.model, profile)
    return stream_answer(http, target, request, encode, EventReader(), answer)


def encode_request(request: ModelRequest, profile: Profile, provider: str = "") -> bytes:
    """Return `request` as the JSON body of a streamed chat completion of `provider`."""
    body: dict[str, Any] = {
        "model": request.model,
        "messages": to_wire_messages(request.messages, profile, provider),
        "stream": True,
    }
    if profile.usage_option:
        body["stream_options"] = {"include_usage": True}
    for name, value in request.settings.items():
        if name not in profile.dropped and value is not None:
            body[profile.renamed.get(name, name)] = value
    if request.tools:
        body["tools"] = [to_wire_tool(spec, strict=spec.strict) for spec in request.tools]
        choice = request.tool_choice
        if isinstance(choice, NamedTool):
            body["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
        elif choice is not None:
            body["tool_choice"] = choice
    else:
        body.pop("parallel_tool_calls", None)
    body.update(profile.extra_body)
    return msgspec.json.encode(body)


def to_wire_messages(
    messages: Iterable[Message], profile: Profile = _DEFAULT_PROFILE, provider: str = ""
) -> list[dict[str, Any]]:
    """Return `messages` in OpenAI's form, with the data that `provider` sent with its calls.

    Images that tools returned follow in a user message, since tool messages contain only text.
    """
    found: list[dict[str, Any]] = []
    from_tools: list[dict[str, Any]] = []
    for message in messages:
        if message.role != "tool" and from_tools:
            found.append({"role": "user", "content": from_tools})
            from_tools = []
        wire: dict[str, Any] = {
            "role": message.role,
            "content": _build_content(message.content, images=profile.images),
        }
        if message.tool_calls:
            wire["content"] = wire["content"] or (None if profile.null_content else "")
            wire |= read_provider_data(message.tool_calls[0], provider).get("message", {})
            wire["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments or "{}"},
                }
                for call in message.tool_calls
            ]
        if message.role == "tool":
            wire["tool_call_id"] = message.tool_call_id
            if message.images and profile.images:
                heading = f"The images that the call {message.tool_call_id} returned:"
                from_tools.append({"type": "text", "text": heading})
                from_tools.extend(map(_build_part, message.images))
        found.append(wire)
    if from_tools:
        found.append({"role": "user", "content": from_tools})
    return found


def to_finish_reason(said: str) -> FinishReason:
    """Return OpenAI's name of a vendor's finish reason; an unknown one means that the answer is
    complete."""
    if (reason := FINISH_REASONS.get(said.lower())) is not None:
        return reason
    logger.warning("provider.unknown_finish_reason", extra={"reason": said[:40]})
    return "stop"


def to_wire_tool(spec: ToolSpec, *, strict: bool | None = None) -> dict[str, Any]:
    """Return a tool in OpenAI's form; `strict` is left out if it is None."""
    function: dict[str, Any] = {
        "name": spec.name,
        "description": spec.description,
        "parameters": spec.parameters,
    }
    if strict is not None:
        function["strict"] = strict
    return {"type": "function", "function": function}


def _build_content(content: Content, *, images: bool) -> Any:
    if isinstance(content, str):
        return content
    parts = [_build_part(part) for part in content if images or not isinstance(part, ImagePart)]
    return parts or ""


def _build_part(part: ContentPart) -> dict[str, Any]:
    match part:
        case TextPart(text=text):
            return {"type": "text", "text": text}
        case ImagePart(url=url, detail=detail):
            image = {"url": url} if detail is None else {"url": url, "detail": detail}
            return {"type": "image_url", "image_url": image}
        case AudioPart(data=data, format=form):
            return {"type": "input_audio", "input_audio": {"data": data, "format": form}}
        case FilePart():
            fields = msgspec.structs.asdict(part).items()
            return {
                "type": "file",
                "file": {name: value for name, value in fields if value is not None},
            }


def _to_usage(usage: _Usage) -> Usage:
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    return Usage(
        usage.prompt_tokens or 0,
        usage.completion_tokens or 0,
        (prompt.cached_tokens or 0) if prompt else 0,
        (completion.reasoning_tokens or 0) if completion else 0,
        usage.cost if isinstance(usage.cost, int | float) else None,
    )


def _parse_content(content: str | list[_Part]) -> list[ModelEvent]:
    """Return the events of a delta's content: text or, from Mistral's thinking models, parts of
    text and of thoughts."""
    if isinstance(content, str):
        return [TextDelta(content)]
    events: list[ModelEvent] = []
    for part in content:
        if part.thinking:
            thoughts = part.thinking if isinstance(part.thinking, list) else [part.thinking]
            texts = (each.get("text", "") if isinstance(each, dict) else each for each in thoughts)
            events += [ReasoningDelta(str(text)) for text in texts]
        elif part.text:
            events.append(TextDelta(part.text))
    return events


class _AnswerAssembler:
    """Builds one answer from its chunks; `done` once the provider says `[DONE]`."""

    def __init__(self, target: HttpTarget, model: str, profile: Profile) -> None:
        self.done = False
        self._target = target
        self._model = model
        self._profile = profile
        self._reasoning: list[str] = []
        self._calls = _ToolCallAssembler()
        self._reason: str | None = None
        self._usage: Usage | None = None

    def take(self, data: bytes) -> list[ModelEvent]:
        """Return the events of the chunk in `data`; raises the UpstreamError that it means."""
        if data == b"[DONE]":
            self.done = True
            return []
        try:
            chunk = _decode_chunk(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProviderProtocolError(
                f"{self._target.provider} sent a chunk that is not a chat completion chunk."
            ) from error
        if chunk.error:
            raise parse_stream_error(chunk.error, self._target)
        if not chunk.choices:
            raise_for_error_event(data, self._target)
        if chunk.usage is not None:
            self._usage = _to_usage(chunk.usage)
        events: list[ModelEvent] = []
        for choice in chunk.choices or ():
            delta = choice.delta
            if delta is not None:
                if thought := delta.reasoning_content or delta.reasoning:
                    events.append(ReasoningDelta(thought))
                    is_other = self._profile.reasoning_field == "reasoning"
                    wanted = delta.reasoning if is_other else delta.reasoning_content
                    self._reasoning.append(wanted or "")
                if delta.content:
                    events += _parse_content(delta.content)
                if delta.refusal:
                    events.append(RefusalDelta(delta.refusal))
                if delta.tool_calls:
                    self._calls.add(delta.tool_calls)
            if choice.finish_reason:
                self._reason = choice.finish_reason
        return events

    def finish(self) -> ModelFinished:
        """Return the last event; raises ProviderProtocolError if the answer is incomplete."""
        if self._reason is None:
            raise ProviderProtocolError(
                f"The answer of {self._target.provider} ended without a finish reason."
            )
        if self._reason == "error":
            raise ProviderProtocolError(f"{self._target.provider} ended its answer with an error.")
        calls = self._calls.build_calls()
        reasoning = "".join(self._reasoning)
        if calls and reasoning:
            data = {"message": {self._profile.reasoning_field: reasoning}}
            calls = (
                add_provider_data(calls[0], self._target.provider, self._model, data),
                *calls[1:],
            )
        return ModelFinished(to_finish_reason(self._reason), calls, self._usage)


class _ToolCallAssembler:
    """Builds tool calls from their pieces, also from servers that omit the index or the id, or
    repeat them or the name."""

    def __init__(self) -> None:
        self._calls: list[_PartialToolCall] = []
        self._by_index: dict[int, _PartialToolCall] = {}

    def add(self, deltas: list[_ToolCallDelta]) -> None:
        for delta in deltas:
            call = self._find_call(delta)
            call.id = call.id or delta.id
            if delta.function is not None:
                if delta.function.name and delta.function.name != call.name:
                    call.name += delta.function.name
                if delta.function.arguments:
                    call.arguments.append(delta.function.arguments)

    def build_calls(self) -> tuple[ToolCall, ...]:
        found: dict[str, ToolCall] = {}
        for call in self._calls:
            call_id = call.id if call.id and call.id not in found else generate_id("call_")
            found[call_id] = ToolCall(call_id, call.name, "".join(call.arguments))
        return tuple(found.values())

    def _find_call(self, delta: _ToolCallDelta) -> "_PartialToolCall":
        """Return the call that `delta` belongs to, a new one if it begins one."""
        if delta.index is not None:
            call = self._by_index.get(delta.index)
        elif delta.id:
            call = next((call for call in self._calls if call.id == delta.id), None)
        else:
            call = self._calls[-1] if self._calls else None
        if call is None or _is_new_call(delta, call):
            call = _PartialToolCall()
            self._calls.append(call)
            if delta.index is not None:
                self._by_index[delta.index] = call
        return call


class _PartialToolCall(msgspec.Struct):
    id: str | None = None
    name: str = ""
    arguments: list[str] = []


def _is_new_call(delta: _ToolCallDelta, call: _PartialToolCall) -> bool:
    """Return whether `delta` begins a call at the place of `call`: it has another id, or a name
    after complete arguments (Gemini has no ids)."""
    if delta.function is None or not delta.function.name:
        return False
    if delta.id and call.id:
        return delta.id != call.id
    return bool(call.arguments) and _is_json("".join(call.arguments))


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
