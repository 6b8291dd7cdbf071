"""Speak Ollama's native chat over newline-delimited JSON."""

import re
from collections.abc import AsyncGenerator, Iterable
from functools import partial
from typing import Any

import msgspec

from ai_agent_service.core.errors import InvalidRequestError, ProviderProtocolError
from ai_agent_service.core.events import ReasoningDelta, TextDelta
from ai_agent_service.core.ids import generate_id
from ai_agent_service.core.messages import ImagePart, Message, TextPart, ToolCall
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.base import ModelEvent, ModelFinished, ModelRequest
from ai_agent_service.providers.chat_wire import to_finish_reason, to_wire_tool
from ai_agent_service.providers.http import HttpClient
from ai_agent_service.providers.http_errors import (
    HttpTarget,
    parse_stream_error,
    raise_for_error_event,
)
from ai_agent_service.providers.provider_data import add_provider_data, read_provider_data
from ai_agent_service.providers.wire import stream_answer

MAX_LINE_BYTES = 16 * 1024 * 1024
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


class _Function(msgspec.Struct):
    name: str = ""
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class _ToolCall(msgspec.Struct):
    function: _Function
    id: str | None = None


class _ResponseMessage(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Line(msgspec.Struct):
    message: _ResponseMessage | None = None
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None
    error: Any = None


_decode_line = msgspec.json.Decoder(_Line).decode


def stream(
    http: HttpClient, target: HttpTarget, request: ModelRequest
) -> AsyncGenerator[ModelEvent, None]:
    """Send `request` to `target` and yield the answer's events, as `Provider.stream` promises."""
    answer = _AnswerAssembler(target, request.model)
    encode = partial(encode_request, provider=target.provider)
    return stream_answer(http, target, request, encode, _LineReader(), answer)


def encode_request(request: ModelRequest, provider: str = "") -> bytes:
    """Return `request` as the JSON body of a streamed `/api/chat` of `provider`."""
    body: dict[str, Any] = {
        "model": request.model,
        "messages": to_wire_messages(request.messages, provider),
        "stream": True,
    }
    options: dict[str, Any] = {}
    for name, value in request.settings.items():
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
    effort = request.settings.get("reasoning_effort")
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
            wire["tool_calls"] = [
                {"function": {"name": call.name, "arguments": _parse_arguments(call.arguments)}}
                for call in message.tool_calls
            ]
            names.update((call.id, call.name) for call in message.tool_calls)
        if message.role == "tool":
            wire["tool_name"] = names.get(message.tool_call_id or "", "")
        found.append(wire)
    return found


class _LineReader:
    """Splits a stream into its lines that are not blank; the last one need not be terminated."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> Iterable[bytes]:
        """Return the lines that `piece` completes; raises ProviderProtocolError for one over 16
        MiB."""
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > MAX_LINE_BYTES:
            raise ProviderProtocolError("The provider sent a line of more than 16 MiB.")
        return filter(bytes.strip, lines)

    def close(self) -> list[bytes]:
        """Return the line that the stream's end left open."""
        return [self._rest] if self._rest.strip() else []


class _AnswerAssembler:
    """Builds one answer from its lines; `done` once a line says so."""

    def __init__(self, target: HttpTarget, model: str) -> None:
        self.done = False
        self._target = target
        self._model = model
        self._reasoning: list[str] = []
        self._calls: list[ToolCall] = []
        self._last = _Line()

    def take(self, data: bytes) -> list[ModelEvent]:
        """Return the events of a line; raises the UpstreamError that it means."""
        try:
            line = _decode_line(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProviderProtocolError(
                f"{self._target.provider} sent a line that is not a chat answer."
            ) from error
        if said := line.error:
            raise parse_stream_error(
                {"message": said} if isinstance(said, str) else said, self._target
            )
        if line.message is None and not line.done:
            raise_for_error_event(data, self._target)
        events: list[ModelEvent] = []
        if (message := line.message) is not None:
            if message.thinking:
                self._reasoning.append(message.thinking)
                events.append(ReasoningDelta(message.thinking))
            if message.content:
                events.append(TextDelta(message.content))
            if message.tool_calls:
                self._calls += map(_build_tool_call, message.tool_calls)
        if line.done:
            self.done, self._last = True, line
        return events

    def finish(self) -> ModelFinished:
        """Return the last event; raises ProviderProtocolError if the answer is incomplete."""
        if not self.done:
            raise ProviderProtocolError(
                f"The answer of {self._target.provider} ended without a finish reason."
            )
        last, usage = self._last, None
        if last.prompt_eval_count is not None or last.eval_count is not None:
            usage = Usage(last.prompt_eval_count or 0, last.eval_count or 0)
        calls = tuple(self._calls)
        reason = "tool_calls" if calls else to_finish_reason(last.done_reason or "stop")
        if calls and self._reasoning:
            data = {"message": {"thinking": "".join(self._reasoning)}}
            calls = (
                add_provider_data(calls[0], self._target.provider, self._model, data),
                *calls[1:],
            )
        return ModelFinished(reason, calls, usage)


def _build_tool_call(call: _ToolCall) -> ToolCall:
    return ToolCall(
        call.id or generate_id("call_"), call.function.name, bytes(call.function.arguments).decode()
    )


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
