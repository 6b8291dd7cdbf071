"""The Responses API: answers, as its event stream gives them, whole and odd."""

import copy
import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_agent_service.core.errors import (
    ContextTooLongError,
    InvalidRequestError,
    ProviderProtocolError,
    ProviderRateLimitError,
    ProviderUnavailableError,
    ServiceError,
)
from ai_agent_service.core.events import ReasoningDelta, RefusalDelta, TextDelta
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.base import ModelEvent, ModelFinished
from ai_agent_service.providers.http_errors import HttpTarget
from ai_agent_service.providers.responses_request import ResponsesState
from ai_agent_service.providers.responses_wire import build_exchange
from tests.support.provider_requests import question
from tests.support.responses_server import Answer, answers, build_events

Event = dict[str, Any]

CALLS = answers(
    ("reasoning", "Think first.\n\nThen act."),
    ("text", "Let me see."),
    ("call", "weather", '{"city": "Oslo"}'),
    ("reasoning", ""),
    ("call", "weather", '{"city": "Rome"}'),
)


def build(answer: Answer) -> list[Event]:
    body = {
        "model": "m",
        "include": ["reasoning.encrypted_content"],
        "reasoning": {"summary": "auto"},
    }
    return build_events(answer, body)


def frame(events: Iterable[object]) -> bytes:
    return b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in events)


def read(stream: bytes, *, size: int = 10_000) -> list[ModelEvent]:
    """Return the events of an answer that arrives in pieces of `size`."""
    target = HttpTarget("wire", "http://127.0.0.1/v1/responses")
    exchange = build_exchange(target, question(), ResponsesState())
    reader, answer = exchange.reader, exchange.answer
    found: list[ModelEvent] = []
    for start in range(0, len(stream), size):
        for data in reader.feed(stream[start : start + size]):
            found += answer.take(data)
            if answer.done:
                return [*found, answer.finish()]
    for data in reader.close():
        found += answer.take(data)
    return [*found, answer.finish()]


def said(
    events: Iterable[ModelEvent],
    kind: type[TextDelta] | type[RefusalDelta] | type[ReasoningDelta] = TextDelta,
) -> str:
    return "".join(each.text for each in events if isinstance(each, kind))


def end(events: list[ModelEvent]) -> ModelFinished:
    assert isinstance(events[-1], ModelFinished)
    return events[-1]


def summarize(events: list[ModelEvent]) -> tuple[object, ...]:
    """Return what an answer says, without ids and the provider's data."""
    last = end(events)
    calls = tuple((call.name, call.arguments) for call in last.tool_calls)
    return (
        said(events),
        said(events, RefusalDelta),
        said(events, ReasoningDelta),
        calls,
        last.reason,
        last.usage,
    )


WHOLE = (
    "Let me see.",
    "",
    "Think first.\n\nThen act.",
    (("weather", '{"city": "Oslo"}'), ("weather", '{"city": "Rome"}')),
    "tool_calls",
    Usage(20, 10, 8, 4),
)


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_text_reasoning_calls_and_usage_are_read_wherever_the_stream_is_cut(size: int) -> None:
    assert summarize(read(frame(build(CALLS)), size=size)) == WHOLE


def test_a_refusal_is_separate_from_the_text() -> None:
    events = read(frame(build(answers(("refusal", "I cannot help.")))))
    assert (said(events), said(events, RefusalDelta)) == ("", "I cannot help.")
    assert end(events).reason == "stop"


def test_a_whole_response_in_json_is_read_as_the_answer() -> None:
    response = build(CALLS)[-1]["response"]
    for text in (json.dumps(response), "\n" + json.dumps(response, indent=2)):
        assert summarize(read(text.encode(), size=50)) == WHOLE


@pytest.mark.parametrize(
    "kept",
    [
        ("response.completed",),
        ("response.output_item.done", "response.completed"),
        ("response.output_text.done", "response.output_item.done", "response.completed"),
        ("response.output_item.added", "response.output_item.done", "response.completed"),
    ],
)
def test_a_server_that_sends_no_deltas_loses_nothing(kept: tuple[str, ...]) -> None:
    events = [each for each in build(CALLS) if each["type"] in kept]
    assert summarize(read(frame(events))) == WHOLE


def test_a_response_without_its_output_is_made_of_the_events_before() -> None:
    events = build(CALLS)
    events[-1]["response"]["output"] = []
    assert summarize(read(frame(events))) == WHOLE


def test_item_ids_that_change_in_each_event_do_not_double_a_call() -> None:
    for number, event in enumerate(events := build(CALLS)):
        if "item_id" in event:
            event["item_id"] = f"other_{number}"
        if "item" in event:
            event["item"]["id"] = f"other_{number}"
    for item in events[-1]["response"]["output"]:
        item["id"] = "last_" + item["id"]
    assert summarize(read(frame(events))) == WHOLE


def test_complete_arguments_win_over_their_pieces() -> None:
    events = build(answers(("call", "weather", '{"city": "Oslo"}')))
    events = [each for each in events if each.get("delta") != '"Osl']
    assert end(read(frame(events))).tool_calls[0].arguments == '{"city": "Oslo"}'


def test_arguments_that_are_an_object_become_json() -> None:
    events = build(answers(("call", "weather", "")))
    for event in events:
        for item in (event.get("item"), *event.get("response", {}).get("output", ())):
            if item is not None:
                item["arguments"] = {"city": "Oslo"}
    assert json.loads(end(read(frame(events))).tool_calls[0].arguments) == {"city": "Oslo"}


@pytest.mark.parametrize(
    ("reason", "expected"),
    [("max_output_tokens", "length"), ("content_filter", "content_filter"), (None, "length")],
)
def test_an_incomplete_answer_says_why(reason: str | None, expected: str) -> None:
    events = read(frame(build(Answer((("text", "Half"),), "incomplete", reason))))
    assert (said(events), end(events).reason) == ("Half", expected)


def test_a_call_that_the_end_of_the_answer_cut_is_not_made() -> None:
    answer = Answer((("call", "delete", '{"path": "/home/a'),), "incomplete", "max_output_tokens")
    assert end(read(frame(build(answer)))) == ModelFinished("length", (), Usage(20, 10, 8, 4))


@pytest.mark.parametrize("with_done", [True, False])
def test_an_end_without_the_response_is_an_error(with_done: bool) -> None:
    stream = frame(build(CALLS)[:-1]) + (b"data: [DONE]\n\n" if with_done else b"")
    with pytest.raises(ProviderProtocolError, match="ended before it was complete"):
        read(stream)


def test_a_call_without_a_name_is_an_error_and_not_an_empty_answer() -> None:
    with pytest.raises(ProviderProtocolError, match="without naming it"):
        read(frame(build(answers(("call", "", "{}")))))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"code": "server_error", "message": "Oops."}, ProviderUnavailableError),
        ({"code": "rate_limit_exceeded", "message": "Slow down."}, ProviderRateLimitError),
        ({"code": "invalid_image_url", "message": "No image there."}, InvalidRequestError),
        ({"code": "context_length_exceeded", "message": "Too long."}, ContextTooLongError),
        (None, ProviderUnavailableError),
    ],
)
@pytest.mark.parametrize("form", ["failed", "error", "nested"])
def test_an_error_within_the_answer_is_the_error_that_it_means(
    error: dict[str, str] | None, expected: type[ServiceError], form: str
) -> None:
    event: Event
    match form:
        case "failed":
            event = {"type": "response.failed", "response": {"error": error}}
        case "error":
            event = {"type": "error", "sequence_number": 3, "param": None, **(error or {})}
        case _:
            event = {"type": "error", "error": error}
    with pytest.raises(expected):
        read(frame([build(CALLS)[0], event]))


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.error", "error": {"message": "Oops."}},
        {"type": "response.failed", "error": {"message": "Oops."}},
        {"type": "response.failed", "response": None, "message": "Oops."},
        {"type": "response.completed", "response": {"status": "failed", "error": "Oops."}},
        {"object": "error", "message": "Oops."},
        {"detail": "Oops."},
        {"message": "Oops."},
        [{"error": {"message": "Oops."}}],
    ],
)
def test_an_error_in_another_envelope_is_an_error_too(event: object) -> None:
    with pytest.raises(ServiceError, match="Oops"):
        read(frame([build(CALLS)[0], event]) + b"data: [DONE]\n\n")


def test_one_id_for_two_calls_is_used_once() -> None:
    item = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": '"{}"'}
    response = {"status": "completed", "output": [{**item, "id": "fc_1"}, {**item, "id": "fc_2"}]}
    calls = end(read(frame([{"type": "response.completed", "response": response}]))).tool_calls
    assert [call.arguments for call in calls] == ["{}", "{}"]
    assert len({call.id for call in calls}) == 2


@pytest.mark.parametrize("content", ["Hi", ["Hi"], [{"text": "Hi"}]])
def test_the_content_of_a_message_may_be_text(content: object) -> None:
    response = {"status": "completed", "output": [{"type": "message", "content": content}]}
    assert said(read(frame([{"type": "response.completed", "response": response}]))) == "Hi"


def test_events_of_unknown_types_are_skipped() -> None:
    events = build(CALLS)
    unknown = {"type": "response.new_thing", "delta": "x"}
    more: list[Any] = [unknown, {"type": "keepalive"}, {}, [], 3]
    for place, event in enumerate(more):
        events.insert(2 + 3 * place, event)
    assert summarize(read(frame(events))) == WHOLE


def test_reasoning_that_is_sent_as_text_and_as_a_summary_is_heard_once() -> None:
    events = build(answers(("reasoning", "Hm."), ("text", "Yes.")))
    doubled = []
    for event in events:
        doubled.append(event)
        if event["type"] == "response.reasoning_summary_text.delta":
            doubled.append({**event, "type": "response.reasoning_text.delta"})
    assert said(read(frame(doubled)), ReasoningDelta) == "Hm."


def test_halves_of_a_character_in_two_deltas_are_joined_and_lone_ones_replaced() -> None:
    deltas = ["a\ud83d", "\ude00b", "\udc00", "\0", "c\ud83d"]
    events = build(answers(("text", "x")))
    place = next(n for n, each in enumerate(events) if each["type"].endswith("text.delta"))
    events[place : place + 1] = [{**events[place], "delta": delta} for delta in deltas]
    events[-1]["response"]["output"][0]["content"][0]["text"] = "".join(deltas)
    text = said(read(frame(events)))
    assert text == "a\U0001f600b\ufffd\ufffdc\ufffd"


def test_reasoning_items_stay_with_the_calls_they_led_to() -> None:
    events = build(CALLS)
    output = events[-1]["response"]["output"]
    calls = end(read(frame(events))).tool_calls
    kept = [call.provider_data and msgspec.json.decode(call.provider_data.data) for call in calls]
    assert kept == [
        {
            "responses": {
                "before": output[:2],
                "call": {"id": output[2]["id"], "status": "completed"},
            }
        },
        {
            "responses": {
                "before": output[3:4],
                "call": {"id": output[4]["id"], "status": "completed"},
            }
        },
    ]


def test_calls_without_reasoning_need_no_data() -> None:
    [call] = end(read(frame(build(answers(("call", "weather", "{}")))))).tool_calls
    assert call.provider_data is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def list_places(
    value: dict[Any, Any] | list[Any], place: tuple[Any, ...] = ()
) -> list[tuple[Any, ...]]:
    """Return the places of all members within `value`."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    found: list[tuple[Any, ...]] = []
    for name, part in pairs:
        found.append((*place, name))
        if isinstance(part, dict | list):
            found += list_places(part, (*place, name))
    return found


EVENTS = build(CALLS)


@given(data=st.data(), value=JSON)
def test_an_odd_member_of_a_whole_response_costs_only_itself(
    data: st.DataObject, value: object
) -> None:
    response = copy.deepcopy(EVENTS[-1]["response"])
    place = data.draw(st.sampled_from(list_places(response)))
    target: Any = response
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = value
    if place[0] in ("status", "object", "error"):
        with suppress(ServiceError):
            read(json.dumps(response).encode())
        return
    _, refusal, _, calls, reason, _ = summarize(read(json.dumps(response).encode()))
    assert refusal == ""
    assert reason == "tool_calls" if calls else reason == "stop"
    if place[0] != "output":
        assert calls == WHOLE[3]


@given(value=st.dictionaries(st.sampled_from(["code", "message", "type", "param", "error"]), JSON))
def test_an_odd_error_is_an_error(value: dict[str, Any]) -> None:
    with pytest.raises(ServiceError):
        read(frame([EVENTS[0], {"type": "error", **{**value, "type": "error"}}]))


@given(data=st.data(), value=JSON)
def test_an_odd_member_of_an_event_costs_only_itself(data: st.DataObject, value: object) -> None:
    events = copy.deepcopy(EVENTS)
    number = data.draw(st.integers(0, len(events) - 1))
    place = data.draw(st.sampled_from(list_places(events[number])))
    target: Any = events[number]
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = value
    is_last = number == len(events) - 1
    if place == ("type",) and (is_last or value == "error"):
        return  # the end is missing, or is an error
    result = summarize(read(frame(events)))
    changed = events[number]["type"]
    text, refusal, thought, calls, reason, usage = result
    is_delta = place in (("type",), ("delta",)) and str(EVENTS[number]["type"]).endswith("delta")
    if not is_delta:
        assert (text, thought) == WHOLE[0:3:2], (changed, place, value)
    assert (refusal, reason) == ("", "tool_calls")
    if not (is_last and "usage" in place):
        assert is_last or usage == WHOLE[5]
    if "name" not in place and "arguments" not in place:
        assert calls == WHOLE[3], (changed, place, value)
    assert isinstance(calls, tuple)
    assert len(calls) == 2


@pytest.mark.parametrize("number", range(len(EVENTS) - 1))
def test_an_event_that_is_missing_costs_nothing_that_another_one_has(number: int) -> None:
    events = EVENTS[:number] + EVENTS[number + 1 :]
    result = summarize(read(frame(events)))
    if not EVENTS[number]["type"].endswith("text.delta"):
        assert result == WHOLE
    assert result[3:] == WHOLE[3:]


NOT_TEXT = [n for n, each in enumerate(EVENTS[:-1]) if not each["type"].endswith("text.delta")]


@pytest.mark.parametrize("number", NOT_TEXT)
def test_an_event_that_is_repeated_doubles_nothing(number: int) -> None:
    events = EVENTS[: number + 1] + EVENTS[number:]
    assert summarize(read(frame(events))) == WHOLE
