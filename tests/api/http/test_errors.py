"""Every error of the API: its status, OpenAI's shape, its request id, and that it gives nothing
away."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import pytest

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import (
    ContextTooLongError,
    ProviderProtocolError,
    ProviderRateLimitError,
    ProviderRefusedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    ServiceError,
)
from ai_agent_service.core.events import RunEvent, RunFinished, TextDelta
from ai_agent_service.core.turn import Turn
from ai_agent_service.server.application import create_app
from tests.support.clients import (
    CHAT,
    WEATHER,
    asking,
    connected_raw,
    join_deltas,
    read_completion,
    read_error,
    read_stream,
)
from tests.support.fake_provider import Script, calls, says
from tests.support.openai_schema import validate
from tests.support.service import AGENT, configuration, open_client, serving

SECRET = "SECRET-3f9a"
USER = {"role": "user", "content": "Hello"}


async def refused(
    folder: Path, body: bytes | dict[str, Any], status: int = 400, path: str = CHAT
) -> dict[str, Any]:
    """The error that posting `body` is answered with; the provider must not have been asked."""
    script = Script(says("Hi"))
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with open_client(create_app(configuration(folder, script))) as client:
        error = read_error(await client.post(path, content=content), status)
    assert script.requests == []
    assert SECRET not in str(error)
    return error


# Requests that cannot be read


UNREADABLE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "invalid_json"),
    "text": (b"Hello", "invalid_json"),
    "an array": (b"[]", "invalid_request"),
    "null": (b"null", "invalid_request"),
    "a number": (b"3", "invalid_request"),
    "a string": (b'"text"', "invalid_request"),
    "cut off": (b'{"model": "helper"', "invalid_json"),
    "a brace too many": (json.dumps(asking()).encode() + b"}", "invalid_json"),
    "UTF-16": (json.dumps(asking()).encode("utf-16"), "invalid_json"),
    "a byte order mark": (b"\xef\xbb\xbf" + json.dumps(asking()).encode(), "invalid_json"),
    "bad UTF-8": (
        b'{"model": "helper", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
        "invalid_json",
    ),
    "a lone surrogate": (b'{"model": "helper\\ud800", "messages": []}', "invalid_request"),
    "deep arrays": (b"[" * 5000 + b"]" * 5000, "invalid_request"),
    "deep arrays as messages": (
        b'{"model": "helper", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        "invalid_request",
    ),
    "deep arrays in an unknown field": (
        b'{"unknown": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        "invalid_json",
    ),
    "deep objects in an unknown field": (
        b'{"unknown": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
        "invalid_json",
    ),
    "deep objects in a known field": (
        b'{"response_format": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
        "invalid_json",
    ),
}


@pytest.mark.parametrize(("body", "code"), UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_a_body_that_is_no_request_is_refused(tmp_path: Path, body: bytes, code: str) -> None:
    error = await refused(tmp_path, body)
    assert error["type"] == "invalid_request_error"
    assert error["code"] == code


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("NaN", "invalid_json"),
        ("Infinity", "invalid_json"),
        ("1e999", "invalid_request"),
        ("-1e999", "invalid_request"),
    ],
)
@pytest.mark.parametrize("field", ["temperature", "seed", "response_format"])
async def test_a_number_that_json_does_not_have_is_refused(
    tmp_path: Path, field: str, value: str, code: str
) -> None:
    value = f'{{"a": {value}}}' if field == "response_format" else value
    body = json.dumps(asking())[:-1] + f', "{field}": {value}}}'
    assert (await refused(tmp_path, body.encode()))["code"] == code


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("seed", "seed"),
        ("max_tokens", "max_tokens"),
        ("n", "n"),
        ("response_format", "response_format[...]"),
    ],
)
async def test_an_integer_of_5000_digits_is_refused(tmp_path: Path, field: str, param: str) -> None:
    value = "9" * 5000
    body = (
        json.dumps(asking())[:-1] + f', "{field}":'
        f" {f'{{{chr(34)}a{chr(34)}: {value}}}' if field == 'response_format' else value}}}"
    )
    error = await refused(tmp_path, body.encode())
    assert error["param"] == param
    assert "999" not in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 7}, "model"),
        ({"model": None}, "model"),
        ({"messages": SECRET}, "messages"),
        ({"messages": {SECRET: 1}}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [SECRET]}, "messages[0]"),
        ({"messages": [USER, {"role": 1, "content": "a"}]}, "messages[1].role"),
        ({"messages": [{"role": SECRET, "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"content": SECRET}]}, "messages[0].role"),
        ({"messages": [{"role": "function", "name": "f", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": {SECRET: 1}}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": SECRET}]}]},
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"text": SECRET}]}]},
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": [SECRET]}]}]},
            "messages[0].content[0].text",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": f"file:///{SECRET}"}}
                        ],
                    }
                ]
            },
            "messages[0].content[0].image_url.url",
        ),
        ({"messages": [USER, {"role": "tool", "content": SECRET}]}, "messages[1].tool_call_id"),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": SECRET}]}]},
            "messages[1].tool_calls[0].function",
        ),
        ({"temperature": SECRET}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"stop": [SECRET, 5]}, "stop[1]"),
        ({"seed": SECRET}, "seed"),
        ({"stream": SECRET}, "stream"),
        ({"stream_options": SECRET}, "stream_options"),
        ({"logit_bias": {SECRET: SECRET}}, "logit_bias[...]"),
        ({"response_format": SECRET}, "response_format"),
        ({"tool_choice": SECRET}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": SECRET}}}, "tool_choice"),
        ({"tools": SECRET}, "tools"),
        ({"tools": [{"type": SECRET, "function": {"name": "a"}}]}, "tools[0].type"),
        (
            {"tools": [WEATHER, {"type": "function", "function": {"name": f"{SECRET} "}}]},
            "tools[1].function.name",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "newline\n"}}]},
            "tools[0].function.name",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a" * 65}}]},
            "tools[0].function.name",
        ),
        ({"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
        ({"n": 2}, "n"),
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"user": 5}, "user"),
    ],
    ids=lambda value: json.dumps(value)[:80],
)
async def test_what_is_wrong_is_named_and_not_repeated(
    tmp_path: Path, fields: dict[str, Any], param: str
) -> None:
    error = await refused(tmp_path, asking(**fields))
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


@pytest.mark.parametrize("field", ["model", "messages"])
async def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    body = asking()
    del body[field]
    assert (await refused(tmp_path, body))["param"] == field


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (
            {"role": "assistant", "tool_calls": [{"id": "\x00", "function": {"name": "f"}}]},
            "messages[0].tool_calls[0].id",
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "\x00"}}]},
            "messages[0].tool_calls[0].function.name",
        ),
        ({"role": "tool", "content": "a", "tool_call_id": "\x00"}, "messages[0].tool_call_id"),
    ],
    ids=["id", "name", "result"],
)
async def test_the_character_nul_is_refused_in_names(
    tmp_path: Path, message: dict[str, Any], param: str
) -> None:
    assert (await refused(tmp_path, asking(messages=[message])))["param"] == param


async def test_a_million_messages_are_refused(tmp_path: Path) -> None:
    body = (
        b'{"model":"helper","messages":['
        + b'{"role":"user","content":""},' * 1_000_000
        + b'{"role":"user","content":""}]}'
    )
    assert (await refused(tmp_path, body))["param"] == "messages"


async def test_a_result_of_no_call_is_refused(tmp_path: Path) -> None:
    messages = [USER, {"role": "tool", "tool_call_id": SECRET, "content": "sunny"}]
    assert (await refused(tmp_path, asking(messages=messages)))[
        "param"
    ] == "messages[1].tool_call_id"


async def test_an_unknown_model_is_a_404_that_does_not_repeat_it(tmp_path: Path) -> None:
    error = await refused(tmp_path, asking(model=SECRET), 404)
    assert (error["code"], error["param"], error["type"]) == (
        "model_not_found",
        "model",
        "invalid_request_error",
    )


# Size


async def test_a_body_that_announces_to_be_too_large_is_refused_before_it_is_sent(
    tmp_path: Path,
) -> None:
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: service\r\ncontent-type:"
        b" application/json\r\ncontent-length: 62914560\r\n\r\n{"
    )
    async with (
        serving(create_app(configuration(tmp_path, max_request_bytes=2048))) as address,
        asyncio.timeout(10),
    ):
        status, headers, body = await _answer_to(address, head)
    assert status == 413
    assert "x-request-id" in headers
    assert body["error"]["code"] == "request_too_large"


async def test_an_endless_chunked_body_is_refused_while_it_is_sent(tmp_path: Path) -> None:
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: service\r\ncontent-type:"
        b" application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    async with (
        serving(create_app(configuration(tmp_path, max_request_bytes=2048))) as address,
        asyncio.timeout(10),
    ):
        status, headers, body = await _answer_to(
            address, head + b"400\r\n" + b"[" * 1024 + b"\r\n" + b"800\r\n" + b"[" * 2048 + b"\r\n"
        )
    assert status == 413
    assert "x-request-id" in headers
    assert body["error"]["code"] == "request_too_large"


async def test_a_body_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    body = json.dumps(asking()).encode().ljust(2048)
    async with open_client(
        create_app(configuration(tmp_path, Script(says("Hi")), max_request_bytes=2048))
    ) as client:
        read_completion(await client.post(CHAT, content=body))
        read_error(await client.post(CHAT, content=body + b" "), 413)


async def _answer_to(address: str, sent: bytes) -> tuple[int, dict[str, str], dict[str, Any]]:
    reader, writer = await connected_raw(address, sent)
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    headers = {
        name.lower(): value
        for name, value in (line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
    }
    body = json.loads(await reader.readexactly(int(headers["content-length"])))
    validate("ErrorResponse", body)
    writer.close()
    await writer.wait_closed()
    return int(head.split(" ")[1]), headers, body


# Addresses


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/v1",
        "/v1/",
        "/v1/models/",
        "/v1/models/a/b",
        "/agents/",
        "/v1/completions",
        f"/{SECRET}",
    ],
)
async def test_an_unknown_address_is_a_404_in_openais_shape(tmp_path: Path, path: str) -> None:
    async with open_client(create_app(configuration(tmp_path))) as client:
        error = read_error(await client.get(path), 404)
    assert error["code"] in ("not_found", "model_not_found")
    assert SECRET not in error["message"]


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/messages", "/v1/embeddings", "/chat/completions", "/api/chat"]
)
async def test_an_address_of_another_api_is_answered_with_what_to_use(
    tmp_path: Path, path: str
) -> None:
    async with open_client(create_app(configuration(tmp_path))) as client:
        error = read_error(await client.post(path, json={"model": "helper"}), 404)
    assert "POST /v1/chat/completions" in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("DELETE", CHAT, "POST"),
        ("POST", "/v1/models", "GET"),
        ("PUT", "/agents/helper/chat", "POST"),
        ("POST", "/health", "GET"),
    ],
)
async def test_a_wrong_method_is_a_405_that_says_what_is_allowed(
    tmp_path: Path, method: str, path: str, allowed: str
) -> None:
    async with open_client(create_app(configuration(tmp_path))) as client:
        response = await client.request(method, path)
    assert read_error(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == allowed


# Request ids


@pytest.mark.parametrize("path", ["/health", "/nothing", "/v1/models/nobody", "/v1/models"])
async def test_a_request_id_that_is_given_is_passed_back(tmp_path: Path, path: str) -> None:
    async with open_client(create_app(configuration(tmp_path))) as client:
        response = await client.get(path, headers={"x-request-id": "trace:7.a_b-C"})
    assert response.headers.get_list("x-request-id") == ["trace:7.a_b-C"]


@pytest.mark.parametrize("given", ["", "two words", "a" * 129, "ä", '"', "a,b"])
async def test_a_request_id_of_another_form_is_replaced(tmp_path: Path, given: str) -> None:
    async with open_client(create_app(configuration(tmp_path))) as client:
        response = await client.get("/health", headers={b"x-request-id": given.encode("latin-1")})
    assert re.fullmatch(r"req_[0-9a-f]{24}", response.headers["x-request-id"])


async def test_request_ids_are_unique_and_reach_the_provider(tmp_path: Path) -> None:
    script = Script(says("Hi"))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        responses = [await client.post(CHAT, json=asking()) for _ in range(2)]
    ids = [response.headers["x-request-id"] for response in responses]
    assert len(set(ids)) == 2
    assert [request.request_id for request in script.requests] == ids


# Errors of the provider


PROVIDER_ERRORS = [
    (
        ContextTooLongError("Too long.", param="messages"),
        400,
        "invalid_request_error",
        "context_length_exceeded",
    ),
    (
        ProviderRateLimitError("Slow down.", retry_after=6.2),
        429,
        "rate_limit_error",
        "provider_rate_limited",
    ),
    (
        ProviderRefusedError("It does not accept our key."),
        424,
        "upstream_error",
        "provider_refused",
    ),
    (ProviderUnavailableError("It is down."), 502, "upstream_error", "provider_unavailable"),
    (ProviderProtocolError("It broke off."), 502, "upstream_error", "provider_protocol_error"),
    (ProviderTimeoutError("It took too long."), 504, "upstream_error", "provider_timeout"),
]
PROVIDER_CODES = [code for _, _, _, code in PROVIDER_ERRORS]


@pytest.mark.parametrize(("failure", "status", "kind", "code"), PROVIDER_ERRORS, ids=PROVIDER_CODES)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_an_error_before_the_first_event_is_answered_with_its_status(
    tmp_path: Path, failure: ServiceError, status: int, kind: str, code: str, stream: bool
) -> None:
    async with open_client(create_app(configuration(tmp_path, Script([failure])))) as client:
        response = await client.post(CHAT, json=asking(stream=stream))
    assert read_error(response, status) == {
        "message": failure.message,
        "type": kind,
        "param": failure.param,
        "code": code,
    }
    assert response.headers.get("retry-after") == ("7" if failure.retry_after else None)
    assert response.headers.get("x-should-retry") == ("false" if status == 424 else None)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_provider_without_its_key_is_a_424_that_names_the_variable(
    tmp_path: Path, stream: bool
) -> None:
    agent = {**AGENT, "provider": "openai", "model": "some-model"}
    async with open_client(create_app(configuration(tmp_path, agents=[agent]))) as client:
        error = read_error(await client.post(CHAT, json=asking(stream=stream)), 424)
    assert error["code"] == "provider_not_configured"
    assert "OPENAI_API_KEY" in error["message"]


@pytest.mark.parametrize(("failure", "status", "kind", "code"), PROVIDER_ERRORS, ids=PROVIDER_CODES)
async def test_an_error_within_the_stream_is_its_last_event_and_what_was_said_stands(
    tmp_path: Path, failure: ServiceError, status: int, kind: str, code: str
) -> None:
    async with open_client(
        create_app(
            configuration(tmp_path, Script([TextDelta("Half an "), TextDelta("ans"), failure]))
        )
    ) as client:
        chunks, error = read_stream(
            await client.post(
                CHAT, json=asking(stream=True, stream_options={"include_usage": True})
            )
        )
        whole = read_error(await client.post(CHAT, json=asking()), status)
    assert join_deltas(chunks) == "Half an ans"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 3
    assert (
        error
        == whole
        == {
            "message": failure.message,
            "type": kind,
            "param": failure.param,
            "code": code,
        }
    )


async def test_an_error_in_a_later_step_ends_the_stream_with_an_error(tmp_path: Path) -> None:
    script = Script(
        calls(("calculate", {"expression": "6*7"}), text="Let me see."),
        [ProviderUnavailableError("It is down.")],
    )
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        chunks, error = read_stream(await client.post(CHAT, json=asking(stream=True)))
    assert join_deltas(chunks) == "Let me see."
    assert error is not None
    assert error["code"] == "provider_unavailable"


async def test_an_answer_without_a_finish_is_an_error_and_no_made_up_stop(tmp_path: Path) -> None:
    async with open_client(
        create_app(configuration(tmp_path, Script([TextDelta("Half")])))
    ) as client:
        chunks, error = read_stream(await client.post(CHAT, json=asking(stream=True)))
    assert join_deltas(chunks) == "Half"
    assert error is not None
    assert error["code"] == "provider_protocol_error"


# Faults of ours and of plug-ins


class Faulty(BaseAgent):
    """An agent with a bug, before or after its first words."""

    type: ClassVar[str] = "faulty"

    async def run(self, turn: Turn, context: RunContext) -> AsyncGenerator[RunEvent, None]:
        """Fails when its last message says how."""
        asked = turn.messages[-1].text
        if asked != "at once":
            yield TextDelta("Half")
        if asked == "without a last event":
            return
        if asked == "with no bug":
            yield RunFinished("stop", None)
            return
        raise RuntimeError(f"{SECRET} in /etc/passwd")


async def faulty(folder: Path, text: str, *, stream: bool) -> httpx2.Response:
    """The answer of the faulty agent to `text`."""
    agents = [{**AGENT, "type": "faulty"}]
    async with open_client(
        create_app(configuration(folder, agents=agents, agent_types=[Faulty]))
    ) as client:
        return await client.post(
            CHAT, json=asking(text, stream=stream), headers={"x-request-id": "trace-7"}
        )


def _gives_nothing_away(error: dict[str, Any]) -> None:
    assert error["type"] == "server_error"
    assert error["code"] == "internal_error"
    assert "trace-7" in error["message"]
    for internal in (SECRET, "RuntimeError", "passwd", "Traceback", "Faulty", "RunFinished", ".py"):
        assert internal not in str(error)


@pytest.mark.parametrize(
    ("text", "stream"),
    [("at once", False), ("at once", True), ("half-way", False), ("without a last event", False)],
)
async def test_a_bug_is_a_500_that_names_nothing_but_the_request_id(
    tmp_path: Path, text: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    response = await faulty(tmp_path, text, stream=stream)
    _gives_nothing_away(read_error(response, 500))
    assert response.headers["x-request-id"] == "trace-7"
    assert "run.crashed" in caplog.text


@pytest.mark.parametrize("text", ["half-way", "without a last event"])
async def test_a_bug_within_the_stream_is_an_error_event(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    chunks, error = read_stream(await faulty(tmp_path, text, stream=True))
    assert join_deltas(chunks) == "Half"
    assert error is not None
    _gives_nothing_away(error)
    assert "run.crashed" in caplog.text


async def test_an_agent_type_without_a_bug_answers(tmp_path: Path) -> None:
    completion = read_completion(await faulty(tmp_path, "with no bug", stream=False))
    assert completion["choices"][0]["message"]["content"] == "Half"
    assert "usage" not in completion


async def test_a_missing_tool_and_a_broken_one_are_reported_to_the_model_and_not_to_the_client(
    tmp_path: Path,
) -> None:
    script = Script(calls(("delete_everything", {}), ("calculate", "{broken")), says("Sorry."))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        completion = read_completion(await client.post(CHAT, json=asking()))
    assert completion["choices"][0]["message"]["content"] == "Sorry."
    assert [message.text.startswith("Error: ") for message in script.requests[1].messages[-2:]] == [
        True,
        True,
    ]
