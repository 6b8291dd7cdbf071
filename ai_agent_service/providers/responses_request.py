"""Write a request to OpenAI's Responses API."""

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any, Literal

import msgspec

from ai_agent_service.core.errors import ServiceError
from ai_agent_service.core.messages import (
    AudioPart,
    ContentPart,
    FilePart,
    ImagePart,
    Message,
    NamedTool,
    TextPart,
    ToolCall,
    ToolChoice,
    ToolSpec,
)
from ai_agent_service.providers.base import ModelRequest
from ai_agent_service.providers.provider_data import read_provider_data

logger = logging.getLogger(__name__)

DATA_KEY = "responses"
"""The key of this API in the data of a call."""

ENCRYPTED_REASONING = "reasoning.encrypted_content"
MIN_OUTPUT_TOKENS = 16
MAX_CALL_ID = 64
MAX_STALE = 10_000
REFUSING_STATUSES = frozenset({400, 404, 422, 502})
"""Statuses of errors about a part of the request; 502 stands for one within an answer."""

_RENAMED = {"max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens"}

_MOVED = {
    "reasoning_effort": ("reasoning", "effort"),
    "verbosity": ("text", "verbosity"),
    "response_format": ("text", "format"),
}
"""Settings of chat completions that are members of an object here."""

_UNSUPPORTED = frozenset(
    {
        *("stop", "seed", "n", "logit_bias", "presence_penalty", "frequency_penalty", "logprobs"),
        *("stream_options", "prediction", "modalities", "audio", "web_search_options"),
        *("functions", "function_call"),
    }
)
"""Settings of chat completions that this API does not have."""

Omission = Literal["include", "summary", "items"]
"""Part of a request that a server may refuse, and that is not necessary: encrypted reasoning in the
answer, summaries of reasoning, and the items of earlier answers."""


_REFUSALS: tuple[tuple[Omission, re.Pattern[str]], ...] = (
    ("summary", re.compile(r"reasoning[. ]summar", re.IGNORECASE)),
    (
        "include",
        re.compile(
            r"encrypted content is not supported|['\"`]include(?:\[\d+\])?['\"`]"
            r"|reasoning\.encrypted_content",
            re.IGNORECASE,
        ),
    ),
    (
        "items",
        re.compile(
            r"encrypted[ _]content|without its required|\bitem\b.{0,20}\b(?:rs|msg|fc)_"
            r"|\bsignature\b",
            re.IGNORECASE,
        ),
    ),
)
"""Words of errors about each part, such as "Your organization must be verified to generate
reasoning summaries", "Encrypted content is not supported with this model", "The encrypted content
... could not be verified", "Item with id 'rs_...' not found", and "Item 'fc_...' of type
'function_call' was provided without its required 'reasoning' item"."""


class ResponsesState:
    """What a server refused, so that it is not sent again: parts of requests by model, and items of
    earlier answers."""

    def __init__(self) -> None:
        self._omitted: dict[str, frozenset[Omission]] = {}
        self._stale: dict[str, None] = {}
        self._unsupported: set[str] = set()

    def omit(self, omission: Omission, request: ModelRequest) -> None:
        """Leave `omission` out of requests to the model; of items, those that are in `request`."""
        fields = {"model": request.model, "part": omission}
        logger.warning("provider.part_left_out", extra=fields)
        if omission == "items":
            for call in (call for message in request.messages for call in message.tool_calls):
                if call.provider_data is not None:
                    self._stale[_digest(call.provider_data.data)] = None
            while len(self._stale) > MAX_STALE:
                del self._stale[next(iter(self._stale))]
        else:
            self._omitted[request.model] = self.list_omitted(request.model) | {omission}

    def list_omitted(self, model: str) -> frozenset[Omission]:
        """Return what is left out of requests to `model`."""
        return self._omitted.get(model, frozenset())

    def is_stale(self, call: ToolCall) -> bool:
        """Return whether the server refused the items of `call`."""
        data = call.provider_data
        return bool(self._stale) and data is not None and _digest(data.data) in self._stale

    def report_unsupported(self, provider: str, names: Iterable[str]) -> None:
        """Log once which settings this API does not have."""
        if new := sorted(set(names) - self._unsupported):
            self._unsupported.update(new)
            fields = {"provider": provider, "settings": new}
            logger.warning("provider.settings_not_in_responses", extra=fields)


def find_refused_part(error: ServiceError, request: ModelRequest) -> Omission | None:
    """Return the part of `request` that `error` refuses and that can be left out."""
    said = error.upstream
    if said is None or said.status not in REFUSING_STATUSES:
        return None
    text = f"{said.code} {said.message}"
    part = next((part for part, words in _REFUSALS if words.search(text)), None)
    has_items = any(call.provider_data for each in request.messages for call in each.tool_calls)
    return None if part == "items" and not has_items else part


def encode_request(request: ModelRequest, provider: str, state: ResponsesState) -> bytes:
    """Return `request` as the JSON body of a streamed response of `provider`."""
    omitted = state.list_omitted(request.model)
    instructions, messages = _split_instructions(request.messages)
    body: dict[str, Any] = {
        "model": request.model,
        **({"instructions": instructions} if instructions else {}),
        "stream": True,
        "store": False,
        **_build_settings(request.settings, state, provider),
    }
    body["input"] = build_input(messages, request.model, provider, state, keep_bare=body["store"])
    if not body["store"] and "include" not in omitted:
        body["include"] = list(dict.fromkeys([*body.get("include", ()), ENCRYPTED_REASONING]))
    if "reasoning" in body:
        body["reasoning"] = _build_reasoning(body["reasoning"], omitted)
    if request.tools:
        body["tools"] = [_build_tool(spec) for spec in request.tools]
        if request.tool_choice is not None:
            body["tool_choice"] = _build_tool_choice(request.tool_choice)
    else:
        body.pop("parallel_tool_calls", None)
    return msgspec.json.encode(body)


def build_input(
    messages: Iterable[Message],
    model: str,
    provider: str,
    state: ResponsesState,
    *,
    keep_bare: bool = False,
) -> list[dict[str, Any]]:
    """Return `messages` as input items, with the items that `provider` sent with the calls of
    `model`.

    Reasoning without its content is only a reference, which a server that stores nothing cannot
    resolve, so it is left out unless `keep_bare`.
    """
    found: list[dict[str, Any]] = []
    for message in messages:
        if message.role == "tool":
            found.append(_build_output(message))
        elif message.role == "assistant":
            found += _build_answer(message, model, provider, state, keep_bare=keep_bare)
        else:
            content = _build_content(message)
            found.append({"type": "message", "role": message.role, "content": content})
    return found


def _split_instructions(messages: tuple[Message, ...]) -> tuple[str, tuple[Message, ...]]:
    """Return the text of the system messages at the start, and the other messages, of which there
    must be one."""
    leading = list(takewhile(lambda message: message.role == "system", messages))
    if len(leading) == len(messages):
        return "", messages
    return "\n\n".join(message.text for message in leading), messages[len(leading) :]


def _build_settings(
    settings: Mapping[str, Any], state: ResponsesState, provider: str
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    unsupported = []
    for name, value in settings.items():
        if value is None:
            continue
        if name in _UNSUPPORTED:
            unsupported.append(name)
        elif name in _MOVED:
            parent, member = _MOVED[name]
            value = _build_format(value) if member == "format" else value
            found[parent] = {member: value, **found.get(parent, {})}
        elif isinstance(value, Mapping) and name in ("reasoning", "text"):
            found[name] = {**found.get(name, {}), **value}
        else:
            found[_RENAMED.get(name, name)] = value
    if unsupported:
        state.report_unsupported(provider, unsupported)
    limit = found.get("max_output_tokens")
    if isinstance(limit, int) and 0 < limit < MIN_OUTPUT_TOKENS:
        found["max_output_tokens"] = MIN_OUTPUT_TOKENS
    return found


def _build_format(value: Any) -> Any:
    """Return the `response_format` of chat completions as this API has it, without its nesting."""
    inner = value.get("json_schema") if isinstance(value, Mapping) else None
    return {"type": "json_schema", **inner} if isinstance(inner, Mapping) else value


def _build_reasoning(reasoning: Mapping[str, Any], omitted: frozenset[Omission]) -> dict[str, Any]:
    """Return `reasoning` with a summary asked for, unless nothing is to be reasoned or the server
    refuses it: OpenAI gives summaries to verified organizations only."""
    found = dict(reasoning)
    if found.get("effort") != "none":
        found.setdefault("summary", "auto")
    if "summary" in omitted:
        found.pop("summary", None)
    return found


def _build_tool(spec: ToolSpec) -> dict[str, Any]:
    """Return a tool, whose schema would be made strict, all its arguments required, if nothing were
    said."""
    return {
        "type": "function",
        "name": spec.name,
        "description": spec.description,
        "parameters": spec.parameters,
        "strict": bool(spec.strict),
    }


def _build_tool_choice(choice: ToolChoice) -> Any:
    return {"type": "function", "name": choice.name} if isinstance(choice, NamedTool) else choice


def _build_answer(
    message: Message, model: str, provider: str, state: ResponsesState, *, keep_bare: bool
) -> list[dict[str, Any]]:
    """Return an answer with its calls: the provider's items in their order, else text and calls."""
    kept = [
        {} if state.is_stale(call) else read_provider_data(call, provider, model).get(DATA_KEY, {})
        for call in message.tool_calls
    ]
    around = [item for each in kept for key in ("before", "after") for item in each.get(key, ())]
    is_whole = all(kept) and (keep_bare or not any(map(_is_bare, around)))
    found: list[dict[str, Any]] = []
    if message.text and not (is_whole and any(item["type"] == "message" for item in around)):
        found.append({"type": "message", "role": "assistant", "content": message.text})
    for call, data in zip(message.tool_calls, kept, strict=True):
        given = data if is_whole else {}
        sent = {"type": "function_call", "call_id": fit_call_id(call.id), "name": call.name}
        found += given.get("before", ())
        found.append({**given.get("call", {}), **sent, "arguments": call.arguments or "{}"})
        found += given.get("after", ())
    return found


def _is_bare(item: Mapping[str, Any]) -> bool:
    return item.get("type") == "reasoning" and not (
        item.get("encrypted_content") or item.get("content")
    )


def _build_output(message: Message) -> dict[str, Any]:
    """Return the result of a call, as text or with the images that the tool returned."""
    output: Any = message.text
    if message.images:
        text = [{"type": "input_text", "text": message.text}] if message.text else []
        output = [*text, *map(_build_part, message.images)]
    call_id = fit_call_id(message.tool_call_id or "")
    return {"type": "function_call_output", "call_id": call_id, "output": output}


def _build_content(message: Message) -> Any:
    if isinstance(message.content, str):
        return message.content
    return [_build_part(part) for part in message.content]


def _build_part(part: ContentPart) -> dict[str, Any]:
    match part:
        case TextPart(text=text):
            return {"type": "input_text", "text": text}
        case ImagePart(url=url, detail=detail):
            return {"type": "input_image", "image_url": url, "detail": detail or "auto"}
        case AudioPart(data=data, format=form):
            return {"type": "input_audio", "input_audio": {"data": data, "format": form}}
        case FilePart():
            fields = msgspec.structs.asdict(part).items()
            return {
                "type": "input_file",
                **{name: value for name, value in fields if value is not None},
            }


def fit_call_id(call_id: str) -> str:
    """Return `call_id`, or in place of one that is too long a shorter one, always the same."""
    return call_id if len(call_id) <= MAX_CALL_ID else f"call_{_digest(call_id)[:40]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
