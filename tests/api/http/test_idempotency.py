"""A request with an Idempotency-Key is answered once, however often it is sent."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.api.http.idempotency import RETENTION_SECONDS, CacheKey, IdempotencyCache
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import (
    ContextTooLongError,
    IdempotencyInFlightError,
    IdempotencyMismatchError,
    IdempotencyNotStoredError,
    ProviderRateLimitError,
    ProviderUnavailableError,
)
from ai_agent_service.core.events import RunEvent, RunFinished, TextDelta
from ai_agent_service.core.turn import Turn
from ai_agent_service.providers.base import ModelFinished
from ai_agent_service.server.application import create_app
from tests.support.clients import (
    CHAT,
    asking,
    connected_raw,
    join_deltas,
    read_chunks,
    read_completion,
    read_error,
    read_stream,
)
from tests.support.fake_provider import Script, calls, says
from tests.support.service import AGENT, configuration, open_client, serving

KEY = {"Idempotency-Key": "order-66"}
STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
AGENTS_CHAT = "/agents/helper/chat"


def replayed(response: httpx2.Response) -> bool:
    return response.headers.get("idempotent-replayed") == "true"


@STREAMED
@pytest.mark.parametrize("path", [CHAT, AGENTS_CHAT])
async def test_an_answer_is_told_again_and_nothing_is_run(
    tmp_path: Path, stream: bool, path: str
) -> None:
    script = Script(
        calls(("calculate", {"expression": "6*7"})), says("It is ", "42."), says("Other")
    )
    body = asking(stream=stream) if path == CHAT else {"message": "Hello", "stream": stream}
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        first, again = [await client.post(path, json=body, headers=KEY) for _ in range(2)]
    assert len(script.requests) == 2
    assert again.content == first.content
    assert b"42." in first.content
    assert (replayed(first), replayed(again)) == (False, True)
    own = {"x-request-id", "idempotent-replayed"}
    assert [pair for pair in again.headers.items() if pair[0] not in own] == [
        pair for pair in first.headers.items() if pair[0] not in own
    ]
    assert again.headers.get_list("x-request-id") != first.headers.get_list("x-request-id")
    if path == CHAT:
        assert (
            join_deltas(read_chunks(again))
            if stream
            else read_completion(again)["choices"][0]["message"]["content"]
        ) == "It is 42."


@pytest.mark.parametrize(
    ("headers", "fields", "path"),
    [
        ({"Idempotency-Key": "other"}, {}, CHAT),
        ({}, {}, CHAT),
        (KEY, {"user": "bob"}, CHAT),
        (KEY, {}, "/agents/other/chat"),
    ],
    ids=["another key", "no key", "another user", "another agent"],
)
async def test_another_request_is_run(
    tmp_path: Path, headers: dict[str, str], fields: dict[str, Any], path: str
) -> None:
    script = Script(says("one"), says("two"))
    agents = [AGENT, {**AGENT, "agent_id": "other"}]
    async with open_client(create_app(configuration(tmp_path, script, agents=agents))) as client:
        await client.post(CHAT, json=asking(), headers=KEY)
        body = asking(**fields) if path == CHAT else {"message": "Hello"}
        assert "two" in (await client.post(path, json=body, headers=headers)).text
    assert len(script.requests) == 2


@pytest.mark.parametrize(
    ("fields", "headers"),
    [({"temperature": 0.5}, {}), ({"stream": True}, {}), ({}, {"X-Session-Id": "s"})],
    ids=["a setting", "streamed", "another session"],
)
async def test_a_key_of_another_request_is_refused(
    tmp_path: Path, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    script = Script(says("one"))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        read_completion(await client.post(CHAT, json=asking(), headers=KEY))
        error = read_error(
            await client.post(CHAT, json=asking(**fields), headers={**KEY, **headers}), 422
        )
        assert (error["code"], error["param"]) == ("idempotency_mismatch", "Idempotency-Key")
        assert read_completion(await client.post(CHAT, json=asking(), headers=KEY))
    assert len(script.requests) == 1


async def test_a_request_that_is_being_answered_is_not_begun_again(tmp_path: Path) -> None:
    gate = asyncio.Event()
    script = Script([TextDelta("a"), gate, ModelFinished("stop")])
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        first = asyncio.create_task(client.post(CHAT, json=asking(), headers=KEY))
        async with asyncio.timeout(10):
            await script.waiting.wait()
        refused = await client.post(CHAT, json=asking(), headers=KEY)
        assert read_error(refused, 409)["code"] == "idempotency_in_flight"
        assert int(refused.headers["retry-after"]) >= 1
        assert (
            read_error(await client.post(CHAT, json=asking("other"), headers=KEY), 422)["code"]
            == "idempotency_mismatch"
        )
        gate.set()
        read_completion(await first)
        assert replayed(await client.post(CHAT, json=asking(), headers=KEY))
    assert len(script.requests) == 1


@STREAMED
@pytest.mark.parametrize(
    "failure",
    [
        [ProviderUnavailableError("It is down.")],
        [ProviderRateLimitError("Slow down.", retry_after=1)],
        [TextDelta("Half"), ProviderUnavailableError("It is down.")],
        [TextDelta("Half")],
    ],
    ids=["an error", "a limit", "an error midway", "no end"],
)
async def test_what_failed_is_run_again(tmp_path: Path, failure: list[Any], stream: bool) -> None:
    script = Script(failure, says("Hi"))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        first = await client.post(CHAT, json=asking(stream=stream), headers=KEY)
        if first.status_code == 200:
            assert read_stream(first)[1] is not None
        again = await client.post(CHAT, json=asking(stream=stream), headers=KEY)
    assert not replayed(again)
    assert (
        join_deltas(read_chunks(again))
        if stream
        else read_completion(again)["choices"][0]["message"]["content"]
    ) == "Hi"
    assert len(script.requests) == 2


async def test_a_refusal_of_the_run_is_an_answer(tmp_path: Path) -> None:
    script = Script([ContextTooLongError("Too long.", param="messages")], says("Hi"))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        first, again = [await client.post(CHAT, json=asking(), headers=KEY) for _ in range(2)]
    assert read_error(first, 400) == read_error(again, 400)
    assert replayed(again)
    assert len(script.requests) == 1


async def test_what_its_caller_left_is_run_again(tmp_path: Path) -> None:
    script = Script([TextDelta("a"), asyncio.Event()], says("Hi"))
    content = json.dumps(asking()).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nidempotency-key: order-66\r\ncontent-length:"
        f" {len(content)}\r\n\r\n"
    )
    app = create_app(configuration(tmp_path, script))
    async with (
        serving(app) as address,
        asyncio.timeout(20),
        httpx2.AsyncClient(base_url=address) as client,
    ):
        _, writer = await connected_raw(address, head.encode() + content)
        await script.waiting.wait()
        writer.close()
        while True:
            response = await client.post(CHAT, content=content, headers=KEY)
            if response.status_code != 409:
                break
            await asyncio.sleep(0.02)
        assert read_completion(response)["choices"][0]["message"]["content"] == "Hi"
        assert not replayed(response)


@pytest.mark.parametrize("key", ["", "two words", "a" * 256, "schlüssel", "tab\there"])
@pytest.mark.parametrize("path", [CHAT, AGENTS_CHAT])
async def test_a_key_of_another_form_is_refused(tmp_path: Path, key: str, path: str) -> None:
    script = Script(says("Hi"))
    body = asking() if path == CHAT else {"message": "Hello"}
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        error = read_error(
            await client.post(path, json=body, headers={b"idempotency-key": key.encode()}), 400
        )
    assert error["param"] == "Idempotency-Key"
    assert not key or key not in error["message"]
    assert script.requests == []


async def test_an_answer_that_is_too_large_is_not_run_again(tmp_path: Path) -> None:
    script = Script(says("x" * 2_000_000))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        assert (
            len(
                read_completion(await client.post(CHAT, json=asking(), headers=KEY))["choices"][0][
                    "message"
                ]["content"]
            )
            == 2_000_000
        )
        error = read_error(await client.post(CHAT, json=asking(), headers=KEY), 409)
    assert error["code"] == "idempotency_not_kept"
    assert len(script.requests) == 1


async def test_an_answer_that_was_under_way_while_its_user_was_erased_is_not_kept(
    tmp_path: Path,
) -> None:
    gate = asyncio.Event()
    script = Script([gate, *says("My secret is 42.")], says("New."))
    agent = {**AGENT, "resources": ["memory"]}
    asked = {"message": "Hello", "session_id": "s"}
    async with open_client(create_app(configuration(tmp_path, script, agents=[agent]))) as client:
        first = asyncio.create_task(client.post(AGENTS_CHAT, json=asked, headers=KEY))
        async with asyncio.timeout(20):
            await script.waiting.wait()
        assert (await client.delete("/memory")).json()["sessions"] == 1
        gate.set()
        assert "42" in (await first).text
        again = await client.post(AGENTS_CHAT, json=asked, headers=KEY)
    assert (replayed(again), again.json()["response"]) == (False, "New.")


async def test_erasure_forgets_the_users_answers(tmp_path: Path) -> None:
    script = Script(says("one"), says("two"))
    remembering = {**AGENT, "resources": ["memory"]}
    async with open_client(
        create_app(configuration(tmp_path, script, agents=[remembering]))
    ) as client:
        for user in ("ada", "bob"):
            read_completion(await client.post(CHAT, json=asking(user=user), headers=KEY))
        assert (await client.delete("/memory", params={"user_id": "ada"})).status_code == 200
        assert not replayed(await client.post(CHAT, json=asking(user="ada"), headers=KEY))
        assert replayed(await client.post(CHAT, json=asking(user="bob"), headers=KEY))


# What is kept


def name(number: int) -> CacheKey:
    return ("t", "u", "/p", str(number))


def answered(answers: IdempotencyCache, number: int, body: bytes = b"x") -> None:
    answer = answers.begin(name(number), b"d")
    answers.record(answer, {"type": "http.response.start", "status": 200, "headers": []})
    answers.record(answer, {"type": "http.response.body", "body": body})
    answers.end(name(number), keep=True)


def known(answers: IdempotencyCache, numbers: range) -> list[int]:
    return [number for number in numbers if answers.find(name(number), b"d") is not None]


def test_the_oldest_answers_make_room() -> None:
    answers = IdempotencyCache(max_answers=3)
    for number in range(5):
        answered(answers, number)
    assert known(answers, range(5)) == [2, 3, 4]
    assert answers.size == 3


def test_all_bodies_together_are_bounded() -> None:
    answers = IdempotencyCache(max_bytes=100, max_answer_bytes=40)
    for number in range(6):
        answered(answers, number, b"x" * 30)
    assert known(answers, range(6)) == [3, 4, 5]
    assert answers.size == 90


def test_answers_under_way_do_not_make_room_and_take_no_more_than_there_is() -> None:
    answers = IdempotencyCache(max_answers=2, max_bytes=50, max_answer_bytes=40)
    begun = [answers.begin(name(number), b"d") for number in range(3)]
    for answer in begun:
        answers.record(answer, {"type": "http.response.body", "body": b"x" * 25})
    assert answers.size == 50
    with pytest.raises(IdempotencyInFlightError):
        answers.find(name(0), b"d")
    for number in range(3):
        answers.end(name(number), keep=True)
    with pytest.raises(IdempotencyNotStoredError):
        answers.find(name(2), b"d")
    with pytest.raises(IdempotencyMismatchError):
        answers.find(name(2), b"other")


def test_an_answer_that_is_not_kept_leaves_nothing() -> None:
    answers = IdempotencyCache()
    answer = answers.begin(name(1), b"d")
    answers.record(answer, {"type": "http.response.body", "body": b"x"})
    answers.end(name(1), keep=False)
    assert (len(answers), answers.size) == (0, 0)


def test_answers_are_kept_for_a_day() -> None:
    now = 0.0
    answers = IdempotencyCache(clock=lambda: now)
    answered(answers, 1)
    now = RETENTION_SECONDS - 1
    assert known(answers, range(1, 2)) == [1]
    now = RETENTION_SECONDS
    assert known(answers, range(1, 2)) == []
    assert answers.size == 0


class Careless(BaseAgent):
    """Agent type that raises after its last event."""

    type = "careless"

    async def run(self, turn: Turn, context: RunContext) -> AsyncGenerator[RunEvent, None]:
        """Yield an answer, then raise."""
        yield TextDelta(context.run_id)
        try:
            yield RunFinished("stop", None)
        finally:
            raise ValueError("too late")


async def test_a_complete_answer_is_kept_though_the_agent_raises_after_it(tmp_path: Path) -> None:
    agents = [{**AGENT, "type": "careless"}]
    found = configuration(tmp_path, agents=agents, agent_types=[Careless])
    async with open_client(create_app(found)) as client:
        first, again = [
            await client.post(CHAT, json=asking(stream=True), headers=KEY) for _ in range(2)
        ]
    assert first.content.endswith(b"data: [DONE]\n\n")
    assert (replayed(again), again.content) == (True, first.content)
