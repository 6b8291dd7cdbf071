"""What JSON can say and no provider or database bears: NUL, nesting and numbers without measure."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from ai_agent_service.api.http.json_limits import repair_texts, validate_values
from ai_agent_service.core.bounds import MAX_JSON_DEPTH, MAX_JSON_VALUES
from ai_agent_service.core.errors import InvalidRequestError
from ai_agent_service.core.messages import Message, TextPart
from ai_agent_service.server.application import create_app
from tests.support.clients import CHAT, asking, read_completion, read_error
from tests.support.fake_provider import Script, says
from tests.support.service import configuration, open_client

CANARY = "CANARY-5b02"
NUL = f"{CANARY}\x00"


async def refused(folder: Path, body: bytes, path: str = CHAT) -> dict[str, Any]:
    """The error that posting `body` is answered with, within a second and without asking the
    provider."""
    script = Script(says("Hi"))
    async with open_client(create_app(configuration(folder, script))) as client:
        began = time.perf_counter()
        response = await client.post(path, content=body)
        seconds = time.perf_counter() - began
    error = read_error(response, 400)
    assert script.requests == []
    assert CANARY not in response.text
    assert seconds < 3, "a second on a machine at rest"
    return error


def tool(**function: Any) -> dict[str, Any]:
    return {
        "tools": [
            {"type": "function", "function": {"name": "ok"}},
            {"type": "function", "function": {"name": "f", **function}},
        ]
    }


def message(**fields: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b", **fields}]
    }


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}

NULS: list[tuple[dict[str, Any], str]] = [
    ({"model": NUL}, "model"),
    (message(role=NUL), "messages[1].role"),
    (
        message(
            content=[{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{NUL}"}}]
        ),
        "messages[1].content[0].image_url.url",
    ),
    (
        message(content=[{"type": "image_url", "image_url": {"url": "", "detail": NUL}}]),
        "messages[1].content[0].image_url.detail",
    ),
    (
        message(content=[{"type": "input_audio", "input_audio": {"data": NUL, "format": "a"}}]),
        "messages[1].content[0].input_audio.data",
    ),
    (
        message(content=[{"type": "file", "file": {"filename": NUL}}]),
        "messages[1].content[0].file.filename",
    ),
    (
        message(role="assistant", tool_calls=[CALL, {**CALL, "id": NUL}]),
        "messages[1].tool_calls[1].id",
    ),
    (
        message(role="assistant", tool_calls=[{"id": "a", "function": {"name": NUL}}]),
        "messages[1].tool_calls[0].function.name",
    ),
    (message(role="tool", tool_call_id=NUL), "messages[1].tool_call_id"),
    (tool(name=NUL), "tools[1].function.name"),
    (tool(description=NUL), "tools[1].function.description"),
    (tool(parameters={"type": NUL}), "tools[1].function.parameters[...]"),
    (tool(parameters={NUL: 1}), "tools[1].function.parameters[...]"),
    (
        tool(parameters={"properties": {"a": {"enum": ["a", [{"b": NUL}]]}}}),
        "tools[1].function.parameters[...]",
    ),
    ({"tool_choice": {"type": "function", "function": {"name": NUL}}}, "tool_choice.function.name"),
    ({"response_format": {"type": NUL}}, "response_format[...]"),
    ({"response_format": {"json_schema": {"schema": {NUL: {}}}}}, "response_format[...]"),
    ({"stop": NUL}, "stop"),
    ({"stop": ["a", NUL]}, "stop[1]"),
    ({"metadata": {"a": NUL}}, "metadata[...]"),
    ({"metadata": {"session_id": NUL}}, "metadata[...]"),
    ({"metadata": {NUL: "a"}}, "metadata[...]"),
    ({"logit_bias": {NUL: 1}}, "logit_bias[...]"),
    ({"prediction": {"content": [NUL]}}, "prediction[...]"),
    ({"reasoning_effort": NUL}, "reasoning_effort"),
    ({"verbosity": NUL}, "verbosity"),
    ({"service_tier": NUL}, "service_tier"),
    ({"user": NUL}, "user"),
]


@pytest.mark.parametrize(
    ("fields", "param"), NULS, ids=[f"{number} {param}" for number, (_, param) in enumerate(NULS)]
)
async def test_nul_and_lone_surrogates_are_refused_outside_of_texts(
    tmp_path: Path, fields: dict[str, Any], param: str
) -> None:
    body = json.dumps(asking(**fields)).encode()
    for sent in (body, body.replace(rb"\u0000", rb"\udc00")):
        error = await refused(tmp_path, sent)
        assert (error["param"], error["code"]) == (param, "invalid_request")


REPAIRED = f"{CANARY}\ufffd"


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        ({"content": NUL}, Message("user", REPAIRED)),
        ({"role": "system", "content": NUL}, Message("system", f"You help.\n\n{REPAIRED}")),
        ({"role": "assistant", "content": NUL}, Message("assistant", REPAIRED)),
        ({"role": "assistant", "content": None, "refusal": NUL}, Message("assistant", REPAIRED)),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": NUL}]},
            Message("assistant", (TextPart(REPAIRED),)),
        ),
        ({"content": [{"type": "text", "text": NUL}]}, Message("user", (TextPart(REPAIRED),))),
    ],
)
async def test_nul_and_lone_surrogates_in_texts_are_replaced(
    tmp_path: Path, fields: dict[str, Any], seen: Message
) -> None:
    script = Script(says("Hi"))
    body = json.dumps(asking(**message(**fields))).encode()
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        for sent in (body, body.replace(rb"\u0000", rb"\ud800")):
            read_completion(await client.post(CHAT, content=sent))
            assert seen in script.requests[-1].messages


async def test_more_lone_surrogates_than_any_text_has_are_refused_at_once(tmp_path: Path) -> None:
    user = r"\udc00" * 300_000
    body = f'{BEGUN}, "user": "{user}"}}'
    assert (await refused(tmp_path, body.encode()))["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"message": "a", "session_id": NUL}, "session_id"),
        ({"message": "a", "user_id": NUL}, "user_id"),
        ({"message": "a", "model": NUL}, "model"),
        ({"message": NUL, "model_settings": {"stop": [NUL]}}, "model_settings.stop[0]"),
    ],
)
async def test_nul_is_refused_in_the_agents_api_too(
    tmp_path: Path, fields: dict[str, Any], param: str
) -> None:
    assert (await refused(tmp_path, json.dumps(fields).encode(), "/agents/helper/chat"))[
        "param"
    ] == param


@pytest.mark.parametrize("text", ["\\u0000", "C:\\\\u0000", "\\\\u0000\\"])
async def test_text_that_only_looks_like_an_escaped_nul_is_taken(tmp_path: Path, text: str) -> None:
    script = Script(says("Hi"))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        read_completion(await client.post(CHAT, json=asking(text)))
    assert script.requests[0].messages[-1].text == text


def test_a_nul_in_what_is_passed_over_is_passed_over() -> None:
    repair_texts(b'{"unknown": "\\u0000"}', {})


def test_a_nul_that_cannot_be_found_in_time_is_refused_without_its_place() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        repair_texts(b'"\\u0000"', [["a"] * 300_001])
    assert caught.value.param is None


FREE = [
    (
        '"tools": [{"type": "function", "function": {"name": "f", "parameters": %s}}]',
        "tools[0].function.parameters",
    ),
    ('"metadata": %s', "metadata"),
    ('"response_format": %s', "response_format"),
    ('"prediction": %s', "prediction"),
]
WITH = pytest.mark.parametrize(("field", "param"), FREE, ids=[param for _, param in FREE])
BEGUN = json.dumps(asking(CANARY))[:-1]


@WITH
@pytest.mark.parametrize(
    ("opening", "closing"), [('{"a":', "}"), ('{"a":[', "]}")], ids=["objects", "arrays"]
)
@pytest.mark.parametrize("depth", [MAX_JSON_DEPTH + 1, 300, 450, 5_000])
async def test_deep_nesting_is_refused(
    tmp_path: Path, field: str, param: str, opening: str, closing: str, depth: int
) -> None:
    body = f"{BEGUN}, {field % (opening * depth + '1' + closing * depth)}}}"
    error = await refused(tmp_path, body.encode())
    assert (error["param"], error["code"]) in ((param, "invalid_request"), (None, "invalid_json"))


@WITH
@pytest.mark.parametrize(
    "value",
    ["9" * 5_000, "-" + "9" * 5_000, "1e999", "-1e999", "NaN", "Infinity", "9" * 5_000 + ".5"],
    ids=["long", "negative", "1e999", "-1e999", "NaN", "Infinity", "long fraction"],
)
async def test_numbers_without_measure_are_refused(
    tmp_path: Path, field: str, param: str, value: str
) -> None:
    held = f'{{"a": [{value}]}}'
    body = f"{BEGUN}, {field % held}}}"
    error = await refused(tmp_path, body.encode())
    assert error["code"] == "invalid_json" or error["param"] == f"{param}[...][0]"


@WITH
@pytest.mark.parametrize(
    "text",
    ['"\xed\xa0\x80"', '"\xff"'],
    ids=["encoded", "bad UTF-8"],
)
async def test_what_is_no_unicode_is_refused(
    tmp_path: Path, field: str, param: str, text: str
) -> None:
    for value in (f'{{"a": {text}}}', f"{{{text}: 1}}"):
        body = f"{BEGUN}, {field % value}}}"
        assert (await refused(tmp_path, body.encode("latin-1")))["code"] == "invalid_json"


MANY = [
    ('"n": %s', "1000000000", 1, "n"),
    ('"n": %s', "9" * 30, 1, "n"),
    ('"seed": %s', "9" * 30, 1, "seed"),
    ('"max_tokens": %s', "9" * 18, 1, "max_tokens"),
    ('"max_completion_tokens": %s', "9" * 40, 1, "max_completion_tokens"),
    ('"metadata": {"a": [%s]}', "[]", 2_000_000, "metadata"),
    ('"response_format": {"a": [%s]}', "1", 2_000_000, "response_format"),
    ('"stop": [%s]', "0", 1_000_000, "stop"),
    ('"stop": [%s]', '""', 1_000_000, "stop"),
    ('"tools": [%s]', '{"function":{"name":"a"}}', 500_000, "tools"),
    ('"messages": [%s]', '{"role":"user","content":""}', 1_000_000, "messages"),
    (
        '"messages": [{"role":"user","content":[%s]}]',
        '{"type":"text","text":""}',
        500_000,
        "messages",
    ),
    (
        '"messages": [{"role":"assistant","tool_calls":[%s]}]',
        '{"id":"a","function":{"name":"a"}}',
        400_000,
        "messages",
    ),
]


@pytest.mark.parametrize(
    ("field", "piece", "count", "param"),
    MANY,
    ids=[f"{number} {param}" for number, (*_, param) in enumerate(MANY)],
)
async def test_what_is_too_much_is_refused_at_once(
    tmp_path: Path, field: str, piece: str, count: int, param: str
) -> None:
    error = await refused(tmp_path, f"{BEGUN}, {field % ','.join([piece] * count)}}}".encode())
    assert error["param"] == param


@pytest.mark.parametrize("end", [b"", b"\\", b"}"])
async def test_a_text_without_end_is_refused_at_once(tmp_path: Path, end: bytes) -> None:
    body = BEGUN.encode() + b', "user": "' + b'\\"' * 300_000 + end
    assert (await refused(tmp_path, body))["code"] == "invalid_json"


async def test_too_many_biases_are_refused_at_once(tmp_path: Path) -> None:
    body = json.dumps(asking(logit_bias={str(number): 1 for number in range(100_000)}))
    assert (await refused(tmp_path, body.encode()))["param"] == "logit_bias"


def test_what_is_within_bounds_is_taken_as_it_is() -> None:
    deep: Any = 1
    for _ in range(MAX_JSON_DEPTH - 1):
        deep = {"a": deep}
    wide = {"a": [1] * (MAX_JSON_VALUES - 1)}
    for value in (None, {}, deep, wide):
        assert validate_values(value, "p") is value
