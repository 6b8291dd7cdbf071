"""Speak OpenAI's Responses API over server-sent events, for every vendor that has it."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import msgspec

from ai_agent_service.core.errors import ProviderProtocolError, ServiceError
from ai_agent_service.core.events import FinishReason, ReasoningDelta, RefusalDelta, TextDelta
from ai_agent_service.core.ids import generate_id
from ai_agent_service.core.messages import ToolCall
from ai_agent_service.core.text import join_surrogates
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.base import ModelEvent, ModelFinished, ModelRequest
from ai_agent_service.providers.http_errors import (
    HttpTarget,
    parse_stream_error,
    read_other_event,
)
from ai_agent_service.providers.lenient import (
    UNREADABLE,
    clean,
    is_done,
    parse_json,
    report_oddity,
)
from ai_agent_service.providers.provider_data import add_provider_data
from ai_agent_service.providers.responses_request import DATA_KEY, ResponsesState, encode_request
from ai_agent_service.providers.sse import EventReader
from ai_agent_service.providers.tool_calls import repair_arguments
from ai_agent_service.providers.usage_fields import parse_usage
from ai_agent_service.providers.wire import Exchange, Recover, not_recovered

FINISH_REASONS: Mapping[str, FinishReason] = {
    "max_output_tokens": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
}
"""The values of `incomplete_details.reason`."""

REQUEST_ERRORS = frozenset(
    {
        *("invalid_prompt", "bio_policy", "data_residency_mismatch"),
        *("invalid_image", "invalid_image_format", "invalid_base64_image", "invalid_image_url"),
        *("image_too_large", "image_too_small", "image_parse_error", "invalid_image_mode"),
        *("image_content_policy_violation", "image_file_too_large", "empty_image_file"),
        *("unsupported_image_media_type", "failed_to_download_image", "image_file_not_found"),
    }
)
"""Codes of a failed response that are about the request, not about the server."""

MAX_ITEMS = 512
"""Items of one answer, each of which is a message, a call or a piece of reasoning."""

_TERMINAL = {
    "response.completed": "completed",
    "response.incomplete": "incomplete",
    "response.failed": "failed",
    "response.cancelled": "cancelled",
}
_STATUSES = {"completed", "incomplete", "failed", "cancelled"}
_REASONING = ("response.reasoning_summary_text.delta", "response.reasoning_text.delta")

_REASONING_PARTS = (
    "response.reasoning_summary_part.added",
    "response.reasoning_summary_text.done",
    "response.reasoning_text.done",
)
"""Events between two paragraphs of reasoning."""


class _Event(msgspec.Struct):
    """The members of events that come often."""

    type: str = ""
    delta: str | None = None
    item_id: str | None = None
    output_index: int | None = None


class _Item(msgspec.Struct):
    """An item of the answer, from all events about it; `raw` is it as the server sent it when it
    was complete."""

    type: str = ""
    index: int | None = None
    raw: dict[str, Any] | None = None
    forms: list[dict[str, Any]] = []
    """The item as events had it, the most reliable form first."""
    deltas: list[str] = []

    def has(self, name: str, text: str) -> bool:
        """Return whether the member `name` is `text` in any form."""
        return any(form.get(name) == text for form in self.forms)

    def find_text(self, name: str) -> str:
        """Return the first text that the member `name` has; empty without one."""
        texts = (form.get(name) for form in self.forms)
        return next((text for text in texts if isinstance(text, str) and text), "")

    def find_arguments(self) -> str:
        """Return the arguments: the first complete ones, else all that came."""
        given = [form.get("arguments") for form in self.forms]
        texts = [text for text in given if isinstance(text, str) and text.strip()]
        texts.append("".join(self.deltas))
        if (complete := next(filter(_is_object, texts), None)) is not None:
            return complete
        decoded = next((each for each in given if isinstance(each, dict)), None)
        return texts[0] if decoded is None else msgspec.json.encode(decoded).decode()


_decode_event = msgspec.json.Decoder(_Event).decode


def build_exchange(
    target: HttpTarget,
    request: ModelRequest,
    state: ResponsesState,
    recover: Recover = not_recovered,
) -> Exchange:
    """Return `request` to `target` as a response."""
    encode = partial(encode_request, request, target.provider, state)
    return Exchange(target, encode, EventReader(), _AnswerAssembler(target, request.model), recover)


class _Channel:
    """One kind of text of the answer, which is passed on as it comes."""

    def __init__(self, build: Callable[[str], ModelEvent]) -> None:
        self._build = build
        self._sent: list[str] = []
        self._lead = ""
        self._half = ""

    def add(self, delta: str | None) -> list[ModelEvent]:
        """Return the event of the next piece; a character that is cut in two waits for its rest."""
        if not delta:
            return []
        if self._lead or self._half or not delta.isascii() or "\0" in delta:
            delta = self._repair(delta)
        self._sent.append(delta)
        return [self._build(delta)] if delta else []

    def begin_part(self) -> None:
        """Let a blank line precede the next piece, unless it is the first."""
        if any(self._sent):
            self._lead = "\n\n"

    def complete(self, texts: Iterable[str]) -> list[ModelEvent]:
        """Return the event of what was not sent yet of the first of `texts`, each said to be the
        whole text, that continues what was sent."""
        sent = "".join(self._sent)
        for text in map(_clean, texts):
            if text and text.startswith(sent):
                self._lead = self._half = ""
                return self.add(text[len(sent) :])
        return self.add("\ufffd") if self._half else []

    def _repair(self, delta: str) -> str:
        text = self._half + delta
        self._half = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
        text = self._lead + _clean(text[: len(text) - len(self._half)])
        self._lead = ""
        return text


class _AnswerAssembler:
    """Builds one answer from its events; `done` once the server says that it is complete."""

    def __init__(self, target: HttpTarget, model: str) -> None:
        self.done = False
        self._target = target
        self._model = model
        self._text = _Channel(TextDelta)
        self._refusal = _Channel(RefusalDelta)
        self._reasoning = _Channel(ReasoningDelta)
        self._take_delta: dict[str, Callable[[str | None], list[ModelEvent]]] = {
            "response.output_text.delta": self._text.add,
            "response.refusal.delta": self._refusal.add,
            **{name: partial(self._begin_reasoning, name) for name in _REASONING},
        }
        self._take_other: dict[str, Callable[[dict[str, Any]], Any]] = {
            "response.output_item.added": self._take_added,
            "response.output_item.done": self._take_done,
            "response.function_call_arguments.done": self._take_arguments,
            "response.output_text.done": self._take_text,
            "response.refusal.done": self._take_refusal,
            **{name: lambda _: self._reasoning.begin_part() for name in _REASONING_PARTS},
            "error": self._raise_error,
        }
        self._texts: list[str] = []
        self._refusals: list[str] = []
        self._items: list[_Item] = []
        self._reason: FinishReason | None = None
        self._is_incomplete = False
        self._usage: Usage | None = None
        self._has_lost_call = False
        self._call_ids: set[str] = set()
        self._other_error: ServiceError | None = None

    def take(self, data: bytes) -> list[ModelEvent]:
        """Return the events of the event in `data`; raises the UpstreamError that it means."""
        try:
            event = _decode_event(data)
        except UNREADABLE:
            return self._take_odd(data)
        if (add := self._take_delta.get(event.type)) is not None:
            return add(event.delta)
        if event.type == "response.function_call_arguments.delta":
            self._add_arguments(event)
            return []
        return self._take_value(event.type, _read_json(data))

    def finish(self) -> ModelFinished:
        """Return the last event; raises ProviderProtocolError if the answer is incomplete."""
        if self._reason is None:
            if self._other_error is not None:
                raise self._other_error
            raise ProviderProtocolError(
                f"The answer of {self._target.provider} ended before it was complete."
            )
        calls = self._build_calls()
        if self._has_lost_call and not calls:
            raise ProviderProtocolError(f"{self._target.provider} called a tool without naming it.")
        reason = "tool_calls" if calls and self._reason == "stop" else self._reason
        return ModelFinished(reason, calls, self._usage)

    def _take_odd(self, data: bytes) -> list[ModelEvent]:
        """Return the events of an event that is not as specified, without what is odd about it."""
        if is_done(data):
            self.done = True
            return []
        value = _read_json(data)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if not isinstance(value, dict):
            self._report("an event that is not a JSON object")
            return []
        event = _Event(
            _get_text(value, "type"),
            _get_text(value, "delta"),
            _get_text(value, "item_id"),
            _get_index(value.get("output_index")),
        )
        if (add := self._take_delta.get(event.type)) is not None:
            if not event.delta:
                self._report(f"a {event.type} without its text")
            return add(event.delta)
        if event.type == "response.function_call_arguments.delta":
            self._add_arguments(event)
            return []
        return self._take_value(event.type, clean(value))

    def _take_value(self, name: str, value: Any) -> list[ModelEvent]:
        """Return the events of an event that is not a piece of text."""
        if not isinstance(value, dict):
            self._report("an event that is not a JSON object")
            return []
        if (status := _TERMINAL.get(name)) is not None:
            return self._end(status, value.get("response"), value)
        if (take := self._take_other.get(name)) is not None:
            take(value)
        elif not name.startswith("response.") and value.get("object") == "response":
            status = "completed" if value.get("status") is None else _get_text(value, "status")
            if status in _STATUSES:
                return self._end(status, value, value)
        elif not name and value.get("error"):
            self._raise_error(value)
        elif name == "response.error" or not name.startswith("response."):
            self._other_error = read_other_event(value, self._target) or self._other_error
        return []

    def _begin_reasoning(self, name: str, delta: str | None) -> list[ModelEvent]:
        """Take the first piece of reasoning; a server that sends it twice, as text and as a
        summary, is heard once."""
        for other in _REASONING:
            del self._take_delta[other]
        self._take_delta[name] = self._reasoning.add
        return self._reasoning.add(delta)

    def _take_added(self, value: dict[str, Any]) -> None:
        if not isinstance(form := value.get("item"), dict):
            self._report("an item that is not an object")
            return
        item = self._find_item(form) or self._create_item(form, value.get("output_index"))
        item.forms.append(form)
        if item.type == "reasoning":
            self._reasoning.begin_part()

    def _take_done(self, value: dict[str, Any]) -> None:
        if not isinstance(form := value.get("item"), dict):
            self._report("an item that is not an object")
            return
        item = self._find_item(form, index=_get_index(value.get("output_index")))
        item = item or self._create_item(form, value.get("output_index"))
        self._add_form(item, form)

    def _take_arguments(self, value: dict[str, Any]) -> None:
        item = self._find_call(_get_text(value, "item_id"), _get_index(value.get("output_index")))
        form = {name: value.get(name) for name in ("name", "arguments")}
        item.forms.insert(item.raw is not None, form)

    def _take_text(self, value: dict[str, Any]) -> None:
        self._texts.append(_get_text(value, "text"))

    def _take_refusal(self, value: dict[str, Any]) -> None:
        self._refusals.append(_get_text(value, "refusal"))

    def _add_arguments(self, event: _Event) -> None:
        if event.delta:
            self._find_call(event.item_id or "", event.output_index).deltas.append(event.delta)

    def _find_call(self, item_id: str, index: int | None) -> _Item:
        """Return the call with this id, else the one at this place, else a new one."""
        form = {"id": item_id, "type": "function_call"}
        item = self._find_item(form, index=index) or self._create_item(form, index)
        item.type = "function_call"
        return item

    def _find_item(self, form: dict[str, Any], *, index: int | None = None) -> _Item | None:
        """Return the item with the id or the call id of `form`, else the open one of its type at
        `index`."""
        for name in ("id", "call_id"):
            if wanted := _get_text(form, name):
                for item in self._items:
                    if item.has(name, wanted) and (name == "id" or not _are_two(item.raw, form)):
                        return item
        kinds = ("", form.get("type"))
        places = [
            item
            for item in self._items
            if index is not None and item.index == index and item.raw is None and item.type in kinds
        ]
        if not places and index is None and not _get_text(form, "id"):
            places = [item for item in self._items if item.raw is None and item.type == kinds[1]]
        return places[-1] if places else None

    def _create_item(self, form: dict[str, Any], index: Any) -> _Item:
        if len(self._items) >= MAX_ITEMS:
            raise ProviderProtocolError(
                f"The answer of {self._target.provider} has more than {MAX_ITEMS} items."
            )
        item = _Item(_get_text(form, "type"), index=_get_index(index))
        if _get_text(form, "id"):
            item.forms.append({"id": form["id"]})
        self._items.append(item)
        return item

    def _add_form(self, item: _Item, form: dict[str, Any]) -> None:
        """Add the complete form of an item, whose first one is kept."""
        item.type = item.type if item.type == "function_call" else _get_text(form, "type")
        if item.raw is None:
            item.raw = form
            item.forms.insert(0, form)
        else:
            item.forms.insert(1, form)

    def _end(self, status: str, response: Any, event: dict[str, Any]) -> list[ModelEvent]:
        """Take the whole response; return the events of what no event before it had."""
        self.done = True
        response = response if isinstance(response, dict) else {}
        if response.get("status") in ("failed", "cancelled"):
            status = response["status"]
        if status in ("failed", "cancelled"):
            self._raise_error({"error": response.get("error") or event})
        output = response.get("output")
        output = (
            [item for item in output if isinstance(item, dict)] if isinstance(output, list) else []
        )
        self._take_output(output)
        self._usage = parse_usage(response.get("usage")) or self._usage
        details = response.get("incomplete_details")
        cause = _get_text(details, "reason") if isinstance(details, dict) else ""
        self._is_incomplete = status == "incomplete" or cause in FINISH_REASONS
        self._reason = FINISH_REASONS.get(cause, "length") if self._is_incomplete else "stop"
        forms = [item.raw for item in self._items if item.raw is not None]
        sources = (output, forms)
        return [
            *self._reasoning.complete(map(_join_reasoning, sources)),
            *self._text.complete([*_join(sources, "text"), "".join(self._texts)]),
            *self._refusal.complete([*_join(sources, "refusal"), "".join(self._refusals)]),
        ]

    def _take_output(self, output: list[dict[str, Any]]) -> None:
        known = {item.type for item in self._items}
        for place, form in enumerate(output):
            item = self._find_item(form) or next(
                (
                    each
                    for each in self._items
                    if each.index == place and each.type == form.get("type")
                ),
                None,
            )
            if item is None:
                if (kind := _get_text(form, "type")) in known and kind != "function_call":
                    continue  # the same under another id
                item = self._create_item(form, place)
            item.index = place
            self._add_form(item, form)

    def _build_calls(self) -> tuple[ToolCall, ...]:
        """Return the calls, each with the items between it and the call before, if the model
        reasoned."""
        items = sorted(self._items, key=lambda item: (item.index is None, item.index or 0))
        calls: list[ToolCall] = []
        data: list[dict[str, Any]] = []
        waiting: list[dict[str, Any]] = []
        for item in items:
            if item.type in ("reasoning", "message") and item.raw is not None:
                waiting.append(item.raw)
            elif item.type == "function_call" and (call := self._build_call(item)) is not None:
                calls.append(call)
                data.append({"before": waiting, "call": _strip_call(item.raw or {})})
                waiting = []
        if not calls or not any(item.type == "reasoning" for item in items):
            return tuple(calls)
        if waiting:
            data[-1]["after"] = waiting
        provider, model = self._target.provider, self._model
        return tuple(
            add_provider_data(call, provider, model, {DATA_KEY: each})
            for call, each in zip(calls, data, strict=True)
        )

    def _build_call(self, item: _Item) -> ToolCall | None:
        """Return the call; None for one that names no tool or that the end of the answer cut."""
        name, arguments = _clean(item.find_text("name")), _clean(item.find_arguments())
        arguments = repair_arguments(arguments)
        if self._is_incomplete and not _is_object(arguments):
            self._report("a call that the end of the answer cut")
            return None
        if not name:
            self._report("a call without a name")
            self._has_lost_call = True
            return None
        call_id = _clean(item.find_text("call_id"))
        if not call_id or call_id in self._call_ids:
            call_id = generate_id("call_")
        self._call_ids.add(call_id)
        return ToolCall(call_id, name.strip(), arguments)

    def _raise_error(self, value: dict[str, Any]) -> None:
        error = value.get("error") or value
        if isinstance(error, dict) and _get_text(error, "code") in REQUEST_ERRORS:
            error = {**error, "code": 400}
        raise parse_stream_error(error, self._target)

    def _report(self, what: str) -> None:
        report_oddity(self._target.provider, what)


def _read_json(data: bytes) -> Any:
    """Return the JSON in `data`, also with half characters; None if it is not JSON."""
    try:
        return parse_json(data)
    except ValueError:
        return None


def _clean(text: str) -> str:
    """Return `text` with the halves of characters joined, and without what cannot be stored."""
    return text.replace("\0", "\ufffd") if text.isascii() else join_surrogates(text)


def _are_two(item: dict[str, Any] | None, form: dict[str, Any]) -> bool:
    """Return whether two complete items have different ids."""
    one, other = _get_text(item or {}, "id"), _get_text(form, "id")
    return bool(one and other) and one != other


def _get_text(value: dict[str, Any], name: str) -> str:
    return text if isinstance(text := value.get(name), str) else ""


def _get_index(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text.encode(errors="replace")), dict)
    except (msgspec.DecodeError, RecursionError):
        return False


def _list_parts(item: dict[str, Any], name: str) -> list[dict[str, Any]]:
    parts = item.get(name)
    if isinstance(parts, str):
        parts = [parts]
    if isinstance(parts, list):
        parts = [{"text": part} if isinstance(part, str) else part for part in parts]
    return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []


def _join(sources: Iterable[list[dict[str, Any]]], name: str) -> list[str]:
    """Return the text in the members `name` of all messages, for each of `sources`."""
    return [
        "".join(
            _get_text(part, name)
            for item in items
            if item.get("type") == "message"
            for part in _list_parts(item, "content")
        )
        for items in sources
    ]


def _join_reasoning(items: list[dict[str, Any]]) -> str:
    """Return the summaries of the reasoning, or without one the reasoning itself."""
    for name in ("summary", "content"):
        parts = [
            _get_text(part, "text")
            for item in items
            if item.get("type") == "reasoning"
            for part in _list_parts(item, name)
        ]
        if any(parts):
            return "\n\n".join(part for part in parts if part)
    return ""


def _strip_call(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a function call without what the call itself has."""
    own = ("type", "call_id", "name", "arguments")
    return {name: value for name, value in raw.items() if name not in own}
