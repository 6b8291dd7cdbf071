"""POST /v1/chat/completions."""

import time
from pathlib import Path
from typing import Any

import pytest
from dirty_equals import IsInt, IsStr
from jsonschema import ValidationError

from ai_agent_service.core.events import ReasoningDelta, RefusalDelta, TextDelta
from ai_agent_service.core.messages import (
    Message,
    ToolCall,
)
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.base import ModelFinished
from ai_agent_service.server.application import create_app
from tests.support.clients import (
    CHAT,
    WEATHER,
    asking,
    join_deltas,
    read_chunks,
    read_completion,
)
from tests.support.fake_provider import Action, Script, calls, says
from tests.support.openai_schema import validate
from tests.support.service import configuration, open_client


def test_the_schema_that_answers_are_checked_against_can_refuse_one() -> None:
    with pytest.raises(ValidationError):
        validate(
            "CreateChatCompletionStreamResponse",
            {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m"},
        )


# The answer


async def test_an_answer_is_one_chat_completion(tmp_path: Path) -> None:
    async with open_client(
        create_app(configuration(tmp_path, Script(says("Good ", "day."))))
    ) as client:
        completion = read_completion(await client.post(CHAT, json=asking()))
    assert completion == {
        "id": IsStr(regex="chatcmpl-[0-9a-f]{24}"),
        "object": "chat.completion",
        "created": IsInt(ge=int(time.time()) - 60, le=int(time.time())),
        "model": "helper",
        "system_fingerprint": IsStr(regex="fp_[0-9a-f]{12}"),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Good day.", "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 2,
            "total_tokens": 12,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


@pytest.mark.parametrize("pieces", [(), ("",)], ids=["nothing", "an empty piece"])
async def test_an_empty_answer_stays_empty(tmp_path: Path, pieces: tuple[str, ...]) -> None:
    async with open_client(create_app(configuration(tmp_path, Script(says(*pieces))))) as client:
        completion = read_completion(await client.post(CHAT, json=asking()))
        chunks = read_chunks(await client.post(CHAT, json=asking(stream=True)))
    assert completion["choices"][0]["message"]["content"] == ""
    assert join_deltas(chunks) == ""
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter"])
async def test_the_finish_reason_is_the_providers(tmp_path: Path, reason: Any) -> None:
    async with open_client(
        create_app(configuration(tmp_path, Script(says("Half", reason=reason))))
    ) as client:
        completion = read_completion(await client.post(CHAT, json=asking()))
        chunks = read_chunks(await client.post(CHAT, json=asking(stream=True)))
    assert completion["choices"][0]["finish_reason"] == reason
    assert chunks[-1]["choices"][0]["finish_reason"] == reason


async def test_reasoning_is_kept_apart_from_the_answer(tmp_path: Path) -> None:
    answer: list[Action] = [ReasoningDelta("Let me "), ReasoningDelta("think."), *says("42")]
    async with open_client(create_app(configuration(tmp_path, Script(answer)))) as client:
        message = read_completion(await client.post(CHAT, json=asking()))["choices"][0]["message"]
        chunks = read_chunks(await client.post(CHAT, json=asking(stream=True)))
    assert (message["content"], message["reasoning_content"]) == ("42", "Let me think.")
    assert (join_deltas(chunks), join_deltas(chunks, "reasoning_content")) == (
        "42",
        "Let me think.",
    )


async def test_a_refusal_is_no_content(tmp_path: Path) -> None:
    answer: list[Action] = [
        RefusalDelta("I will "),
        RefusalDelta("not."),
        ModelFinished("stop", (), Usage(1, 1)),
    ]
    async with open_client(create_app(configuration(tmp_path, Script(answer)))) as client:
        message = read_completion(await client.post(CHAT, json=asking()))["choices"][0]["message"]
        chunks = read_chunks(await client.post(CHAT, json=asking(stream=True)))
    assert message == {"role": "assistant", "content": None, "refusal": "I will not."}
    assert (join_deltas(chunks), join_deltas(chunks, "refusal")) == ("", "I will not.")


async def test_ids_are_unique(tmp_path: Path) -> None:
    async with open_client(create_app(configuration(tmp_path, Script(says("Hi"))))) as client:
        ids = {read_completion(await client.post(CHAT, json=asking()))["id"] for _ in range(3)}
        ids |= {
            read_chunks(await client.post(CHAT, json=asking(stream=True)))[0]["id"]
            for _ in range(3)
        }
    assert len(ids) == 6


# Usage


async def test_usage_is_the_sum_over_the_steps(tmp_path: Path) -> None:
    first, second = (
        Usage(20, 5, cached_tokens=8, reasoning_tokens=2, cost=0.25),
        Usage(30, 7, cached_tokens=16, reasoning_tokens=1, cost=0.5),
    )
    answers = calls(("calculate", {"expression": "6*7"}), usage=first), says("42", usage=second)
    expected = {
        "prompt_tokens": 50,
        "completion_tokens": 12,
        "total_tokens": 62,
        "prompt_tokens_details": {"cached_tokens": 24},
        "completion_tokens_details": {"reasoning_tokens": 3},
        "cost": 0.75,
    }
    async with open_client(
        create_app(configuration(tmp_path, Script(*answers, *answers)))
    ) as client:
        completion = read_completion(await client.post(CHAT, json=asking()))
        chunks = read_chunks(
            await client.post(
                CHAT, json=asking(stream=True, stream_options={"include_usage": True})
            )
        )
    assert completion["usage"] == expected
    assert chunks[-1]["usage"] == expected


async def test_usage_that_the_provider_does_not_report_is_left_out(tmp_path: Path) -> None:
    answer: list[Action] = [TextDelta("Hi"), ModelFinished("stop")]
    async with open_client(create_app(configuration(tmp_path, Script(answer)))) as client:
        completion = read_completion(await client.post(CHAT, json=asking()))
        chunks = read_chunks(
            await client.post(
                CHAT, json=asking(stream=True, stream_options={"include_usage": True})
            )
        )
    assert "usage" not in completion
    assert not any("usage" in chunk for chunk in chunks)


# Tools


async def test_a_tool_is_run_and_only_its_outcome_is_answered(tmp_path: Path) -> None:
    script = Script(
        calls(("calculate", {"expression": "6*7"}), text="Let me see. "), says("It is 42.")
    )
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        choice = read_completion(await client.post(CHAT, json=asking("6*7?")))["choices"][0]
    assert choice["message"] == {
        "role": "assistant",
        "content": "Let me see. It is 42.",
        "refusal": None,
    }
    assert choice["finish_reason"] == "stop"


async def test_a_call_of_the_clients_tool_ends_the_turn(tmp_path: Path) -> None:
    answer = calls(
        ("weather", '{"city": "Oslo" }'), ("weather", {"city": "Rome"}), text="Let me look."
    )
    async with open_client(create_app(configuration(tmp_path, Script(answer)))) as client:
        choice = read_completion(await client.post(CHAT, json=asking(tools=[WEATHER])))["choices"][
            0
        ]
        chunks = read_chunks(await client.post(CHAT, json=asking(tools=[WEATHER], stream=True)))
    expected = [
        {
            "id": "call_000000001",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"city": "Oslo" }'},
        },
        {
            "id": "call_000000002",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"city":"Rome"}'},
        },
    ]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me look."
    assert choice["message"]["tool_calls"] == expected
    assert join_deltas(chunks) == "Let me look."
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert [delta["tool_calls"] for delta in deltas if "tool_calls" in delta] == [
        [{"index": number, **call} for number, call in enumerate(expected)]
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_a_call_without_text_has_no_content(tmp_path: Path) -> None:
    async with open_client(
        create_app(configuration(tmp_path, Script(calls(("weather", {"city": "Oslo"})))))
    ) as client:
        message = read_completion(await client.post(CHAT, json=asking(tools=[WEATHER])))["choices"][
            0
        ]["message"]
    assert message["content"] is None


async def test_the_clients_result_resumes_the_turn(tmp_path: Path) -> None:
    script = Script(calls(("weather", {"city": "Oslo"})), says("It is sunny."))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        first = read_completion(await client.post(CHAT, json=asking(tools=[WEATHER])))["choices"][
            0
        ]["message"]
        messages = [
            {"role": "user", "content": "Hello"},
            first,
            {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "sunny"},
        ]
        choice = read_completion(
            await client.post(CHAT, json=asking(messages=messages, tools=[WEATHER]))
        )["choices"][0]
    assert choice["message"]["content"] == "It is sunny."
    assert choice["finish_reason"] == "stop"
    assert script.requests[1].messages[1:] == (
        Message("user", "Hello"),
        Message("assistant", "", (ToolCall("call_000000001", "weather", '{"city":"Oslo"}'),)),
        Message("tool", "sunny", tool_call_id="call_000000001"),
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_our_result_of_a_mixed_turn_is_restored_when_the_client_brings_its_own(
    tmp_path: Path, stream: bool
) -> None:
    mixed = calls(
        ("calculate", {"expression": "6*7"}), ("weather", {"city": "Oslo"}), text="One moment."
    )
    script = Script(mixed, says("42, and sunny."))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        response = await client.post(CHAT, json=asking(tools=[WEATHER], stream=stream))
        if stream:
            chunks = read_chunks(response)
            named = [
                call
                for chunk in chunks
                for call in chunk["choices"][0]["delta"].get("tool_calls", ())
            ]
            reason = chunks[-1]["choices"][0]["finish_reason"]
        else:
            choice = read_completion(response)["choices"][0]
            named, reason = choice["message"]["tool_calls"], choice["finish_reason"]
        assert reason == "tool_calls"
        assert [(call["id"], call["function"]["name"]) for call in named] == [
            ("call_000000002", "weather")
        ]
        assistant = {"role": "assistant", "content": "One moment.", "tool_calls": named}
        result = {"role": "tool", "tool_call_id": "call_000000002", "content": "sunny"}
        messages = [{"role": "user", "content": "Hello"}, assistant, result]
        completion = read_completion(
            await client.post(CHAT, json=asking(messages=messages, tools=[WEATHER]))
        )
    assert completion["choices"][0]["message"]["content"] == "42, and sunny."
    ours, theirs = (
        ToolCall("call_000000001", "calculate", '{"expression":"6*7"}'),
        ToolCall("call_000000002", "weather", '{"city":"Oslo"}'),
    )
    assert script.requests[1].messages[2:] == (
        Message("assistant", "One moment.", (ours, theirs)),
        Message("tool", "42", tool_call_id="call_000000001"),
        Message("tool", "sunny", tool_call_id="call_000000002"),
    )


async def test_a_mixed_turn_is_restored_for_the_user_who_began_it_only(tmp_path: Path) -> None:
    script = Script(
        calls(("calculate", {"expression": "6*7"}), ("weather", {"city": "Oslo"})), says("Sunny.")
    )
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        message = read_completion(
            await client.post(CHAT, json=asking(tools=[WEATHER], user="ada"))
        )["choices"][0]["message"]
        result = {"role": "tool", "tool_call_id": "call_000000002", "content": "sunny"}
        messages = [{"role": "user", "content": "Hello"}, message, result]
        read_completion(
            await client.post(CHAT, json=asking(messages=messages, tools=[WEATHER], user="eve"))
        )
    assert [message.tool_call_id for message in script.requests[1].messages] == [
        None,
        None,
        None,
        "call_000000002",
    ]


async def test_text_in_any_script_goes_through_unharmed(tmp_path: Path) -> None:
    text = 'Grüße, 世界 🌍  "quoted" \\ \n\t \x7f'
    script = Script(says(text))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        completion = read_completion(await client.post(CHAT, json=asking(text)))
        chunks = read_chunks(await client.post(CHAT, json=asking(text, stream=True)))
    assert script.requests[0].messages[1].content == text
    assert completion["choices"][0]["message"]["content"] == text
    assert join_deltas(chunks) == text
