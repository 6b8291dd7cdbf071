"""Ollama's native chat over newline-delimited JSON: a model request out, model events back."""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from typing import Any

import msgspec

from ai_agent_service.core.errors import InvalidRequestError, ProviderProtocolError
from ai_agent_service.core.events import ReasoningDelta, TextDelta
from ai_agent_service.core.ids import generate_id
from ai_agent_service.core.messages import ImagePart, Message, TextPart, ToolCall
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.base import ModelEvent, ModelFinished, ModelRequest
from ai_agent_service.providers.chat_wire import to_finish_reason
from ai_agent_service.providers.http import HttpClient, drain
from ai_agent_service.providers.http_errors import HttpTarget, parse_stream_error

_encode = msgspec.json.Encoder().encode

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


async def stream(
    http: HttpClient, target: HttpTarget, request: ModelRequest
) -> AsyncGenerator[ModelEvent, None]:
    """Asks `target` and gives its answer as model events; what `Provider.stream` promises holds."""
    calls: list[ToolCall] = []
    thoughts: list[str] = []
    last: _Line | None = None
    async with (
        http.post(target, encode_request(request), deadline=request.deadline) as pieces,
        aclosing(_read_lines(pieces)) as lines,
    ):
        async for text in lines:
            line = _parse_line(text, target)
            if line.message is not None:
                if line.message.thinking:
                    thoughts.append(line.message.thinking)
                    yield ReasoningDelta(line.message.thinking)
                if line.message.content:
                    yield TextDelta(line.message.content)
                calls += [_build_tool_call(call) for call in line.message.tool_calls or ()]
            if line.done:
                last = line
                await drain(pieces)
                break
    if last is None:
        raise ProviderProtocolError(
            f"The answer of {target.provider} ended without a finish reason."
        )
    usage = None
    if last.prompt_eval_count is not None or last.eval_count is not None:
        usage = Usage(last.prompt_eval_count or 0, last.eval_count or 0)
    yield ModelFinished(
        "tool_calls" if calls else to_finish_reason(last.done_reason or "stop"),
        tuple(calls),
        usage,
        "".join(thoughts) if calls else "",
    )


def encode_request(request: ModelRequest) -> bytes:
    """`request` as the JSON body of a streamed `/api/chat`."""
    body: dict[str, Any] = {
        "model": request.model,
        "messages": to_wire_messages(request.messages),
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
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": spec.name,
                    "description": spec.description,
                    "parameters": spec.parameters,
                },
            }
            for spec in request.tools
        ]
    return _encode(body)


def to_wire_messages(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """`messages` in Ollama's form: text and base64 images apart, tool results by the tool's
    name."""
    names: dict[str, str] = {}
    found: list[dict[str, Any]] = []
    for message in messages:
        wire: dict[str, Any] = {"role": message.role, "content": message.text}
        images = list(message.images)
        if not isinstance(message.content, str):
            images += [part for part in message.content if isinstance(part, ImagePart)]
            other = next(
                (part for part in message.content if not isinstance(part, TextPart | ImagePart)),
                None,
            )
            if other is not None:
                raise InvalidRequestError(
                    "Ollama takes text and images only.",
                    param="messages",
                    code="unsupported_content",
                )
        if images:
            wire["images"] = [_extract_base64(image) for image in images]
        if message.tool_calls:
            if message.reasoning:
                wire["thinking"] = message.reasoning
            wire["tool_calls"] = [
                {"function": {"name": call.name, "arguments": _parse_arguments(call.arguments)}}
                for call in message.tool_calls
            ]
            names.update((call.id, call.name) for call in message.tool_calls)
        if message.role == "tool":
            wire["tool_name"] = names.get(message.tool_call_id or "", "")
        found.append(wire)
    return found


async def _read_lines(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The lines that are not blank; the last one need not be ended."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise ProviderProtocolError("The provider sent a line of more than 16 MiB.")
        for line in lines:
            if line.strip():
                yield line
    if rest.strip():
        yield rest


def _parse_line(text: bytes, target: HttpTarget) -> _Line:
    try:
        line = _decode_line(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProviderProtocolError(
            f"{target.provider} sent a line that is not a chat answer."
        ) from error
    if line.error:
        raise parse_stream_error(
            {"message": line.error} if isinstance(line.error, str) else line.error, target
        )
    return line


def _build_tool_call(call: _ToolCall) -> ToolCall:
    return ToolCall(
        call.id or generate_id("call_"), call.function.name, bytes(call.function.arguments).decode()
    )


def _parse_arguments(text: str) -> msgspec.Raw | dict[str, Any]:
    """Arguments as the object Ollama expects; what the model once wrote wrongly becomes an empty
    one."""
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
