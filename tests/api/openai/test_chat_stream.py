"""Chat completions that are streamed."""

import json
from pathlib import Path

import pytest

from ai_agent_service.api.openai.chat_stream import ChunkFrames
from ai_agent_service.core.events import ReasoningDelta, RefusalDelta, TextDelta
from ai_agent_service.server.application import create_app
from tests.support.clients import (
    CHAT,
    asking,
    join_deltas,
    read_chunks,
)
from tests.support.fake_provider import Script, calls, says
from tests.support.service import configuration, open_client


async def test_a_streamed_answer_comes_piece_by_piece(tmp_path: Path) -> None:
    async with open_client(
        create_app(configuration(tmp_path, Script(says("Good ", "day."))))
    ) as client:
        chunks = read_chunks(await client.post(CHAT, json=asking(stream=True)))
    assert [
        (chunk["choices"][0]["delta"], chunk["choices"][0]["finish_reason"]) for chunk in chunks
    ] == [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "Good "}, None),
        ({"content": "day."}, None),
        ({}, "stop"),
    ]
    assert {chunk["model"] for chunk in chunks} == {"helper"}


async def test_usage_is_streamed_only_when_it_is_asked_for(tmp_path: Path) -> None:
    async with open_client(create_app(configuration(tmp_path, Script(says("Hi"))))) as client:
        bodies = [
            asking(stream=True),
            *(
                asking(stream=True, stream_options=options)
                for options in (None, {}, {"include_usage": False})
            ),
        ]
        without = [read_chunks(await client.post(CHAT, json=body)) for body in bodies]
        asked = read_chunks(
            await client.post(
                CHAT, json=asking(stream=True, stream_options={"include_usage": True})
            )
        )
    assert not any(
        "usage" in chunk or not chunk["choices"] for chunks in without for chunk in chunks
    )
    assert not any("usage" in chunk for chunk in asked[:-1])
    assert asked[-1]["choices"] == []
    assert asked[-1]["usage"]["total_tokens"] == 11


async def test_a_tool_is_run_and_only_its_outcome_is_streamed(tmp_path: Path) -> None:
    script = Script(calls(("calculate", {"expression": "6*7"})), says("It is ", "42."))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        chunks = read_chunks(await client.post(CHAT, json=asking("6*7?", stream=True)))
    assert join_deltas(chunks) == "It is 42."
    assert not any("tool_calls" in chunk["choices"][0]["delta"] for chunk in chunks)
    assert script.requests[1].messages[-1].content == "42"


@pytest.mark.parametrize("lead", [ReasoningDelta("Hm"), RefusalDelta("No"), TextDelta("Hi")])
async def test_the_role_comes_alone_in_the_first_chunk_in_one_write_with_the_next(
    lead: ReasoningDelta | RefusalDelta | TextDelta,
) -> None:
    frames = ChunkFrames("helper", include_usage=False)
    first, second = frames.render_event(lead).removesuffix(b"\n\n").split(b"\n\n")
    deltas = [
        json.loads(frame.removeprefix(b"data: "))["choices"][0]["delta"]
        for frame in (first, second)
    ]
    text = {} if isinstance(lead, RefusalDelta) else {"content": ""}
    assert deltas[0] == {"role": "assistant", **text}
    assert list(deltas[1].values()) == [lead.text]
    assert b"role" not in frames.render_event(lead)
