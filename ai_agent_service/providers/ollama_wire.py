"""Speak Ollama's native chat over newline-delimited JSON."""

import re
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from functools import partial
from typing import Any

import msgspec

from ai_agent_service.core.bounds import MAX_OLLAMA_LINE_BYTES
from ai_agent_service.core.errors import InvalidRequestError, ProviderProtocolError, ServiceError
from ai_agent_service.core.events import ReasoningDelta, TextDelta
from ai_agent_service.core.ids import generate_id
from ai_agent_service.core.messages import ImagePart, Message, TextPart, ToolCall
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.base import ModelEvent, ModelFinished, ModelRequest
from ai_agent_service.providers.chat_wire import flatten_reasoning, to_wire_tool
from ai_agent_service.providers.finish_reasons import read_finish_reason, to_finish_reason
from ai_agent_service.providers.http import HttpClient
from ai_agent_service.providers.http_errors import (
    HttpTarget,
    parse_stream_error,
    read_other_event,
)
from ai_agent_service.providers.lenient import (
    UNREADABLE,
    TextCleaner,
    clean,
    parse_json,
    read_items,
    read_text,
    report_oddity,
)
from ai_agent_service.providers.provider_data import add_provider_data, read_provider_data
from ai_agent_service.providers.tool_calls import PartialToolCall, read_piece
from ai_agent_service.providers.usage_fields import parse_usage
from ai_agent_service.providers.wire import Exchange, stream_answer

_DATA_URL = re.compile(r"^data:[^;,]*;base64,(.*)$", re.DOTALL)

TOP_LEVEL = frozenset({"keep_alive", "think", "format"})
RENAMED = {"max_tokens": "num_predict", "max_completion_tokens": "num_predict"}
DROPPED = frozenset(
    {
        "logit_bias",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "reasoning_effort",
        "response_format",
        "service_tier",
        "verbosity",
    }
)


class _RawFunction(msgspec.Struct):
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class _RawCall(msgspec.Struct):
    function: _RawFunction


class _ResponseMessage(msgspec.Struct):
    """A message. Only its shape is checked by the decoder."""

    content: Any = None
    thinking: Any = None
    tool_calls: msgspec.Raw = msgspec.Raw(b"")


class _Line(msgspec.Struct):
    message: _ResponseMessage | None = None
    done: Any = False
    done_reason: Any = None
    prompt_eval_count: Any = None
    eval_count: Any = None
    error: Any = None


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_written_calls = msgspec.json.Decoder(list[_RawCall]).decode


def stream(
    http: HttpClient, target: HttpTarget, request: ModelRequest
) -> AsyncGenerator[ModelEvent, None]:
    """Send `request` to `target` and yield the answer's events, as `Provider.stream` promises."""
    answer = _AnswerAssembler(target, request.model)
    encode = partial(encode_request, request, target.provider)
    return stream_answer(http, request, Exchange(target, encode, _LineReader(), answer))


def encode_request(request: ModelRequest, provider: str = "") -> bytes:
    """Return `request` as the JSON body of a streamed `/api/chat` of `provider`."""
    body: dict[str, Any] = {
        "model": request.model,
        "messages": to_wire_messages(request.messages, provider),
        "stream": True,
    }
    options: dict[str, Any] = {}
    settings = flatten_reasoning(request.settings)
    for name, value in settings.items():
        if value is None or name in DROPPED:
            continue
        if name in TOP_LEVEL:
            body[name] = value
        elif name == "options" and isinstance(value, dict):
            options.update(value)
        else:
            options[RENAMED.get(name, name)] = (
                [value] if name == "stop" and isinstance(value, str) else value
            )
    if options:
        body["options"] = options
    form = _build_format(request.settings.get("response_format"))
    if form is not None:
        body["format"] = form
    effort = settings.get("reasoning_effort")
    if effort is not None and "think" not in body:
        body["think"] = False if effort in ("none", "minimal") else effort
    if request.tools and request.tool_choice != "none":
        body["tools"] = [to_wire_tool(spec) for spec in request.tools]
    return msgspec.json.encode(body)


def to_wire_messages(messages: Iterable[Message], provider: str = "") -> list[dict[str, Any]]:
    """Return `messages` in Ollama's form: text separate from base64 images, tool results with the
    tool's name, and the thoughts that `provider` sent with its calls."""
    names: dict[str, str] = {}
    found: list[dict[str, Any]] = []
    for message in messages:
        wire: dict[str, Any] = {"role": message.role, "content": message.text}
        images = list(message.images)
        if not isinstance(message.content, str):
            images += [part for part in message.content if isinstance(part, ImagePart)]
            if not all(isinstance(part, TextPart | ImagePart) for part in message.content):
                raise InvalidRequestError(
                    "Ollama takes text and images only.",
                    param="messages",
                    code="unsupported_content",
                )
        if images:
            wire["images"] = [_extract_base64(image) for image in images]
        if message.tool_calls:
            wire |= read_provider_data(message.tool_calls[0], provider).get("message", {})
            wire["tool_calls"] = [_build_call(call, provider) for call in message.tool_calls]
            names.update((call.id, call.name) for call in message.tool_calls)
        if message.role == "tool":
            wire["tool_name"] = names.get(message.tool_call_id or "", "")
        found.append(wire)
    return found


def _build_call(call: ToolCall, provider: str) -> dict[str, Any]:
    kept = read_provider_data(call, provider)
    function = {"name": call.name, "arguments": _parse_arguments(call.arguments)}
    return {**kept.get("call", {}), "function": {**kept.get("function", {}), **function}}


class _LineReader:
    """Splits a stream into its lines that are not blank; the last one need not be terminated."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._held = 0

    def feed(self, piece: bytes) -> Iterable[bytes]:
        """Return the lines that `piece` completes; raises ProviderProtocolError for one over 16
        MiB."""
        first, *lines = piece.split(b"\n")
        self._pieces.append(first)
        self._held += len(first)
        if lines:
            lines.insert(0, b"".join(self._pieces))
            rest = lines.pop()
            self._pieces, self._held = [rest], len(rest)
        if self._held > MAX_OLLAMA_LINE_BYTES:
            raise ProviderProtocolError("The provider sent a line of more than 16 MiB.")
        return filter(bytes.strip, lines)

    def close(self) -> list[bytes]:
        """Return the line that the stream's end left open."""
        rest = b"".join(self._pieces)
        return [rest] if rest.strip() else []


_EVENTS: Mapping[str, Callable[[str], ModelEvent]] = {
    "content": TextDelta,
    "thinking": ReasoningDelta,
}


class _AnswerAssembler:
    """Builds one answer from its lines; `done` once a line says so.

    Lines are decoded to structs, which is fast; one that has another shape or is not quite JSON is
    read member by member.
    """

    def __init__(self, target: HttpTarget, model: str) -> None:
        self.done = False
        self._target = target
        self._model = model
        self._reasoning: list[str] = []
        self._calls: list[tuple[ToolCall, dict[str, Any]]] = []
        self._reason: str | None = None
        self._usage: Usage | None = None
        self._has_text = False
        self._is_unreadable = False
        self._has_odd_text = False
        self._other_error: ServiceError | None = None
        self._cleaner = TextCleaner()

    def take(self, data: bytes) -> list[ModelEvent]:
        """Return the events of a line; raises the UpstreamError that it means."""
        try:
            line = _decode_line(data)
        except UNREADABLE:
            line = self._read_leniently(data)
        if said := line.error:
            raise parse_stream_error(
                {"message": said} if isinstance(said, str) else said, self._target
            )
        if line.message is None and not line.done:
            self._take_other(data)
        events: list[ModelEvent] = []
        if (message := line.message) is not None:
            if thought := message.thinking:
                if type(thought) is not str or self._has_odd_text or "\0" in thought:
                    self._say("thinking", thought, events)
                else:
                    self._reasoning.append(thought)
                    events.append(ReasoningDelta(thought))
            if content := message.content:
                if type(content) is not str or self._has_odd_text or "\0" in content:
                    self._say("content", content, events)
                else:
                    self._has_text = True
                    events.append(TextDelta(content))
            if len(message.tool_calls):
                self._take_calls(message.tool_calls)
        if line.done or line.done_reason or line.eval_count:
            self._take_end(line, events)
        return events

    def finish(self) -> ModelFinished:
        """Return the last event; raises ProviderProtocolError if the answer is incomplete."""
        if not self.done and self._reason is None:
            if self._other_error is not None:
                raise self._other_error
            raise ProviderProtocolError(
                f"The answer of {self._target.provider} ended without a finish reason."
            )
        reason = to_finish_reason(self._reason or "stop", self._target.provider)
        if self._is_unreadable and not (self._has_text or self._calls):
            raise ProviderProtocolError(
                f"{self._target.provider} sent a line that is not a chat answer."
            )
        calls = []
        for place, (call, kept) in enumerate(self._calls):
            if self._reasoning and not place:
                kept["message"] = {"thinking": "".join(self._reasoning)}
            calls.append(add_provider_data(call, self._target.provider, self._model, kept))
        return ModelFinished("tool_calls" if calls else reason, tuple(calls), self._usage)

    def _read_leniently(self, data: bytes) -> _Line:
        """Return what can be read of a line that is not valid or has another shape."""
        try:
            value = parse_json(data)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            self._is_unreadable = True
            self._report("line")
            return _Line()
        self._has_odd_text = True
        self._report("members of a line")
        line = _Line(**{name: value.get(name) for name in _Line.__struct_fields__})
        message = value.get("message")
        line.message = None
        if isinstance(message, dict):
            calls = msgspec.Raw(msgspec.json.encode(clean(message.get("tool_calls"))))
            line.message = _ResponseMessage(message.get("content"), message.get("thinking"), calls)
        return line

    def _take_other(self, data: bytes) -> None:
        """Take a line without a message, whose words count if the answer breaks off."""
        try:
            value = parse_json(data)
        except ValueError:
            return
        self._other_error = read_other_event(value, self._target) or self._other_error

    def _take_calls(self, raw: msgspec.Raw) -> None:
        """Take calls, each of which is whole, with their arguments as they are written."""
        entries = msgspec.json.decode(raw)
        try:
            written = [
                bytes(call.function.arguments).decode() for call in _decode_written_calls(raw)
            ]
        except UNREADABLE:
            written = []
        if entries is not None and not isinstance(entries, list):
            self._report("tool_calls")
        for place, entry in enumerate(read_items(entries)):
            piece = read_piece(entry)
            if piece is None or not piece.name:
                self._report("tool_calls[]")
                continue
            arguments = piece.arguments
            if written and not isinstance(entry["function"].get("arguments"), str):
                arguments = written[place]
            call = PartialToolCall(
                name=piece.name,
                arguments=[arguments or "{}"],
                kept=list(piece.kept.items()),
                function_kept=list(piece.function_kept.items()),
            )
            self._calls.append(call.build(piece.id or generate_id("call_")))

    def _take_end(self, line: _Line, events: list[ModelEvent]) -> None:
        if line.done is True or line.done in ("true", 1):
            self.done = True
        self._reason = read_finish_reason(line.done_reason) or self._reason
        counts = {"prompt_eval_count": line.prompt_eval_count, "eval_count": line.eval_count}
        self._usage = parse_usage(counts) or self._usage
        if self.done or self._reason is not None:
            events += [_EVENTS[kind](text) for kind, text in self._cleaner.take_rest()]

    def _say(self, kind: str, value: Any, events: list[ModelEvent]) -> None:
        """Add the event of a text that may be of any type and have odd characters."""
        if not isinstance(value, str):
            self._report(kind)
        if text := self._cleaner.clean(kind, read_text(value)):
            if kind == "thinking":
                self._reasoning.append(text)
            self._has_text = self._has_text or kind == "content"
            events.append(_EVENTS[kind](text))

    def _report(self, kind: str) -> None:
        report_oddity(self._target.provider, kind)


def _parse_arguments(text: str) -> msgspec.Raw | dict[str, Any]:
    """Return arguments as the object that Ollama expects, an empty one in place of invalid JSON."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return {}
    return msgspec.Raw(text.encode()) if isinstance(value, dict) else {}


def _extract_base64(image: ImagePart) -> str:
    match = _DATA_URL.match(image.url)
    if match is None:
        raise InvalidRequestError(
            "Ollama takes images as base64 data URLs only.",
            param="messages",
            code="unsupported_image_url",
        )
    return match.group(1)


def _build_format(response_format: object) -> Any:
    match response_format:
        case {"type": "json_object"}:
            return "json"
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return schema
        case _:
            return None
