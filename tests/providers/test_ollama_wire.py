"""Ollama's native chat: what is asked, and what is understood."""

import asyncio
import json
import re
import time
from collections.abc import Iterable
from typing import Any, cast

import msgspec
import pytest
from dirty_equals import IsStr
from hypothesis import given
from hypothesis import strategies as st

from ai_agent_service.core.bounds import MAX_OLLAMA_LINE_BYTES
from ai_agent_service.core.errors import (
    ContextTooLongError,
    InvalidRequestError,
    ProviderProtocolError,
    ProviderRefusedError,
    ProviderUnavailableError,
    ServiceError,
)
from ai_agent_service.core.events import FinishReason, ReasoningDelta, TextDelta
from ai_agent_service.core.messages import (
    AudioPart,
    ImagePart,
    Message,
    NamedTool,
    TextPart,
    ToolCall,
)
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers import ollama_wire
from ai_agent_service.providers.base import ModelEvent, ModelFinished
from ai_agent_service.providers.http import HttpClient
from ai_agent_service.providers.http_errors import HttpTarget
from ai_agent_service.providers.ollama_wire import encode_request, to_wire_messages
from tests.support.fake_upstream import END, Action, Upstream, chunk, head, line, lines, reply
from tests.support.odd_json import Path, list_places, odd_values, replace_place
from tests.support.provider_requests import (
    WEATHER,
    PiecesClient,
    collect_events,
    cut,
    is_passable,
    question,
)

FINISHED = {
    "model": "m",
    "message": {"role": "assistant", "content": ""},
    "done": True,
    "done_reason": "stop",
}
NEW_ID: Any = IsStr(regex=r"call_[0-9a-f]{24}")
PNG = ImagePart("data:image/png;base64,iVBORw0KGgo=")


async def answered(answer: Iterable[Action]) -> list[ModelEvent]:
    async with Upstream(answer) as upstream, HttpClient(max_retries=0) as http:
        return await collect_events(
            ollama_wire.stream(http, HttpTarget("ollama", upstream.url), question())
        )


def says(**message: Any) -> dict[str, Any]:
    return {"model": "m", "message": {"role": "assistant", "content": "", **message}, "done": False}


def sent(**settings: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(encode_request(question(**settings)))
    return body


# Answers


async def test_text_and_thinking_are_told_as_they_come() -> None:
    last = {**FINISHED, "prompt_eval_count": 26, "eval_count": 3, "total_duration": 5}
    found = await answered(
        lines(says(thinking="Hmm"), says(content="Hel"), says(content="lo"), last)
    )
    assert found == [
        ReasoningDelta("Hmm"),
        TextDelta("Hel"),
        TextDelta("lo"),
        ModelFinished("stop", (), Usage(26, 3)),
    ]


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\n\n"])
async def test_an_answer_is_understood_however_it_is_cut(size: int, ending: bytes) -> None:
    values = [says(content="é😀"), says(content="!"), FINISHED]
    stream = b"".join(json.dumps(value, ensure_ascii=False).encode() + ending for value in values)
    found = await answered(
        [head(), *(chunk(stream[at : at + size]) for at in range(0, len(stream), size)), END]
    )
    assert found == [TextDelta("é😀"), TextDelta("!"), ModelFinished("stop")]


async def test_the_last_line_may_say_something_and_needs_no_end() -> None:
    last = {
        **FINISHED,
        "message": {
            "content": "Hi",
            "tool_calls": [{"function": {"name": "weather", "arguments": {}}}],
        },
    }
    found = await answered([head(), chunk(json.dumps(last).encode()), END])
    assert found == [
        TextDelta("Hi"),
        ModelFinished("tool_calls", (ToolCall(NEW_ID, "weather", "{}"),)),
    ]


async def test_tool_calls_are_given_ids_and_keep_their_arguments_as_written() -> None:
    first = (
        b'{"function": {"name": "weather", "arguments": {"n": 1.10, "big": 12345678901234567890}}}'
    )
    second = b'{"id": "call_b", "function": {"name": "time"}}'
    written = (
        b'{"message": {"content": "", "tool_calls": ['
        + first
        + b", "
        + second
        + b']}, "done": false}\n'
    )
    third = says(tool_calls=[{"function": {"name": "time", "arguments": {}}}])
    found = await answered([head(), chunk(written), line(third), line(FINISHED), END])
    assert found == [
        ModelFinished(
            "tool_calls",
            (
                ToolCall(NEW_ID, "weather", '{"n": 1.10, "big": 12345678901234567890}'),
                ToolCall("call_b", "time", "{}"),
                ToolCall(NEW_ID, "time", "{}"),
            ),
        )
    ]


@pytest.mark.parametrize(
    ("said", "meant"), [("stop", "stop"), ("length", "length"), ("load", "stop"), (None, "stop")]
)
async def test_the_reason_for_the_end_is_told(said: str | None, meant: FinishReason) -> None:
    assert await answered(lines({**FINISHED, "done_reason": said})) == [ModelFinished(meant)]


async def test_usage_may_lack_a_part() -> None:
    assert await answered(lines({**FINISHED, "eval_count": 3})) == [
        ModelFinished("stop", (), Usage(0, 3))
    ]


@pytest.mark.parametrize("end", [END, "close", "reset"])
async def test_an_answer_that_ends_before_it_is_done_is_an_error(end: Action) -> None:
    with pytest.raises(ProviderProtocolError):
        await answered([head(), line(says(content="So far")), 0.02, end])


@pytest.mark.parametrize("text", [b"{", b"[]", b"7", b'{"message": {"content": "Hi', b"[" * 5000])
async def test_an_answer_of_which_nothing_can_be_read_is_an_error(text: bytes) -> None:
    with pytest.raises(
        ProviderProtocolError, match=r"^ollama sent a line that is not a chat answer\.$"
    ):
        await answered([head(), chunk(text + b"\n"), line(FINISHED), END])


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("model runner has unexpectedly stopped", ProviderUnavailableError),
        ({"message": "model runner has unexpectedly stopped"}, ProviderUnavailableError),
        ("the input length exceeds the context length", ContextTooLongError),
    ],
)
async def test_an_error_within_an_answer_is_an_error(
    said: object, kind: type[ServiceError]
) -> None:
    with pytest.raises(kind, match=r"^ollama: "):
        await answered(lines(says(content="So far"), {"error": said}))


async def test_a_model_that_is_not_installed_is_told() -> None:
    with pytest.raises(
        ProviderRefusedError, match=r'^ollama: model "m" not found, try pulling it first$'
    ):
        await answered(reply(404, {"error": 'model "m" not found, try pulling it first'}))


async def test_a_line_over_16_mib_is_refused() -> None:
    piece = chunk(b"x" * (MAX_OLLAMA_LINE_BYTES // 8))
    with pytest.raises(ProviderProtocolError, match="more than 16 MiB"):
        await answered([head(), *([piece] * 9), asyncio.Event()])


async def test_nothing_is_waited_for_once_the_answer_is_done() -> None:
    began = time.monotonic()
    found = await answered(
        [head(), line({**FINISHED, "message": {"content": "Hi"}}), asyncio.Event()]
    )
    assert found == [TextDelta("Hi"), ModelFinished("stop")]
    assert time.monotonic() - began < 1.9


async def test_a_connection_is_used_again_after_a_normal_stream() -> None:
    async with (
        Upstream([*lines(says(content="Hi"), FINISHED)[:-1], 0.02, END]) as upstream,
        HttpClient() as http,
    ):
        for _ in range(3):
            await collect_events(
                ollama_wire.stream(http, HttpTarget("ollama", upstream.url), question())
            )
        assert (upstream.connections, len(upstream.requests)) == (1, 3)


async def test_leaving_an_answer_closes_its_connection_within_a_second() -> None:
    async with (
        Upstream(
            [head(), line(says(content="one")) + line(says(content="two")), asyncio.Event()]
        ) as upstream,
        HttpClient() as http,
    ):
        before = asyncio.all_tasks()
        events = ollama_wire.stream(http, HttpTarget("ollama", upstream.url), question())
        await anext(events)
        await events.aclose()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() - before == set(upstream.tasks), (
            "a generator was left to the garbage collector"
        )
        await upstream.until(lambda: upstream.disconnects == 1, timeout=1)


# Answers that are not quite what the format says


def read(*pieces: bytes) -> list[ModelEvent]:
    """Return the events of an answer in `pieces`, without a server."""
    client = cast(HttpClient, PiecesClient(pieces))
    events = ollama_wire.stream(client, HttpTarget("ollama", ""), question())
    return asyncio.run(collect_events(events))


def body(*values: object) -> bytes:
    encoded = (each if isinstance(each, bytes) else json.dumps(each).encode() for each in values)
    return b"".join(each + b"\n" for each in encoded)


def join(events: Iterable[ModelEvent], kind: type[TextDelta | ReasoningDelta]) -> str:
    return "".join([event.text for event in events if isinstance(event, kind)])


@pytest.mark.parametrize(
    ("odd", "expected"),
    [
        (says(content=7), "7"),
        (says(content=["H", {"type": "text", "text": "i"}]), "Hi"),
        (says(content=False, thinking=[], tool_calls="none"), ""),
        (says(content="Hi", tool_calls=[None, {}, {"function": None}, {"id": "a"}]), "Hi"),
        ({"message": "Hi", "done": "no"}, ""),
        ({"message": None}, ""),
        (b"{}", ""),
        (b"null", ""),
        (b"nonsense", ""),
        (b'{"message": {"content": "lost', ""),
        (b'\xef\xbb\xbf{"message": {"content": "H\xff"}}', "H\ufffd"),
        (b'{"message": {"content": "Hi"}, "logprobs": [NaN]}', "Hi"),
        (b'{"message": {"content": "H\\u0000"}}', "H\ufffd"),
        (b'{"message": {"content": "\\ud83d"}}\n{"message": {"content": "\\ude00"}}', "\U0001f600"),
    ],
)
def test_an_odd_part_costs_that_part_only(odd: object, expected: str) -> None:
    found = read(body(says(content="A"), odd, says(content="Z"), FINISHED))
    assert join(found, TextDelta) == f"A{expected}Z"
    assert found[-1] == ModelFinished("stop")


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({"name": "time", "arguments": "{}"}, ToolCall(NEW_ID, "time", "{}")),
        (
            {"function": {"name": "time", "arguments": '{"a": 1.10}'}},
            ToolCall(NEW_ID, "time", '{"a": 1.10}'),
        ),
        ({"function": {"name": "time", "arguments": ""}}, ToolCall(NEW_ID, "time", "{}")),
        ({"function": {"name": "time", "arguments": []}}, ToolCall(NEW_ID, "time", "{}")),
        ({"function": {"name": "time", "arguments": None}}, ToolCall(NEW_ID, "time", "{}")),
        ({"id": 7, "function": {"index": 0, "name": "time"}}, ToolCall("7", "time", "{}")),
    ],
)
def test_calls_may_have_other_forms(call: object, expected: ToolCall) -> None:
    line = says(tool_calls=[None, call])
    assert read(body(line, FINISHED)) == [ModelFinished("tool_calls", (expected,))]
    assert read(body(says(tool_calls=call), FINISHED)) == [ModelFinished("tool_calls", (expected,))]


@pytest.mark.parametrize(
    ("last", "meant"),
    [
        ({"done": False, "done_reason": "stop"}, "stop"),
        ({"done_reason": "length"}, "length"),
        ({"done": "true"}, "stop"),
        ({"done": 1}, "stop"),
    ],
)
def test_an_answer_ends_with_done_or_a_reason(last: dict[str, Any], meant: FinishReason) -> None:
    counts = {"prompt_eval_count": "26", "eval_count": 3.0}
    found = read(body(says(content="Hi"), {**last, **counts}))
    assert found == [TextDelta("Hi"), ModelFinished(meant, (), Usage(26, 3))]


def test_a_reason_that_means_a_failure_is_an_error() -> None:
    with pytest.raises(ProviderProtocolError, match="with an error: abort"):
        read(body(says(content="Hi"), {**FINISHED, "done_reason": "abort"}))


def test_thoughts_and_members_of_calls_go_back_unchanged_to_ollama_alone() -> None:
    call = {
        "id": "call_a",
        "thought_signature": "s",
        "function": {"index": 0, "name": "time", "arguments": {}, "signature": "t"},
    }
    last = read(body(says(thinking="Hm"), says(thinking="!", tool_calls=[call]), FINISHED))[-1]
    assert isinstance(last, ModelFinished)
    message = Message("assistant", "", last.tool_calls)
    function = {"name": "time", "arguments": {}}
    assert json.loads(msgspec.json.encode(to_wire_messages([message], "ollama"))) == [
        {
            "role": "assistant",
            "content": "",
            "thinking": "Hm!",
            "tool_calls": [{"thought_signature": "s", "function": {**function, "signature": "t"}}],
        }
    ]
    assert json.loads(msgspec.json.encode(to_wire_messages([message], "other"))) == [
        {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
    ]


LINES: list[dict[str, Any]] = [
    says(thinking="<r>"),
    says(content="<1>", images=[]),
    says(content="<2>"),
    says(tool_calls=[{"function": {"index": 0, "name": "weather", "arguments": {"city": "Rome"}}}]),
    {**FINISHED, "prompt_eval_count": 5, "eval_count": 6, "error": None},
]
PLACES = [(number, place) for number, each in enumerate(LINES) for place in list_places(each)]


@given(st.sampled_from(PLACES), odd_values)
def test_any_value_in_any_place_costs_at_most_its_part(
    where: tuple[int, Path], value: object
) -> None:
    number, place = where
    values = [*LINES]
    values[number] = replace_place(values[number], place, value)
    try:
        *events, last = read(body(*values))
    except ServiceError:
        # A line with a text as its message is an error.
        assert "error" in place or place in (("done",), ("message",))
        return
    assert all(map(is_passable, [*events, last]))
    assert isinstance(last, ModelFinished)
    if place == ("done",) and value in (True, "true"):
        return  # this line ends the answer
    text = join(events, TextDelta)
    for mark, source in (("<1>", 1), ("<2>", 2)):
        assert text.count(mark) == 1 or number == source
    if number != 0:
        assert join(events, ReasoningDelta).startswith("<r>")
    if "content" not in place and "message" not in place:
        assert text == "<1><2>"
    if number != 3:
        assert [(call.name, call.arguments) for call in last.tool_calls][:1] == [
            ("weather", '{"city": "Rome"}')
        ]
    if number != 4 and place != ("done",):
        assert last.usage == Usage(5, 6)


@given(st.sampled_from(PLACES), odd_values, st.lists(st.integers(0, 5000), max_size=9))
def test_any_split_of_the_bytes_gives_the_same_answer(
    where: tuple[int, Path], value: object, places: list[int]
) -> None:
    number, place = where
    values = [*LINES]
    values[number] = replace_place(values[number], place, value)
    stream = body(*values)
    outcomes = []
    for pieces in ([stream], cut(stream, places)):
        try:
            outcomes.append(re.sub("call_[0-9a-f]{24}", "", repr(read(*pieces))))
        except ServiceError as error:
            outcomes.append(repr(error))
    assert outcomes[0] == outcomes[1]


# Requests


def test_a_request_without_settings_leaves_them_to_the_server() -> None:
    assert sent() == {
        "model": "some-model",
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
    }


def test_ollamas_own_settings_go_where_ollama_reads_them() -> None:
    body = sent(
        num_ctx=8192,
        num_predict=5,
        keep_alive="10m",
        think=True,
        temperature=0,
        stop="END",
        seed=None,
        options={"top_k": 3},
    )
    assert body["options"] == {
        "num_ctx": 8192,
        "num_predict": 5,
        "temperature": 0,
        "stop": ["END"],
        "top_k": 3,
    }
    assert (body["keep_alive"], body["think"]) == ("10m", True)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_of_tokens_becomes_num_predict(name: str) -> None:
    assert sent(**{name: 7})["options"] == {"num_predict": 7}


def test_a_list_of_stops_stays_one() -> None:
    assert sent(stop=["a", "b"])["options"] == {"stop": ["a", "b"]}


@pytest.mark.parametrize(
    ("response_format", "form"),
    [
        ({"type": "json_object"}, "json"),
        (
            {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
            },
            {"type": "object"},
        ),
        ({"type": "text"}, None),
    ],
)
def test_a_response_format_becomes_a_format(response_format: dict[str, Any], form: object) -> None:
    body = sent(response_format=response_format)
    assert body.get("format") == form
    assert "options" not in body
    assert "response_format" not in body


@pytest.mark.parametrize(
    ("settings", "think"),
    [
        ({"reasoning_effort": "high"}, "high"),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, False),
        ({"reasoning_effort": "high", "think": False}, False),
    ],
)
def test_an_effort_of_reasoning_becomes_think_unless_that_is_set(
    settings: dict[str, Any], think: object
) -> None:
    body = sent(**settings)
    assert body["think"] == think
    assert "options" not in body


def test_what_ollama_cannot_do_is_not_sent() -> None:
    assert sent(
        logit_bias={"1": 2}, parallel_tool_calls=True, service_tier="flex", verbosity="low"
    ).keys() == {
        "model",
        "messages",
        "stream",
    }


def test_tools_go_as_functions_unless_none_may_be_called() -> None:
    expected = [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "The weather in a city.",
                "parameters": WEATHER.parameters,
            },
        }
    ]
    assert sent(tools=(WEATHER,), tool_choice=NamedTool("weather"))["tools"] == expected
    assert "tools" not in sent(tools=(WEATHER,), tool_choice="none")


def test_text_and_images_go_apart() -> None:
    message = Message("user", (TextPart("Look:"), PNG, TextPart("Well?")))
    assert to_wire_messages([message]) == [
        {"role": "user", "content": "Look:\nWell?", "images": ["iVBORw0KGgo="]}
    ]


def test_a_result_names_its_tool_and_brings_its_images() -> None:
    found = to_wire_messages(
        [
            Message(
                "assistant",
                "",
                (
                    ToolCall("call_a", "weather", '{"city": "Rome"}'),
                    ToolCall("call_b", "draw", "oops"),
                ),
            ),
            Message("tool", "Sunny", tool_call_id="call_a"),
            Message("tool", "Drawn", tool_call_id="call_b", images=(PNG,)),
            Message("tool", "Whose?", tool_call_id="call_c"),
        ]
    )
    assert json.loads(msgspec.json.encode(found)) == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"function": {"name": "weather", "arguments": {"city": "Rome"}}},
                {"function": {"name": "draw", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": "Sunny", "tool_name": "weather"},
        {"role": "tool", "content": "Drawn", "tool_name": "draw", "images": ["iVBORw0KGgo="]},
        {"role": "tool", "content": "Whose?", "tool_name": ""},
    ]


@pytest.mark.parametrize("arguments", ["", "7", "[]", "null", '{"a"', "[" * 5000])
def test_arguments_that_are_no_object_become_an_empty_one(arguments: str) -> None:
    (message,) = to_wire_messages(
        [Message("assistant", "", (ToolCall("call_a", "weather", arguments),))]
    )
    assert message["tool_calls"] == [{"function": {"name": "weather", "arguments": {}}}]


@pytest.mark.parametrize(
    ("part", "code"),
    [
        (ImagePart("https://example.com/a.png"), "unsupported_image_url"),
        (AudioPart("UklG", "wav"), "unsupported_content"),
    ],
)
def test_what_ollama_does_not_take_is_the_callers_fault(
    part: ImagePart | AudioPart, code: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        to_wire_messages([Message("user", (TextPart("Look:"), part))])
    assert (caught.value.code, caught.value.param) == (code, "messages")
