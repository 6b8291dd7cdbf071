"""The stream of POST /agents/{id}/chat."""

import json
from pathlib import Path
from typing import Any

import httpx2
from dirty_equals import IsFloat, IsStr

from ai_agent_service.core.errors import ProviderUnavailableError
from ai_agent_service.core.events import ReasoningDelta, RefusalDelta, TextDelta
from ai_agent_service.providers.base import ModelFinished
from ai_agent_service.server.application import create_app
from tests.support.agents import CLIMBER, climb, climbing
from tests.support.clients import (
    ASK,
    CHAT,
    USAGE,
    asking,
    join_deltas,
    read_chunks,
    read_completion,
)
from tests.support.fake_provider import Action, Script, calls, says
from tests.support.openai_schema import split_events, validate
from tests.support.service import configuration, open_client


def events_in(response: httpx2.Response) -> list[dict[str, Any]]:
    """The events of a stream, which has to end with `[DONE]`."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, last = split_events(response.text)
    assert last == "[DONE]"
    return [json.loads(event) for event in events]


async def test_a_stream_tells_everything_in_order(tmp_path: Path) -> None:
    script = Script(
        calls(("calculate", {"expression": "6*7"}), text="Let me see. ", thinking="Hm."),
        says("It is ", "42."),
    )
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        events = events_in(await client.post(ASK, json={"message": "6*7?", "stream": True}))
    assert events == [
        {"type": "reasoning_delta", "text": "Hm."},
        {"type": "text_delta", "text": "Let me see. "},
        {
            "type": "tool_started",
            "id": "call_000000001",
            "name": "calculate",
            "arguments": '{"expression":"6*7"}',
        },
        {
            "type": "tool_finished",
            "id": "call_000000001",
            "name": "calculate",
            "result": "42",
            "is_error": False,
            "seconds": IsFloat(ge=0, lt=10),
        },
        {"type": "text_delta", "text": "It is "},
        {"type": "text_delta", "text": "42."},
        {
            "type": "run_finished",
            "run_id": IsStr(regex="run_[0-9a-f]{24}"),
            "finish_reason": "stop",
            "steps": 2,
            "usage": USAGE,
        },
    ]


async def test_a_stream_tells_a_refusal_and_leaves_unknown_usage_out(tmp_path: Path) -> None:
    script = Script([ReasoningDelta("Hm."), RefusalDelta("No."), ModelFinished("content_filter")])
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        events = events_in(await client.post(ASK, json={"message": "?", "stream": True}))
    assert events[1:] == [
        {"type": "refusal_delta", "text": "No."},
        {"type": "run_finished", "run_id": IsStr(), "finish_reason": "content_filter", "steps": 1},
    ]


async def test_a_stream_that_breaks_ends_with_the_error_and_keeps_what_was_said(
    tmp_path: Path,
) -> None:
    answer: list[Action] = [TextDelta("Half"), ProviderUnavailableError("It is down.")]
    async with open_client(create_app(configuration(tmp_path, Script(answer)))) as client:
        events = events_in(await client.post(ASK, json={"message": "?", "stream": True}))
    assert events == [
        {"type": "text_delta", "text": "Half"},
        {
            "type": "run_failed",
            "run_id": IsStr(regex="run_[0-9a-f]{24}"),
            "error": {
                "message": "It is down.",
                "type": "upstream_error",
                "param": None,
                "code": "provider_unavailable",
            },
        },
    ]
    validate("Error", events[1]["error"])


async def test_a_stream_tells_how_far_a_tool_is(tmp_path: Path) -> None:
    async with open_client(
        create_app(configuration(tmp_path, climbing(), agents=[CLIMBER], tools=[climb]))
    ) as client:
        events = events_in(await client.post(ASK, json={"message": "?", "stream": True}))
    assert [event["type"] for event in events] == [
        "tool_started",
        "tool_progress",
        "tool_finished",
        "text_delta",
        "run_finished",
    ]
    assert events[1] == {
        "type": "tool_progress",
        "id": "call_000000001",
        "name": "climb",
        "progress": 1,
        "total": 4,
        "message": "base camp",
    }


async def test_progress_is_no_part_of_a_chat_completion(tmp_path: Path) -> None:
    async with open_client(
        create_app(configuration(tmp_path, climbing(), agents=[CLIMBER], tools=[climb]))
    ) as client:
        streamed = await client.post(CHAT, json=asking(stream=True))
    async with open_client(
        create_app(configuration(tmp_path, climbing(), agents=[CLIMBER], tools=[climb]))
    ) as client:
        whole = await client.post(CHAT, json=asking())
    assert join_deltas(read_chunks(streamed)) == "Done."
    assert read_completion(whole)["choices"][0]["message"]["content"] == "Done."
    assert "base camp" not in streamed.text + whole.text
