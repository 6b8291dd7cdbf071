"""Bodies cost little before they are known to be valid."""

import asyncio
import json
import time
import tracemalloc
from pathlib import Path

import msgspec
import pytest

from ai_agent_service.api.http.body import BodyBudget, decode_body
from ai_agent_service.api.openai.chat_schema import ChatCompletionRequest
from ai_agent_service.auth.principal import Limits
from ai_agent_service.core.bounds import LARGE_BODY
from ai_agent_service.core.errors import InvalidRequestError, ServerBusyError
from ai_agent_service.server.application import create_app
from tests.support.clients import CHAT, asking, read_completion, read_error
from tests.support.fake_provider import Script, says
from tests.support.keys import opened
from tests.support.service import configuration, open_client

DECODER = msgspec.json.Decoder(ChatCompletionRequest)
SIZE = 8_000_000

WIDE = {
    "numbers": b"[" + b",".join([b"0"] * (SIZE // 2)) + b"]",
    "lists": b"[" + b",".join([b"[]"] * (SIZE // 3)) + b"]",
    "texts": b"[" + b",".join([b'"abcdefgh"'] * (SIZE // 11)) + b"]",
    "commas": b"[" + b",".join([b'","'] * (SIZE // 4)) + b"]",
    "members": b"{" + b",".join(b'"k%d":1' % number for number in range(SIZE // 10)) + b"}",
    "depth": b"[" * (SIZE // 2) + b"]" * (SIZE // 2),
}


@pytest.mark.parametrize("field", ["metadata", "response_format", "tools", "unknown"])
@pytest.mark.parametrize("kind", WIDE)
def test_a_wide_value_costs_little_time_and_memory(kind: str, field: str) -> None:
    value = WIDE[kind]
    if field == "tools":
        value = b'[{"type":"function","function":{"name":"f","parameters":{"a":%b}}}]' % value
    head = json.dumps(asking()).encode()[:-1]
    body = b'%b,"%b":%b}' % (head, field.encode(), value)
    tracemalloc.start()
    try:
        began = time.thread_time()
        with pytest.raises(InvalidRequestError):
            decode_body(body, DECODER)
        assert time.thread_time() - began < 0.05 * 3 * len(body) / 1e6, "50 ms a MB, traced"
        assert tracemalloc.get_traced_memory()[1] < 8 * len(body)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        (
            {"reasoning_effort": 3},
            "reasoning_effort",
            "reasoning_effort: Expected 'string | null', got 'integer'.",
        ),
        (
            {"temperature": "hot"},
            "temperature",
            "temperature: Expected 'number | null', got 'string'.",
        ),
        (
            {"messages": [{"role": "user"}, {"role": 1}]},
            "messages[1].role",
            "messages[1].role: Expected 'string', got 'integer'.",
        ),
        ({"messages": [{}]}, "messages[0].role", "Object missing required field 'role'."),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_field_and_the_type_in_json(
    fields: dict[str, object], param: str, message: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        decode_body(json.dumps({**asking(), **fields}).encode(), DECODER)
    assert (caught.value.param, caught.value.message) == (param, message)


async def test_a_large_body_of_text_is_answered_while_others_are(tmp_path: Path) -> None:
    text = 'Well, this has "quotes", commas, [brackets] and {braces}. ' * 100_000
    script = Script(says("Long."), says("Short."))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        long, health = await asyncio.gather(
            client.post(CHAT, json=asking(text)), client.get("/health/live")
        )
    read_completion(long)
    assert health.status_code == 200
    assert script.requests[0].messages[-1].text == text


def test_the_bytes_of_large_bodies_are_bounded_together() -> None:
    budget = BodyBudget(3 * LARGE_BODY)
    with budget.open_share() as first, budget.open_share() as second:
        first.grow(2 * LARGE_BODY)
        second.grow(LARGE_BODY)  # a small one counts nothing
        with pytest.raises(ServerBusyError) as refused:
            second.grow(2 * LARGE_BODY)
        assert refused.value.retry_after == 1
    with budget.open_share() as third:
        third.grow(9 * LARGE_BODY)  # one alone fits always


async def test_a_busy_reader_refuses_large_bodies_and_takes_small_ones(tmp_path: Path) -> None:
    app = create_app(configuration(tmp_path, Script(says("Hi"))))
    async with open_client(app) as client:
        budget = app.state.bodies = BodyBudget(LARGE_BODY)
        with budget.open_share() as other:
            other.grow(2 * LARGE_BODY)
            error = read_error(await client.post(CHAT, json=asking("x" * 2 * LARGE_BODY)), 429)
            assert error["code"] == "server_busy"
            read_completion(await client.post(CHAT, json=asking()))


async def test_requests_are_charged_before_their_bodies_are_read(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        key = await service.key("limited", limits=Limits(requests=1))
        first = await service.client.post(CHAT, content=b"{", headers=key)
        assert read_error(first, 400)["code"] == "invalid_json"
        for _ in range(3):
            again = await service.client.post(CHAT, content=b"{", headers=key)
            assert read_error(again, 429)["code"] == "rate_limit_exceeded"
