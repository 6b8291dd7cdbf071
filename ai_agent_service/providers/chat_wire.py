"""Speak OpenAI's chat completions over server-sent events, for every vendor that has them."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import msgspec

from ai_agent_service.core.errors import ProviderProtocolError, ServiceError
from ai_agent_service.core.events import FinishReason, ReasoningDelta, RefusalDelta, TextDelta
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
from ai_agent_service.providers.finish_reasons import (
    find_meaning,
    read_finish_reason,
    to_finish_reason,
)
from ai_agent_service.providers.http_errors import (
    HttpTarget,
    parse_stream_error,
    read_other_event,
)
from ai_agent_service.providers.lenient import (
    UNREADABLE,
    TextCleaner,
    is_done,
    parse_json,
    read_count,
    read_items,
    read_text,
    report_oddity,
)
from ai_agent_service.providers.provider_data import (
    add_provider_data,
    merge_members,
    read_provider_data,
)
from ai_agent_service.providers.sse import EventReader
from ai_agent_service.providers.tool_calls import ToolCallAssembler
from ai_agent_service.providers.usage_fields import parse_usage
from ai_agent_service.providers.wire import Exchange, Recover, not_recovered


class Profile(msgspec.Struct, frozen=True):
    """How a vendor differs from the wire format.

    `extra_body` is added to each request; `renamed` maps OpenAI's setting names to the vendor's;
    `dropped` are settings it refuses; `usage_option` says whether it knows
    `stream_options.include_usage`; `images` whether it takes images at all; `reasoning_object`
    whether it takes `reasoning` as it is, in place of `reasoning_effort`.
    """

    extra_body: Mapping[str, Any] = {}
    renamed: Mapping[str, str] = {}
    dropped: frozenset[str] = frozenset()
    usage_option: bool = True
    images: bool = True
    null_content: bool = False
    """Whether the content beside tool calls is null where there is no text, as OpenAI has it; some
    servers take only a text."""
    reasoning_object: bool = False


_DEFAULT_PROFILE = Profile()


class _Delta(msgspec.Struct):
    """A delta or a whole message. Only its shape is checked by the decoder."""

    content: Any = None
    tool_calls: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    reasoning_text: Any = None
    reasoning_details: Any = None
    reasoning_opaque: Any = None
    thinking_blocks: Any = None
    thought_signature: Any = None
    extra_content: Any = None
    provider_specific_fields: Any = None
    signature: Any = None
    encrypted_content: Any = None
    refusal: Any = None
    function_call: Any = None


_OWN_MEMBERS = frozenset({"content", "tool_calls", "refusal", "function_call"})
"""The members of a message in OpenAI's own form. Its provider wants the others back unchanged:
`reasoning_content` DeepSeek, llama.cpp; `reasoning` vLLM, Groq; `reasoning_text` and
`reasoning_opaque` GitHub Copilot; `reasoning_details` OpenRouter, MiniMax; `thinking_blocks`
and `provider_specific_fields` LiteLLM; `thought_signature` and `extra_content` Gemini; `signature`
and `encrypted_content` proxies of Anthropic and OpenAI."""


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: Any = None
    message: _Delta | None = None
    usage: Any = None
    error: Any = None
    index: Any = 0
    text: Any = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None
    x_groq: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


def build_exchange(
    target: HttpTarget, request: ModelRequest, profile: Profile, recover: Recover = not_recovered
) -> Exchange:
    """Return `request` to `target` as a chat completion."""
    encode = partial(encode_request, request, profile, target.provider)
    answer = _AnswerAssembler(target, request.model, [spec.name for spec in request.tools])
    return Exchange(target, encode, EventReader(), answer, recover)


def encode_request(request: ModelRequest, profile: Profile, provider: str = "") -> bytes:
    """Return `request` as the JSON body of a streamed chat completion of `provider`."""
    body: dict[str, Any] = {
        "model": request.model,
        "messages": to_wire_messages(request.messages, profile, provider),
        "stream": True,
    }
    if profile.usage_option:
        body["stream_options"] = {"include_usage": True}
    settings = request.settings if profile.reasoning_object else flatten_reasoning(request.settings)
    for name, value in settings.items():
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


def flatten_reasoning(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `settings` with `reasoning_effort` in place of `reasoning`, of which servers without
    the Responses API take only the effort."""
    reasoning = settings.get("reasoning")
    if not isinstance(reasoning, Mapping):
        return settings
    found = {name: value for name, value in settings.items() if name != "reasoning"}
    if (effort := reasoning.get("effort")) is not None:
        found.setdefault("reasoning_effort", effort)
    return found


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
            kept = read_provider_data(message.tool_calls[0], provider)
            content = _add_thoughts(kept.get("content"), wire["content"])
            wire["content"] = content or (None if profile.null_content else "")
            wire |= kept.get("message", {})
            wire["tool_calls"] = [_build_call(call, provider) for call in message.tool_calls]
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


def _add_thoughts(thoughts: list[Any] | None, content: Any) -> Any:
    """Return the content with the parts of thoughts before it that Mistral's models sent."""
    if not thoughts:
        return content
    if isinstance(content, str):
        content = [{"type": "text", "text": content}] if content else []
    return [*thoughts, *content]


def _build_call(call: ToolCall, provider: str) -> dict[str, Any]:
    kept = read_provider_data(call, provider)
    function = {"name": call.name, "arguments": call.arguments or "{}"}
    return {
        **kept.get("call", {}),
        "id": call.id,
        "type": "function",
        "function": {**kept.get("function", {}), **function},
    }


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


_EVENTS: Mapping[str, Callable[[str], ModelEvent]] = {
    "text": TextDelta,
    "reasoning": ReasoningDelta,
    "refusal": RefusalDelta,
}


class _AnswerAssembler:
    """Builds one answer from its chunks; `done` once the provider says `[DONE]`.

    Chunks are decoded to structs, which is fast; one that has another shape or is not quite JSON is
    read member by member.
    """

    def __init__(self, target: HttpTarget, model: str, tools: Iterable[str]) -> None:
        self.done = False
        self._target = target
        self._model = model
        self._said: list[str] = []
        self._is_refusal = False
        self._is_unreadable = False
        self._has_odd_text = False
        self._is_whole = False
        self._index = 0
        self._other_error: ServiceError | None = None
        self._cleaner = TextCleaner()
        self._thinking: list[_Delta] = []
        self._has_thoughts = False
        self._calls = ToolCallAssembler(tools, self._report)
        self._reason: str | None = None
        self._usage: Usage | None = None

    def take(self, data: bytes) -> list[ModelEvent]:
        """Return the events of the chunk in `data`; raises the UpstreamError that it means."""
        try:
            chunk = _decode_chunk(data)
        except UNREADABLE:
            if is_done(data):
                self.done = True
                return self._end_texts()
            chunk = self._read_leniently(data)
        if chunk.error:
            raise parse_stream_error(parse_json(data), self._target)
        if not chunk.choices:
            self._take_other(data)
        events: list[ModelEvent] = []
        for choice in chunk.choices or ():
            if choice.index and self._is_alternative(choice.index):
                continue
            if (delta := choice.delta) is not None:
                self._take_delta(delta, events)
            if choice.message is not None:
                self._is_whole = self._is_whole or delta is None
                self._take_message(choice.message, events)
            elif delta is None and choice.text:
                self._take_delta(_Delta(choice.text), events)
            if choice.finish_reason or choice.usage or choice.error:
                self._take_end(choice, events)
        if chunk.usage:
            self._take_usage(chunk.usage)
        elif isinstance(chunk.x_groq, dict):
            self._take_usage(chunk.x_groq.get("usage"))
        return events

    def finish(self) -> ModelFinished:
        """Return the last event; raises ProviderProtocolError if the answer is incomplete."""
        calls = self._calls.build_calls()
        has_output = bool(self._said or self._is_refusal or calls)
        reason = self._find_reason(has_output=has_output, has_calls=bool(calls))
        if self._calls.calls and not has_output:
            raise ProviderProtocolError(f"{self._target.provider} called a tool without naming it.")
        if self._is_unreadable and not has_output:
            raise ProviderProtocolError(
                f"{self._target.provider} sent a chunk that is not a chat completion chunk."
            )
        return ModelFinished(reason, self._add_kept(calls), self._usage)

    def _read_leniently(self, data: bytes) -> _Chunk:
        """Return what can be read of a chunk that is not valid or has another shape."""
        try:
            value = parse_json(data)
        except ValueError:
            value = None
        if isinstance(value, list) and len(value) == 1:
            value = value[0]  # Google's form of an error
        if not isinstance(value, dict):
            self._is_unreadable = True
            self._report("chunk")
            return _Chunk()
        self._has_odd_text = True
        self._report("members of a chunk")
        choices = value.get("choices")
        if isinstance(choices, dict) and not choices.keys() & set(_Choice.__struct_fields__):
            choices = list(choices.values())
        found = [each for each in map(_read_choice, read_items(choices)) if each is not None]
        return _Chunk(found, value.get("usage"), value.get("error"), value.get("x_groq"))

    def _take_other(self, data: bytes) -> None:
        """Take an event without a choice, whose message counts if the answer breaks off."""
        try:
            value = parse_json(data)
        except ValueError:
            return
        self._other_error = read_other_event(value, self._target) or self._other_error

    def _is_alternative(self, value: Any) -> bool:
        """Return whether a choice with the index `value` is not the one that came first."""
        index = read_count(value) or 0
        if not (self._said or self._thinking or self._calls.calls):
            self._index = index
        return index != self._index

    def _take_delta(self, delta: _Delta, events: list[ModelEvent]) -> None:
        if thought := delta.reasoning_content or delta.reasoning or delta.reasoning_text:
            self._thinking.append(delta)
            self._has_thoughts = True
            if type(thought) is not str or self._has_odd_text or "\0" in thought:
                self._say("reasoning", thought, events)
            else:
                events.append(ReasoningDelta(thought))
        elif (
            delta.reasoning_details
            or delta.thinking_blocks
            or delta.reasoning_opaque
            or delta.thought_signature
            or delta.extra_content
            or delta.provider_specific_fields
            or delta.signature
            or delta.encrypted_content
        ):
            self._take_other_thoughts(delta, events)
        if content := delta.content:
            if type(content) is not str:
                self._take_parts(delta, events)
            elif self._has_odd_text or "\0" in content:
                self._say("text", content, events)
            else:
                self._said.append(content)
                events.append(TextDelta(content))
        if delta.refusal:
            self._say("refusal", delta.refusal, events)
        if delta.tool_calls:
            self._calls.add(delta.tool_calls)
        elif delta.function_call:
            self._calls.add_legacy(delta.function_call)

    def _take_other_thoughts(self, delta: _Delta, events: list[ModelEvent]) -> None:
        """Take what a provider wants back, and show thoughts that come in no other form."""
        self._thinking.append(delta)
        if not self._has_thoughts:
            text = read_text(delta.reasoning_details or delta.thinking_blocks)
            self._say("reasoning", text, events)

    def _take_parts(self, delta: _Delta, events: list[ModelEvent]) -> None:
        """Take content that is not a string but, as from Mistral's thinking models, a list of parts
        of text and of thoughts."""
        content = delta.content if isinstance(delta.content, list) else [delta.content]
        for part in content:
            if _is_thought(part):
                if not (self._thinking and self._thinking[-1] is delta):
                    self._thinking.append(delta)
                self._say("reasoning", part.get("thinking") or part, events)
            elif isinstance(part, dict) and part.get("refusal"):
                self._say("refusal", part["refusal"], events)
            elif isinstance(part, dict) and not part.get("text"):
                self._report(f"content of the type {str(part.get('type'))[:40]}")
            else:
                text = part["text"] if isinstance(part, dict) else part
                self._say("text", text, events)

    def _take_message(self, message: _Delta, events: list[ModelEvent]) -> None:
        """Take a whole message, or what it has beyond the deltas, which some servers repeat in
        it."""
        said, content = "".join(self._said), message.content
        if isinstance(content, str) and content.startswith(said):
            message.content = content[len(said) :]
        elif said and said.strip().startswith(read_text(content).strip()):
            message.content = None
        if self._calls.calls:
            message.tool_calls = message.function_call = None
        if self._is_refusal:
            message.refusal = None
        if self._thinking:
            message = _Delta(
                message.content,
                message.tool_calls,
                refusal=message.refusal,
                function_call=message.function_call,
            )
        self._take_delta(message, events)

    def _take_end(self, choice: _Choice, events: list[ModelEvent]) -> None:
        if choice.error:
            raise parse_stream_error(choice.error, self._target)
        if choice.usage:  # Moonshot
            self._take_usage(choice.usage)
        reason = read_finish_reason(choice.finish_reason)
        if reason is not None:
            # A second reason says more than the first one or repeats it.
            if self._reason is None or find_meaning(reason) != "stop":
                self._reason = reason
            events += self._end_texts()
        elif choice.finish_reason and not isinstance(choice.finish_reason, str):
            self._report("finish_reason")

    def _take_usage(self, value: Any) -> None:
        """Take the tokens so far, which a later chunk may count again."""
        usage = parse_usage(value)
        if usage is not None and (usage.total_tokens or self._usage is None):
            self._usage = usage

    def _say(self, kind: str, value: Any, events: list[ModelEvent]) -> None:
        """Add the event of a text that may be of any type and have odd characters."""
        if not isinstance(value, str):
            self._report(kind)
        text = self._cleaner.clean(kind, read_text(value))
        if text:
            self._record(kind, text, events)

    def _record(self, kind: str, text: str, events: list[ModelEvent]) -> None:
        if kind == "text":
            self._said.append(text)
        self._is_refusal = self._is_refusal or kind == "refusal"
        events.append(_EVENTS[kind](text))

    def _end_texts(self) -> list[ModelEvent]:
        events: list[ModelEvent] = []
        for kind, text in self._cleaner.take_rest():
            self._record(kind, text, events)
        return events

    def _find_reason(self, *, has_output: bool, has_calls: bool) -> FinishReason:
        if self._reason is not None:
            if find_meaning(self._reason) is None and not has_output:
                raise ProviderProtocolError(
                    f"{self._target.provider} ended an empty answer: {self._reason[:80]}."
                )
            return to_finish_reason(self._reason, self._target.provider)
        if self._other_error is not None:
            raise self._other_error
        is_complete = all(call.has_complete_arguments for call in self._calls.calls)
        if not ((self.done or self._is_whole) and has_output and is_complete):
            raise ProviderProtocolError(
                f"The answer of {self._target.provider} ended without a finish reason."
            )
        self._report("no finish_reason")
        return "tool_calls" if has_calls else "stop"

    def _add_kept(self, calls: list[tuple[ToolCall, dict[str, Any]]]) -> tuple[ToolCall, ...]:
        """Return the calls with what the provider wants back, that of the message on the first."""
        found = []
        for place, (call, kept) in enumerate(calls):
            if not place:
                members = merge_members(self._list_members())
                kept |= {"content": members.pop("content", None), "message": members}
            found.append(add_provider_data(call, self._target.provider, self._model, kept))
        return tuple(found)

    def _list_members(self) -> Iterable[tuple[str, Any]]:
        for delta in self._thinking:
            for name, value in msgspec.structs.asdict(delta).items():
                if name not in _OWN_MEMBERS and value:
                    yield name, value
            thoughts = [part for part in read_items(delta.content) if _is_thought(part)]
            if thoughts:
                yield "content", thoughts

    def _report(self, kind: str) -> None:
        report_oddity(self._target.provider, kind)


def _read_choice(value: Any) -> _Choice | None:
    if not isinstance(value, dict):
        return None
    return _Choice(
        _read_delta(value.get("delta")),
        value.get("finish_reason"),
        _read_delta(value.get("message")),
        value.get("usage"),
        value.get("error"),
        value.get("index"),
        value.get("text"),
    )


def _read_delta(value: Any) -> _Delta | None:
    if not isinstance(value, dict):
        return None
    return _Delta(*(value.get(name) for name in _Delta.__struct_fields__))


def _is_thought(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    return "thinking" in part or part.get("type") in ("thinking", "reasoning")
