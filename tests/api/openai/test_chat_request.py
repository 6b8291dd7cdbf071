"""What a chat completion asks of the agent: its tools, messages and settings."""

from pathlib import Path
from typing import Any

import pytest

from ai_agent_service.core.messages import (
    AudioPart,
    FilePart,
    ImagePart,
    Message,
    NamedTool,
    TextPart,
    ToolSpec,
)
from ai_agent_service.server.application import create_app
from tests.support.clients import (
    CHAT,
    IMAGE,
    IMAGE_MESSAGE,
    WEATHER,
    asking,
    read_chunks,
    read_completion,
    read_error,
)
from tests.support.fake_provider import Script, calls, says
from tests.support.service import AGENT, configuration, open_client


async def test_the_clients_tools_are_told_to_the_model_after_the_agents(tmp_path: Path) -> None:
    script = Script(says("Hi"))
    bare = {"type": "function", "function": {"name": "now", "strict": True}}
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        read_completion(await client.post(CHAT, json=asking(tools=[WEATHER, bare])))
    weather = WEATHER["function"]
    assert script.requests[0].tools[2:] == (
        ToolSpec("weather", weather["description"], weather["parameters"]),
        ToolSpec("now", "", {"type": "object", "properties": {}}, True),
    )
    assert [spec.name for spec in script.requests[0].tools[:2]] == [
        "calculate",
        "get_current_datetime",
    ]


@pytest.mark.parametrize("none", [None, []])
async def test_no_tools_may_be_said_as_null_or_as_an_empty_list(
    tmp_path: Path, none: object
) -> None:
    script = Script(says("Hi"))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        read_completion(await client.post(CHAT, json=asking(tools=none)))
        read_chunks(await client.post(CHAT, json=asking(tools=none, stream=True)))
    assert [[spec.name for spec in request.tools] for request in script.requests] == [
        ["calculate", "get_current_datetime"]
    ] * 2


async def test_an_agent_may_ignore_the_clients_tools(tmp_path: Path) -> None:
    script = Script(says("Hi"))
    async with open_client(
        create_app(configuration(tmp_path, script, agents=[{**AGENT, "client_tools": "ignore"}]))
    ) as client:
        read_completion(await client.post(CHAT, json=asking(tools=[WEATHER])))
    assert "weather" not in [spec.name for spec in script.requests[0].tools]


@pytest.mark.parametrize(
    ("given", "reaches"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "function": {"name": "weather"}}, NamedTool("weather")),
        (None, None),
    ],
    ids=["auto", "none", "required", "named", "null"],
)
async def test_the_tool_choice_reaches_the_provider(
    tmp_path: Path, given: object, reaches: object
) -> None:
    script = Script(says("Hi"))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        read_completion(await client.post(CHAT, json=asking(tools=[WEATHER], tool_choice=given)))
    assert script.requests[0].tool_choice == reaches


NOW = {"type": "function", "function": {"name": "now"}}


def allowed(*names: str, mode: str = "auto") -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize("mode", ["auto", "required"])
async def test_allowed_tools_leave_out_the_clients_others_and_none_of_the_agents(
    tmp_path: Path, mode: str
) -> None:
    script = Script(says("Hi"))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        body = asking(tools=[WEATHER, NOW], tool_choice=allowed("now", mode=mode))
        read_completion(await client.post(CHAT, json=body))
    [request] = script.requests
    assert [spec.name for spec in request.tools] == ["calculate", "get_current_datetime", "now"]
    assert request.tool_choice == mode


async def test_a_clients_tool_that_is_not_allowed_is_not_called(tmp_path: Path) -> None:
    script = Script(calls(("weather", {})), says("I may not."))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        body = asking(tools=[WEATHER, NOW], tool_choice=allowed("now"))
        answer = read_completion(await client.post(CHAT, json=body))
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert "There is no tool 'weather'" in script.requests[1].messages[-1].text


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        (allowed("weather", "calculate"), "tool_choice.allowed_tools.tools[1]"),
        (allowed("unknown"), "tool_choice.allowed_tools.tools[0]"),
        (allowed(mode="required"), "tool_choice.allowed_tools.tools"),
        (allowed("weather", mode="any"), "tool_choice.allowed_tools.mode"),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "mcp"}]},
            },
            "tool_choice.allowed_tools.tools[0]",
        ),
        ({"type": "allowed_tools"}, "tool_choice"),
        ({"type": "function"}, "tool_choice"),
        ({"type": "custom", "custom": {"name": "weather"}}, "tool_choice"),
    ],
)
async def test_a_tool_choice_that_names_no_tool_of_the_client_is_refused(
    tmp_path: Path, choice: dict[str, Any], param: str
) -> None:
    script = Script(says("Hi"))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        body = asking(tools=[WEATHER], tool_choice=choice)
        assert read_error(await client.post(CHAT, json=body), 400)["param"] == param
    assert script.requests == []


async def test_custom_tools_are_refused_by_name(tmp_path: Path) -> None:
    async with open_client(create_app(configuration(tmp_path, Script(says("Hi"))))) as client:
        tools = [WEATHER, {"type": "custom", "custom": {"name": "sql"}}]
        error = read_error(await client.post(CHAT, json=asking(tools=tools)), 400)
        assert (error["param"], error["code"]) == ("tools[1].type", "unsupported_value")
        assert "'custom'" in error["message"]
        error = read_error(await client.post(CHAT, json=asking(tools=[{}])), 400)
        assert error["param"] == "tools[0].function"


async def test_a_required_call_of_the_clients_tool_survives_calls_of_the_agents(
    tmp_path: Path,
) -> None:
    script = Script(calls(("calculate", {"expression": "6*7"})), calls(("weather", {})))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        body = asking(tools=[WEATHER], tool_choice="required")
        [choice] = read_completion(await client.post(CHAT, json=body))["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["weather"]
    assert [request.tool_choice for request in script.requests] == ["required", "required"]


async def test_the_agents_prompt_comes_first_and_the_clients_system_message_is_added_to_it(
    tmp_path: Path,
) -> None:
    script = Script(says("Hi"))
    messages = [
        {"role": "system", "content": "Speak French."},
        {"role": "user", "content": "Hello", "name": "ada"},
        {"role": "assistant", "content": "Bonjour"},
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "Again"},
    ]
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        read_completion(await client.post(CHAT, json=asking(messages=messages)))
    assert script.requests[0].messages == (
        Message("system", "You help.\n\nSpeak French.\n\nBe brief."),
        Message("user", "Hello"),
        Message("assistant", "Bonjour"),
        Message("user", "Again"),
    )


async def test_content_parts_reach_the_provider(tmp_path: Path) -> None:
    script = Script(says("A cat."))
    parts = [
        *IMAGE_MESSAGE["content"],
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
        {
            "type": "file",
            "file": {"file_data": "data:application/pdf;base64,JVBERg==", "filename": "a.pdf"},
        },
    ]
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        read_completion(
            await client.post(CHAT, json=asking(messages=[{"role": "user", "content": parts}]))
        )
    assert script.requests[0].messages[1].content == (
        TextPart("What is this?"),
        ImagePart(IMAGE, "low"),
        ImagePart("https://example.com/cat.png"),
        AudioPart("UklGRg==", "wav"),
        FilePart(file_data="data:application/pdf;base64,JVBERg==", filename="a.pdf"),
    )


async def test_an_earlier_refusal_is_told_to_the_model_as_what_was_said(tmp_path: Path) -> None:
    script = Script(says("Hi"))
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "Never."}]},
        {"role": "user", "content": "b"},
    ]
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        read_completion(await client.post(CHAT, json=asking(messages=messages)))
    assert script.requests[0].messages[2:4] == (
        Message("assistant", "No."),
        Message("assistant", (TextPart("Never."),)),
    )


async def test_the_settings_of_the_request_reach_the_provider_over_the_agents(
    tmp_path: Path,
) -> None:
    asked: dict[str, Any] = {
        "temperature": 0.25,
        "top_p": 0.5,
        "max_completion_tokens": 100,
        "stop": ["END", "STOP"],
        "seed": 7,
        "presence_penalty": -1,
        "frequency_penalty": 1.5,
        "logit_bias": {"50256": -100},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"type": "object"}},
        },
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "verbosity": "low",
    }
    script = Script(says("Hi"))
    agent = {**AGENT, "model_settings": {"temperature": 1, "max_tokens": 5, "top_k": 3}}
    async with open_client(create_app(configuration(tmp_path, script, agents=[agent]))) as client:
        read_completion(await client.post(CHAT, json=asking(**asked)))
    assert script.requests[0].settings == {**asked, "top_k": 3}


async def test_max_tokens_and_a_single_stop_reach_the_provider_as_they_are(tmp_path: Path) -> None:
    script = Script(says("Hi"))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        read_completion(await client.post(CHAT, json=asking(max_tokens=5, stop="END")))
    assert script.requests[0].settings == {"max_tokens": 5, "stop": "END"}


async def test_a_setting_of_zero_or_false_is_not_taken_for_none(tmp_path: Path) -> None:
    script = Script(says("Hi"))
    asked = {"temperature": 0, "seed": 0, "parallel_tool_calls": False}
    async with open_client(
        create_app(
            configuration(
                tmp_path, script, agents=[{**AGENT, "model_settings": {"temperature": 1}}]
            )
        )
    ) as client:
        read_completion(await client.post(CHAT, json=asking(**asked)))
    assert script.requests[0].settings == asked


async def test_null_and_unknown_fields_are_passed_over(tmp_path: Path) -> None:
    names = (
        "temperature",
        "max_tokens",
        "stop",
        "tools",
        "tool_choice",
        "n",
        "logprobs",
        "stream",
        "stream_options",
        "user",
        "metadata",
    )
    script = Script(says("Hi"))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        read_completion(
            await client.post(
                CHAT, json=asking(**dict.fromkeys(names), keep_alive="5m", chat_id={"a": [1]})
            )
        )
    assert script.requests[0].settings == {}


async def test_what_says_the_usual_is_taken(tmp_path: Path) -> None:
    async with open_client(create_app(configuration(tmp_path, Script(says("Hi"))))) as client:
        read_completion(
            await client.post(
                CHAT,
                json=asking(
                    n=1, logprobs=False, modalities=["text"], functions=[], metadata={"a": "b"}
                ),
            )
        )


async def test_the_model_that_is_asked_is_the_agents(tmp_path: Path) -> None:
    script = Script(says("Hi"))
    async with open_client(
        create_app(
            configuration(
                tmp_path, script, agents=[AGENT, {**AGENT, "agent_id": "own", "model": "big"}]
            )
        )
    ) as client:
        read_completion(await client.post(CHAT, json=asking()))
        read_completion(await client.post(CHAT, json=asking(model="own")))
    assert [request.model for request in script.requests] == ["scripted-model", "big"]
