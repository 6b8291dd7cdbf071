"""Ollama's native chat: what is asked, and what is understood."""

import asyncio
import json
import time
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from dirty_equals import IsStr

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
from ai_agent_service.providers.ollama_wire import MAX_LINE_BYTES, encode_request, to_wire_messages
from tests.support.fake_upstream import END, Action, Upstream, chunk, head, line, lines, reply
from tests.support.provider_requests import WEATHER, collect_events, question

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


@pytest.mark.parametrize(
    "text",
    [b"{", b"[]", b"7", b'{"message": "Hi"}', b'{"message": {"content": "\xff"}}', b"[" * 5000],
)
async def test_a_line_that_is_none_is_an_error(text: bytes) -> None:
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
    piece = chunk(b"x" * (MAX_LINE_BYTES // 8))
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
