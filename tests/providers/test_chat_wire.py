"""Chat completions over server-sent events: what is asked, and what is understood."""

import asyncio
import json
import logging
import re
import time
from collections.abc import Iterable
from typing import Any, cast

import msgspec
import pytest
from dirty_equals import IsStr
from hypothesis import given
from hypothesis import strategies as st

from ai_agent_service.core.errors import ProviderProtocolError, ServiceError
from ai_agent_service.core.events import FinishReason, ReasoningDelta, RefusalDelta, TextDelta
from ai_agent_service.core.messages import (
    AudioPart,
    FilePart,
    ImagePart,
    Message,
    NamedTool,
    TextPart,
    ToolCall,
    ToolSpec,
)
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.base import ModelEvent, ModelFinished
from ai_agent_service.providers.chat_wire import (
    Profile,
    build_exchange,
    encode_request,
    to_wire_messages,
)
from ai_agent_service.providers.http import HttpClient
from ai_agent_service.providers.http_errors import HttpTarget
from ai_agent_service.providers.lenient import report_oddity
from ai_agent_service.providers.wire import stream_answer
from tests.support.fake_upstream import (
    DONE,
    END,
    Action,
    Upstream,
    chunk,
    delta,
    event,
    events,
    head,
)
from tests.support.odd_json import Path, list_places, odd_values, replace_place
from tests.support.provider_requests import (
    WEATHER,
    PiecesClient,
    collect_events,
    cut,
    is_passable,
    question,
)

NEW_ID: Any = IsStr(regex=r"call_[0-9a-f]{24}")


async def answered(answer: Iterable[Action]) -> list[ModelEvent]:
    async with Upstream(answer) as upstream, HttpClient(max_retries=0) as http:
        return await collect_events(
            stream_answer(
                http,
                asked := question(),
                build_exchange(HttpTarget("wire", upstream.url), asked, Profile()),
            )
        )


async def read_calls(*pieces: list[dict[str, Any]]) -> list[ToolCall]:
    """The tool calls of an answer with one delta for each of `pieces`."""
    *_, last = await answered(
        events(*(delta(tool_calls=piece) for piece in pieces), delta("tool_calls"))
    )
    assert isinstance(last, ModelFinished)
    assert last.reason == "tool_calls"
    return list(last.tool_calls)


def piece(
    index: int | None = None,
    id: str | None = None,
    name: str | None = None,
    arguments: str | None = None,
) -> dict[str, Any]:
    """A piece of a tool call, without what is None."""
    function = {
        key: value
        for key, value in {"name": name, "arguments": arguments}.items()
        if value is not None
    }
    whole = {"index": index, "id": id, "type": "function", "function": function}
    return {key: value for key, value in whole.items() if value is not None}


def sent(**settings: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(encode_request(question(**settings), Profile()))
    return body


# Answers


async def test_text_is_told_as_it_comes() -> None:
    usage = {
        "choices": [],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }
    found = await answered(
        events(
            delta(role="assistant", content=""),
            delta(content="Hel"),
            delta(content="lo"),
            delta("stop"),
            usage,
        )
    )
    assert found == [TextDelta("Hel"), TextDelta("lo"), ModelFinished("stop", (), Usage(7, 2))]


async def test_a_finish_reason_may_come_with_the_last_text() -> None:
    assert await answered(events(delta("length", content="Hi"))) == [
        TextDelta("Hi"),
        ModelFinished("length"),
    ]


async def test_an_empty_answer_stays_empty() -> None:
    assert await answered(events(delta(content=None), delta("stop", content=""))) == [
        ModelFinished("stop")
    ]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_reasoning_is_kept_apart_under_either_name(field: str) -> None:
    found = await answered(
        events(delta(**{field: "Hmm"}), delta(**{field: None}, content="Hi"), delta("stop"))
    )
    assert found == [ReasoningDelta("Hmm"), TextDelta("Hi"), ModelFinished("stop")]


async def test_reasoning_told_under_both_names_is_told_once() -> None:
    found = await answered(events(delta("stop", reasoning="Hmm", reasoning_content="Hmm")))
    assert found == [ReasoningDelta("Hmm"), ModelFinished("stop")]


async def test_a_refusal_is_kept_apart() -> None:
    found = await answered(events(delta(refusal="I will "), delta("stop", refusal="not.")))
    assert found == [RefusalDelta("I will "), RefusalDelta("not."), ModelFinished("stop")]


async def test_the_parts_of_usage_and_its_cost_are_read() -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "prompt_tokens_details": {"cached_tokens": 60, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 20},
        "cost": 0.0125,
    }
    found = await answered(events(delta("stop"), {"choices": [], "usage": usage}))
    assert found == [ModelFinished("stop", (), Usage(100, 50, 60, 20, 0.0125))]


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, None),
        ({}, None),
        ([], None),
        (
            {
                "prompt_tokens": 3,
                "completion_tokens": None,
                "prompt_tokens_details": None,
                "completion_tokens_details": {},
            },
            Usage(3),
        ),
    ],
)
async def test_usage_may_lack_parts_or_all(usage: object, expected: Usage | None) -> None:
    assert await answered(events({**delta("stop"), "usage": usage})) == [
        ModelFinished("stop", (), expected)
    ]


async def test_usage_that_is_told_with_each_chunk_is_not_summed() -> None:
    counts = [
        {**delta(content="x"), "usage": {"prompt_tokens": 5, "completion_tokens": number}}
        for number in (1, 2, 3)
    ]
    assert (await answered(events(*counts, delta("stop"))))[-1] == ModelFinished(
        "stop", (), Usage(5, 3)
    )


async def test_chunks_that_say_nothing_are_passed_over() -> None:
    nothing: list[object] = [
        {},
        {"choices": None},
        {"choices": []},
        {"choices": [{}]},
        {"choices": [{"delta": None}]},
        {"error": None},
    ]
    azure = {
        "choices": [],
        "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}],
        "unknown": {"a": [1]},
    }
    assert await answered(events(*nothing, azure, delta("stop", content="Hi"))) == [
        TextDelta("Hi"),
        ModelFinished("stop"),
    ]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("stop", "stop"),
        ("STOP", "stop"),
        ("end_turn", "stop"),
        ("length", "length"),
        ("max_tokens", "length"),
        ("MAX_TOKENS", "length"),
        ("tool_calls", "tool_calls"),
        ("function_call", "tool_calls"),
        ("tool_use", "tool_calls"),
        ("content_filter", "content_filter"),
        ("because", "stop"),
    ],
)
async def test_finish_reasons_are_told_in_openais_words(said: str, meant: FinishReason) -> None:
    found = await answered(events(delta(said, content="Hi")))
    assert found == [TextDelta("Hi"), ModelFinished(meant)]


async def test_the_finish_reason_error_is_an_error() -> None:
    with pytest.raises(ProviderProtocolError, match=r"^wire ended its answer with an error\.$"):
        await answered(events(delta(content="So far"), delta("error")))


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        b"null",
        b"7",
        b"no json",
        b'{"choices": [{"delta": {"content": "Hi',
        b"[" * 5000,
    ],
)
async def test_an_answer_of_which_nothing_can_be_read_is_an_error(data: bytes) -> None:
    with pytest.raises(
        ProviderProtocolError, match=r"^wire sent a chunk that is not a chat completion chunk\.$"
    ):
        await answered([head(), chunk(b"data: " + data + b"\n\n"), event(delta("stop")), DONE, END])


async def test_nothing_is_read_after_the_end() -> None:
    found = await answered(
        [head(), event(delta("stop", content="Hi")), DONE, event(delta(content=" there")), END]
    )
    assert found == [TextDelta("Hi"), ModelFinished("stop")]


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
async def test_an_answer_is_understood_however_it_is_cut(size: int, ending: bytes) -> None:
    values = [
        delta(content="é😀"),
        delta(tool_calls=[piece(0, "call_a", "weather", "{}")]),
        delta("tool_calls"),
    ]
    stream = (
        "".join(
            f": hi\n\ndata: {json.dumps(value, ensure_ascii=False)}\n\n" for value in values
        ).encode()
        + b"data: [DONE]\n\n"
    )
    stream = stream.replace(b"\n", ending)
    found = await answered(
        [head(), *(chunk(stream[at : at + size]) for at in range(0, len(stream), size)), END]
    )
    assert found == [
        TextDelta("é😀"),
        ModelFinished("tool_calls", (ToolCall("call_a", "weather", "{}"),)),
    ]


# Answers that are not quite what the format says


def body(*chunks: object, done: bool = True) -> bytes:
    """Encode a stream of `chunks`, JSON or bytes, with the end of it."""
    encoded = (each if isinstance(each, bytes) else json.dumps(each).encode() for each in chunks)
    return b"".join(b"data: " + each + b"\n\n" for each in encoded) + b"data: [DONE]\n\n" * done


def read(*pieces: bytes) -> list[ModelEvent]:
    """Return the events of an answer in `pieces`, without a server."""
    client = cast(HttpClient, PiecesClient(pieces))
    asked = question(tools=(WEATHER,))
    exchange = build_exchange(HttpTarget("wire", ""), asked, Profile())
    events = stream_answer(client, asked, exchange)
    return asyncio.run(collect_events(events))


def join(
    events: Iterable[ModelEvent], kind: type[TextDelta | ReasoningDelta | RefusalDelta]
) -> str:
    return "".join([event.text for event in events if isinstance(event, kind)])


@pytest.mark.parametrize(
    ("odd", "expected"),
    [
        ({"choices": {"index": 0, "delta": {"content": "Hi"}}}, "Hi"),
        ({"choices": {"0": {"index": 0, "delta": {"content": "Hi"}}}}, "Hi"),
        ({"choices": [None, 7, {"delta": {"content": "Hi"}}]}, "Hi"),
        (delta(content=7), "7"),
        (delta(content=[{"type": "text", "text": "H"}, "i", None, {"type": "image_url"}]), "Hi"),
        (delta(content={"type": "text", "text": "Hi"}), "Hi"),
        (delta(content=False), ""),
        (delta(content={}), ""),
        (delta(content="Hi", refusal=False, reasoning=[], tool_calls={}), "Hi"),
        (delta(content="Hi", tool_calls="none", function_call=7), "Hi"),
        ({"choices": [{"index": "0", "delta": {"content": "Hi"}, "logprobs": [[]]}]}, "Hi"),
        ({"choices": [{"delta": None, "message": {"content": "Hi"}}]}, "Hi"),
        ({"choices": [{"delta": [], "finish_reason": {}}], "usage": "none", "error": False}, ""),
        (b'{"choices":[{"delta":{"content":"Hi"},"logprobs":{"content":[NaN,-Infinity]}}]}', "Hi"),
        (b'\xef\xbb\xbf {"choices":[{"delta":{"content":"H\xff"}}]} ', "H\ufffd"),
        (b'{"choices":[{"delta":{"content":"H\ti"}}]}', "H\ti"),
        (b'{"choices":[{"delta":{"content":"H\\u0000"}}]}', "H\ufffd"),
        (b'{"choices":[{"delta":{"content":"lost', ""),
        (b"", ""),
        (b" ", ""),
        (b"null", ""),
        (b"nonsense", ""),
    ],
)
def test_an_odd_part_costs_that_part_only(odd: object, expected: str) -> None:
    found = read(body(delta(content="A"), odd, delta(content="Z"), delta("stop")))
    assert join(found, TextDelta) == f"A{expected}Z"
    assert found[-1] == ModelFinished("stop")


def test_what_is_odd_is_logged_once_for_each_provider(caplog: pytest.LogCaptureFixture) -> None:
    report_oddity.cache_clear()
    odd = body(*[delta(content=7)] * 9, *[b"{"] * 9, delta("stop"))
    with caplog.at_level(logging.WARNING):
        read(odd)
        read(odd)
    logged = [(record.message, record.__dict__["odd"]) for record in caplog.records]
    assert logged == [("provider.odd_answer", "text"), ("provider.odd_answer", "chunk")]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ((b"a \\ud83d", b"\\ude00 b"), "a \U0001f600 b"),
        ((b"a \\ud83d", b"", b"\\ude00"), "a \U0001f600"),
        ((b"a \\ud83d", b" b"), "a \ufffd b"),
        ((b"\\ude00", b"b"), "\ufffdb"),
        ((b"a \\ud83d",), "a \ufffd"),
    ],
)
@pytest.mark.parametrize("member", ["content", "reasoning_content", "refusal"])
def test_halves_of_a_surrogate_pair_are_joined_or_replaced(
    pieces: tuple[bytes, ...], expected: str, member: str
) -> None:
    chunks = [b'{"choices":[{"delta":{"%b":"%b"}}]}' % (member.encode(), each) for each in pieces]
    found = read(body(*chunks, delta(content="."), delta("stop")))
    texts = [join(found, kind) for kind in (TextDelta, ReasoningDelta, RefusalDelta)]
    assert "".join(texts).replace(".", "") == expected


@pytest.mark.parametrize("ending", [b"[DONE]", b" [DONE] ", b"[DONE]\r"])
def test_an_answer_that_is_done_needs_no_finish_reason(ending: bytes) -> None:
    end = b"data:" + ending + b"\n\n"
    assert read(body(delta(content="Hi"), done=False) + end)[-1] == ModelFinished("stop")
    assert read(body(delta(refusal="No"), done=False) + end)[-1] == ModelFinished("stop")
    called = read(body(delta(tool_calls=[piece(0, "c", "weather", "{}")]), done=False) + end)
    assert called[-1] == ModelFinished("tool_calls", (ToolCall("c", "weather", "{}"),))


@pytest.mark.parametrize(
    "stream",
    [
        body(delta(content="Hi"), done=False),
        body(),
        body(delta(reasoning="Hm")),
        body({"usage": {"prompt_tokens": 1}}),
        body(delta(content="Hi"), delta(tool_calls=[piece(0, "c", "weather", '{"ci')])),
    ],
)
def test_an_answer_that_breaks_off_is_an_error(stream: bytes) -> None:
    with pytest.raises(ProviderProtocolError, match="without a finish reason"):
        read(stream)


@pytest.mark.parametrize(
    ("reasons", "meant"),
    [
        (("stop", "stop"), "stop"),
        (("length", "stop"), "length"),
        (("stop", "length"), "length"),
        (("null", "", "stop"), "stop"),
        ((False, 0, "length"), "length"),
    ],
)
def test_a_finish_reason_may_be_repeated_and_precede_content(
    reasons: tuple[Any, ...], meant: FinishReason
) -> None:
    chunks = [delta(reason, content="x") for reason in reasons]
    found = read(body(*chunks, delta(content="y")))
    assert found[-1] == ModelFinished(meant)
    assert join(found, TextDelta) == "x" * len(reasons) + "y"


def test_only_the_first_of_several_answers_is_read() -> None:
    other = {"choices": [{"index": 1, "delta": {"content": "x"}, "finish_reason": "length"}]}
    found = read(body(delta(content="A"), other, delta(content="B"), delta("stop")))
    assert (join(found, TextDelta), found[-1]) == ("AB", ModelFinished("stop"))


@pytest.mark.parametrize("done", [b"[done]", b'"[DONE]"', b" [DONE] ", b"DONE"])
def test_the_end_may_be_spelled_in_other_ways(done: bytes) -> None:
    assert read(body(delta(content="Hi"), done, done=False))[-1] == ModelFinished("stop")


@pytest.mark.parametrize(
    "event",
    [
        {"type": "heartbeat", "message": "Still working."},
        {"code": 0, "msg": "ok"},
        {"message": "Overloaded"},
    ],
)
def test_a_note_costs_nothing_where_the_answer_is_complete(event: dict[str, Any]) -> None:
    found = read(body(event, delta(content="Hi"), event, delta("stop"), event))
    assert (join(found, TextDelta), found[-1]) == ("Hi", ModelFinished("stop"))


@pytest.mark.parametrize(
    "event",
    [
        {"message": "Overloaded"},
        {"Message": "Overloaded"},
        {"title": "Overloaded", "status": 500},
        {"error_code": 1, "error_msg": "Overloaded"},
        {"result": {"error": "Overloaded"}},
        {"fault": {"faultstring": "Overloaded"}},
        {"error": True, "message": "Overloaded"},
    ],
)
def test_a_note_explains_why_an_answer_broke_off(event: dict[str, Any]) -> None:
    for chunks in ([event], [delta(content="Hi"), event]):
        for done in (False, True):
            with pytest.raises(ServiceError, match="Overloaded"):
                read(body(*chunks, done=done))


def test_an_empty_answer_with_an_unknown_reason_is_an_error() -> None:
    with pytest.raises(ProviderProtocolError, match="OTHER"):
        read(body(delta("OTHER", content="")))
    assert read(body(delta("OTHER", content="Hi")))[-1] == ModelFinished("stop")


def test_a_call_without_a_name_is_an_error_and_not_an_empty_answer() -> None:
    with pytest.raises(ProviderProtocolError, match="without naming it"):
        read(body(delta("tool_calls", tool_calls=[piece(0, "c", "", "{}")])))


@pytest.mark.parametrize(
    "choice", [{"message": {"content": "Hi"}, "finish_reason": None}, {"text": "Hi"}]
)
def test_a_choice_of_another_form_is_an_answer(choice: dict[str, Any]) -> None:
    found = read(body({"choices": [choice]}))
    assert (join(found, TextDelta), found[-1]) == ("Hi", ModelFinished("stop"))


def test_an_error_in_a_choice_is_an_error() -> None:
    choice = {
        "delta": {"content": ""},
        "finish_reason": "error",
        "error": {"message": "Overloaded"},
    }
    with pytest.raises(ServiceError, match="Overloaded"):
        read(body(delta(content="Hi"), {"choices": [choice]}))


WHOLE = {
    "object": "chat.completion",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Hello",
                "reasoning_content": "Hm",
                "tool_calls": [{"id": "c", "function": {"name": "weather", "arguments": "{}"}}],
            },
            "finish_reason": "tool_calls",
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2},
}


@pytest.mark.parametrize(
    "stream",
    [
        json.dumps(WHOLE).encode(),
        json.dumps(WHOLE, indent=2).encode(),
        b"\n\n" + json.dumps(WHOLE).encode() + b"\n",
        body(WHOLE),
        body(delta(content="Hel", reasoning_content="Hm"), delta(content="lo"), WHOLE),
        body({"choices": [{"message": {"content": "Hel"}}]}, WHOLE),
    ],
)
def test_a_whole_completion_is_an_answer(stream: bytes) -> None:
    *found, last = read(stream)
    assert (join(found, ReasoningDelta), join(found, TextDelta)) == ("Hm", "Hello")
    assert isinstance(last, ModelFinished)
    assert [(call.id, call.name) for call in last.tool_calls] == [("c", "weather")]
    assert (last.reason, last.usage) == ("tool_calls", Usage(1, 2))


def test_a_message_that_grows_beside_the_deltas_is_shown_once() -> None:
    said = ["Hel", "lo", "!"]
    chunks = [
        {
            "choices": [
                {
                    "delta": {"content": said[place]},
                    "message": {"content": "".join(said[: place + 1])},
                }
            ]
        }
        for place in range(3)
    ]
    assert join(read(body(*chunks, delta("stop"))), TextDelta) == "Hello!"


@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}},
        {"choices": [{"delta": {}, "usage": {"prompt_tokens": 5, "completion_tokens": 3}}]},
        {"x_groq": {"usage": {"prompt_tokens": 5, "completion_tokens": 3}}},
    ],
)
def test_usage_is_read_where_vendors_put_it(chunk: dict[str, Any]) -> None:
    empty = {"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}}
    found = read(body(delta("stop", content="Hi"), chunk, empty, {"usage": []}))
    assert found[-1] == ModelFinished("stop", (), Usage(5, 3))


CHUNKS: list[dict[str, Any]] = [
    {"id": "x", "created": 1, "model": "m", **each}
    for each in cast(
        tuple[dict[str, Any], ...],
        (
            delta(role="assistant", reasoning_content="<r>", content=None),
            delta(content="<1>", refusal=None),
            delta(content="<2>", annotations=[], tool_calls=None),
            delta(tool_calls=[piece(0, "call_a", "weather", "")]),
            delta(tool_calls=[piece(0, arguments='{"city":')]),
            delta(tool_calls=[piece(0, arguments=' "Rome"}')]),
            delta("tool_calls"),
            {
                "choices": [],
                "usage": {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1}},
                "error": None,
            },
        ),
    )
]
PLACES = [(number, place) for number, each in enumerate(CHUNKS) for place in list_places(each)]


@given(st.sampled_from(PLACES), odd_values)
def test_any_value_in_any_place_costs_at_most_its_part(
    where: tuple[int, Path], value: object
) -> None:
    number, place = where
    chunks = [*CHUNKS]
    chunks[number] = replace_place(chunks[number], place, value)
    try:
        *events, last = read(body(*chunks))
    except ServiceError:
        assert "error" in json.dumps([place, value]) or number in (4, 5, 6)
        return
    assert all(map(is_passable, [*events, last]))
    assert isinstance(last, ModelFinished)
    text, thoughts = join(events, TextDelta), join(events, ReasoningDelta)
    is_text = {"content", "message", "delta", "choices"} & set(map(str, place))
    for mark, source in (("<1>", 1), ("<2>", 2)):
        assert text.count(mark) == 1 or number == source
    if number != 0:
        assert thoughts.startswith("<r>")
    if not is_text:
        assert text.replace("<1>", "").replace("<2>", "") == ""
    if number < 3 or number > 6:
        whole = '{"city": "Rome"}'
        calls = [(each.name, each.arguments) for each in last.tool_calls]
        assert ("weather", whole) in calls
        assert len(calls) == 1 or "tool_calls" in json.dumps([place, value])
    assert last.reason in ("stop", "tool_calls")
    if number != 7:
        assert last.usage == Usage(5, 0, 1)


@given(st.sampled_from(PLACES), odd_values, st.lists(st.integers(0, 5000), max_size=9))
def test_any_split_of_the_bytes_gives_the_same_answer(
    where: tuple[int, Path], value: object, places: list[int]
) -> None:
    number, place = where
    chunks = [*CHUNKS]
    chunks[number] = replace_place(chunks[number], place, value)
    stream = body(*chunks)
    outcomes = []
    for pieces in ([stream], cut(stream, places)):
        try:
            outcomes.append(re.sub("call_[0-9a-f]{24}", "", repr(read(*pieces))))
        except ServiceError as error:
            outcomes.append(repr(error))
    assert outcomes[0] == outcomes[1]


# What a provider wants back


def call_and_return(*chunks: object) -> dict[str, Any]:
    """Return the message with the calls of the answer `chunks` as it is sent back."""
    *events, last = read(body(*chunks, delta("tool_calls")))
    assert isinstance(last, ModelFinished)
    message = Message("assistant", join(events, TextDelta), last.tool_calls)
    (sent_back,) = to_wire_messages([message], Profile(), "wire")
    (elsewhere,) = to_wire_messages([message], Profile(), "other")
    assert elsewhere.keys() == {"role", "content", "tool_calls"}
    assert all(
        call.keys() == {"id", "type", "function"}
        and call["function"].keys() == {"name", "arguments"}
        for call in elsewhere["tool_calls"]
    )
    return json.loads(msgspec.json.encode(sent_back))  # type: ignore[no-any-return]


CALL = {"index": 0, "id": "c", "function": {"name": "weather", "arguments": "{}"}}


@pytest.mark.parametrize("member", ["reasoning_content", "reasoning", "reasoning_text"])
def test_thoughts_before_calls_go_back_under_the_name_they_came_by(member: str) -> None:
    found = call_and_return(
        delta(**{member: "I "}), delta(**{member: "see"}), delta(tool_calls=[CALL])
    )
    assert found[member] == "I see"
    assert found.keys() == {"role", "content", "tool_calls", member}


@pytest.mark.parametrize("member", ["provider_specific_fields", "signature", "encrypted_content"])
def test_members_that_proxies_add_go_back(member: str) -> None:
    assert call_and_return(delta(**{member: "S"}), delta(tool_calls=[CALL]))[member] == "S"


def test_thoughts_under_two_names_go_back_under_both() -> None:
    found = call_and_return(delta(reasoning="Hm", reasoning_content="Hm", tool_calls=[CALL]))
    assert (found["reasoning"], found["reasoning_content"]) == ("Hm", "Hm")


def test_reasoning_details_go_back_put_together() -> None:
    text = {"type": "reasoning.text", "index": 0, "format": "anthropic-claude-v1"}
    found = call_and_return(
        delta(reasoning="I ", reasoning_details=[{**text, "text": "I "}]),
        delta(reasoning="see", reasoning_details=[{**text, "text": "see"}]),
        delta(reasoning_details=[{**text, "signature": "sig"}]),
        delta(tool_calls=[CALL]),
    )
    assert found["reasoning_details"] == [{**text, "text": "I see", "signature": "sig"}]
    assert found["reasoning"] == "I see"


@pytest.mark.parametrize(
    "members",
    [
        {"reasoning_details": [{"type": "reasoning.summary", "summary": "Hm"}]},
        {"thinking_blocks": [{"type": "thinking", "thinking": "Hm", "signature": "s"}]},
        {"reasoning": {"text": "Hm"}},
        {"reasoning_content": ["Hm"]},
    ],
)
def test_thoughts_of_other_forms_are_shown_once_and_go_back_unchanged(
    members: dict[str, Any],
) -> None:
    chunks = [delta(**members), delta(tool_calls=[CALL])]
    assert join(read(body(*chunks, delta("tool_calls"))), ReasoningDelta) == "Hm"
    assert members.items() <= call_and_return(*chunks).items()


def test_thoughts_in_parts_of_content_go_back_as_parts() -> None:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}
    chunks = [
        delta(content=[thought]),
        delta(content=[{"type": "text", "text": "I look."}]),
        delta(tool_calls=[CALL]),
    ]
    found = read(body(*chunks, delta("tool_calls")))
    assert (join(found, ReasoningDelta), join(found, TextDelta)) == ("Hm", "I look.")
    content = call_and_return(*chunks)["content"]
    assert content == [thought, {"type": "text", "text": "I look."}]


def test_members_of_calls_go_back_unchanged() -> None:
    google = {"google": {"thought_signature": "sig"}}
    first = {**CALL, "extra_content": google}
    second = {
        "index": 1,
        "id": "d",
        "provider_specific_fields": {"thought_signature": "other"},
        "function": {"name": "weather", "arguments": "{}", "thought_signature": "third"},
    }
    found = call_and_return(delta(content="Let me see.", tool_calls=[first, second]))
    assert found["content"] == "Let me see."
    assert found["tool_calls"] == [
        {
            "id": "c",
            "type": "function",
            "function": {"name": "weather", "arguments": "{}"},
            "extra_content": google,
        },
        {
            "id": "d",
            "type": "function",
            "provider_specific_fields": {"thought_signature": "other"},
            "function": {"name": "weather", "arguments": "{}", "thought_signature": "third"},
        },
    ]


# Tool calls


async def test_split_arguments_are_put_together() -> None:
    found = await read_calls(
        [piece(0, "call_a", "weather", "")],
        [piece(0, arguments='{"ci')],
        [piece(0, arguments='ty": "Rome"}')],
    )
    assert found == [ToolCall("call_a", "weather", '{"city": "Rome"}')]


async def test_arguments_are_kept_exactly_as_the_model_wrote_them() -> None:
    written = '{"n": 1.10, "big": 12345678901234567890, "broken": '
    assert await read_calls([piece(0, "call_a", "weather", written)]) == [
        ToolCall("call_a", "weather", written)
    ]


async def test_a_call_without_arguments_has_none() -> None:
    assert await read_calls([piece(0, "call_a", "weather")]) == [ToolCall("call_a", "weather", "")]


async def test_parallel_calls_may_be_told_in_turns() -> None:
    found = await read_calls(
        [piece(0, "call_a", "weather", '{"a"'), piece(1, "call_b", "time", '{"b"')],
        [piece(1, arguments=": 2}")],
        [piece(0, arguments=": 1}")],
    )
    assert found == [
        ToolCall("call_a", "weather", '{"a": 1}'),
        ToolCall("call_b", "time", '{"b": 2}'),
    ]


async def test_indexes_need_not_begin_at_0() -> None:
    found = await read_calls(
        [piece(1, "call_a", "weather", "{}")], [piece(7, "call_b", "time", "{}")]
    )
    assert [call.id for call in found] == ["call_a", "call_b"]


async def test_calls_without_an_index_are_told_apart_by_their_ids() -> None:
    found = await read_calls(
        [piece(None, "call_a", "weather", '{"a"')],
        [piece(None, "call_b", "time", '{"b"')],
        [piece(None, None, None, ": 2}")],
        [piece(None, "call_a", None, ": 1}")],
    )
    assert found == [
        ToolCall("call_a", "weather", '{"a": 1}'),
        ToolCall("call_b", "time", '{"b": 2}'),
    ]


async def test_an_id_and_a_name_that_each_piece_repeats_begin_no_other_call() -> None:
    for index in (0, None):
        found = await read_calls(
            [piece(index, "call_a", "weather", '{"a"')], [piece(index, "call_a", "weather", ": 1}")]
        )
        assert found == [ToolCall("call_a", "weather", '{"a": 1}')]


async def test_a_name_that_each_piece_repeats_begins_no_other_call_without_ids_either() -> None:
    for index in (0, None):
        found = await read_calls(
            [piece(index, None, "weather", '{"a"')], [piece(index, None, "weather", ": 1}")]
        )
        assert found == [ToolCall(NEW_ID, "weather", '{"a": 1}')]


async def test_an_index_that_each_call_repeats_does_not_merge_them() -> None:
    found = await read_calls(
        [piece(0, "call_a", "weather", '{"a": 1}')],
        [piece(0, "call_b", "weather", '{"b"')],
        [piece(0, arguments=": 2}")],
    )
    assert found == [
        ToolCall("call_a", "weather", '{"a": 1}'),
        ToolCall("call_b", "weather", '{"b": 2}'),
    ]


@pytest.mark.parametrize("index", [0, None])
@pytest.mark.parametrize("no_id", ["", None])
@pytest.mark.parametrize("together", [True, False])
async def test_whole_calls_without_ids_are_told_apart_by_their_names(
    index: int | None, no_id: str | None, together: bool
) -> None:
    pieces = [
        piece(index, no_id, "weather", '{"city": "Rome"}'),
        piece(index, no_id, "weather", '{"city": "Oslo"}'),
        piece(index, no_id, "time", "{}"),
    ]
    found = await read_calls(pieces) if together else await read_calls(*([each] for each in pieces))
    assert found == [
        ToolCall(NEW_ID, "weather", '{"city": "Rome"}'),
        ToolCall(NEW_ID, "weather", '{"city": "Oslo"}'),
        ToolCall(NEW_ID, "time", "{}"),
    ]
    assert len({call.id for call in found}) == 3


async def test_calls_without_ids_are_given_some() -> None:
    found = await read_calls(
        [piece(0, None, "weather", '{"a"'), piece(1, "", "time", "{}")],
        [piece(0, None, None, ": 1}")],
    )
    assert found == [ToolCall(NEW_ID, "weather", '{"a": 1}'), ToolCall(NEW_ID, "time", "{}")]
    assert found[0].id != found[1].id


async def test_one_id_for_two_calls_is_used_once() -> None:
    found = await read_calls(
        [piece(0, "call_a", "weather", "{}"), piece(1, "call_a", "time", "{}")]
    )
    assert found == [ToolCall("call_a", "weather", "{}"), ToolCall(NEW_ID, "time", "{}")]


async def test_an_id_may_come_late() -> None:
    found = await read_calls(
        [piece(0, None, "weather", '{"a"')],
        [piece(0, "call_a", None, ": 1}")],
        [piece(0, "call_a")],
    )
    assert found == [ToolCall("call_a", "weather", '{"a": 1}')]


async def test_a_name_may_come_in_pieces() -> None:
    assert await read_calls([piece(0, "call_a", "wea")], [piece(0, None, "ther", "{}")]) == [
        ToolCall("call_a", "weather", "{}")
    ]


async def test_text_and_tool_calls_may_stand_in_one_answer() -> None:
    found = await answered(
        events(
            delta(content="Let me see."),
            delta("stop", tool_calls=[piece(0, "call_a", "weather", "{}")]),
        )
    )
    assert found == [
        TextDelta("Let me see."),
        ModelFinished("stop", (ToolCall("call_a", "weather", "{}"),)),
    ]


async def test_a_null_function_adds_nothing() -> None:
    found = await read_calls(
        [piece(0, "call_a", "weather", "{}")],
        [{"index": 0, "function": None}],
        [{"index": 0, "function": {"name": None, "arguments": None}}],
    )
    assert found == [ToolCall("call_a", "weather", "{}")]


# Requests


def test_a_request_is_streamed_with_usage() -> None:
    assert sent() == {
        "model": "some-model",
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_settings_go_by_their_names_and_unset_ones_not_at_all() -> None:
    body = sent(
        temperature=0, max_tokens=5, stop=["a"], response_format={"type": "json_object"}, seed=None
    )
    assert {
        "temperature": 0,
        "max_tokens": 5,
        "stop": ["a"],
        "response_format": {"type": "json_object"},
    }.items() <= body.items()
    assert "seed" not in body


def test_a_profile_says_how_a_vendor_differs() -> None:
    profile = Profile(
        extra_body={"provider": {"sort": "price"}},
        renamed={"max_tokens": "max_completion_tokens"},
        dropped=frozenset({"seed"}),
        usage_option=False,
    )
    body = json.loads(encode_request(question(max_tokens=5, seed=1, temperature=1), profile))
    assert body == {
        "model": "some-model",
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "max_completion_tokens": 5,
        "temperature": 1,
        "provider": {"sort": "price"},
    }


def test_tools_go_as_functions_and_strict_where_it_is_said() -> None:
    strict = ToolSpec("time", "The time.", {"type": "object"}, strict=True)
    body = sent(tools=(WEATHER, strict), parallel_tool_calls=False)
    assert body["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "The weather in a city.",
                "parameters": WEATHER.parameters,
            },
        },
        {
            "type": "function",
            "function": {
                "name": "time",
                "description": "The time.",
                "parameters": {"type": "object"},
                "strict": True,
            },
        },
    ]
    assert body["parallel_tool_calls"] is False
    assert "tool_choice" not in body


def test_a_tool_choice_goes_with_tools_only() -> None:
    assert sent(tools=(WEATHER,), tool_choice="required")["tool_choice"] == "required"
    assert sent(tools=(WEATHER,), tool_choice=NamedTool("weather"))["tool_choice"] == {
        "type": "function",
        "function": {"name": "weather"},
    }
    body = sent(tool_choice="auto", parallel_tool_calls=True)
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & body.keys()


def test_content_parts_are_told_in_openais_form() -> None:
    parts = (
        TextPart("Look:"),
        ImagePart("https://example.com/a.png"),
        ImagePart("data:image/png;base64,AAAA", "low"),
        AudioPart("UklG", "wav"),
        FilePart(file_data="data:application/pdf;base64,AAAA", filename="a.pdf"),
        FilePart(file_id="file-1"),
    )
    assert to_wire_messages([Message("user", parts)]) == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look:"},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                {
                    "type": "image_url",
                    "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"},
                },
                {"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}},
                {
                    "type": "file",
                    "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"},
                },
                {"type": "file", "file": {"file_id": "file-1"}},
            ],
        }
    ]


def test_a_vendor_without_images_is_sent_none() -> None:
    image = ImagePart("data:image/png;base64,AAAA")
    messages = [
        Message("user", (TextPart("Look:"), image)),
        Message("user", (image,)),
        Message("tool", "seen", tool_call_id="call_a", images=(image,)),
    ]
    assert to_wire_messages(messages, Profile(images=False)) == [
        {"role": "user", "content": [{"type": "text", "text": "Look:"}]},
        {"role": "user", "content": ""},
        {"role": "tool", "content": "seen", "tool_call_id": "call_a"},
    ]


@pytest.mark.parametrize(
    ("content", "null_content", "expected"),
    [("", True, None), ("", False, ""), ("Let me see.", True, "Let me see.")],
)
def test_an_assistant_that_only_calls_has_empty_content_and_null_where_that_is_the_custom(
    content: str, null_content: bool, expected: str | None
) -> None:
    message = Message(
        "assistant",
        content,
        (ToolCall("call_a", "weather", '{"city": "Rome"}'), ToolCall("call_b", "time", "")),
    )
    assert to_wire_messages([message], Profile(null_content=null_content)) == [
        {
            "role": "assistant",
            "content": expected,
            "tool_calls": [
                {
                    "id": "call_a",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
                },
                {
                    "id": "call_b",
                    "type": "function",
                    "function": {"name": "time", "arguments": "{}"},
                },
            ],
        }
    ]


def test_an_assistant_that_said_nothing_has_empty_content() -> None:
    assert to_wire_messages([Message("assistant")]) == [{"role": "assistant", "content": ""}]


@pytest.mark.parametrize("followed", [True, False])
def test_images_of_tools_follow_all_results_in_one_user_message(followed: bool) -> None:
    one, two = (
        ImagePart("data:image/png;base64,AAAA"),
        ImagePart("data:image/png;base64,BBBB", "high"),
    )
    messages = [
        Message(
            "assistant", "", (ToolCall("call_a", "draw", "{}"), ToolCall("call_b", "draw", "{}"))
        ),
        Message("tool", "first", tool_call_id="call_a", images=(one,)),
        Message("tool", "second", tool_call_id="call_b", images=(one, two)),
        *([Message("user", "Thanks")] if followed else []),
    ]
    found = to_wire_messages(messages)
    assert [message["role"] for message in found] == [
        "assistant",
        "tool",
        "tool",
        "user",
        *(["user"] if followed else []),
    ]
    assert found[1:3] == [
        {"role": "tool", "content": "first", "tool_call_id": "call_a"},
        {"role": "tool", "content": "second", "tool_call_id": "call_b"},
    ]
    assert found[3]["content"] == [
        {"type": "text", "text": "The images that the call call_a returned:"},
        {"type": "image_url", "image_url": {"url": one.url}},
        {"type": "text", "text": "The images that the call call_b returned:"},
        {"type": "image_url", "image_url": {"url": one.url}},
        {"type": "image_url", "image_url": {"url": two.url, "detail": "high"}},
    ]


async def test_a_long_answer_of_many_chunks_is_whole_and_quick() -> None:
    words = [f"word{number} " for number in range(5_000)]
    began = time.monotonic()
    found = await answered(events(*(delta(content=word) for word in words), delta("stop")))
    assert [each.text for each in found if isinstance(each, TextDelta)] == words
    assert time.monotonic() - began < 2
