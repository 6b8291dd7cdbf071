"""The Responses API: requests, as OpenAI takes them."""

import json
from typing import Any

import pytest

from ai_agent_service.core.errors import InvalidRequestError, UpstreamAnswer
from ai_agent_service.core.messages import (
    AudioPart,
    FilePart,
    ImagePart,
    Message,
    NamedTool,
    TextPart,
    ToolCall,
    ToolChoice,
    ToolSpec,
)
from ai_agent_service.providers.provider_data import add_provider_data
from ai_agent_service.providers.responses_request import (
    Omission,
    ResponsesState,
    encode_request,
    find_refused_part,
)
from tests.support.openai_schema import validate
from tests.support.provider_requests import WEATHER, question

PNG = "data:image/png;base64,AAAA"
REASONING = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA=="}
SAID = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "status": "completed",
    "phase": "commentary",
    "content": [{"type": "output_text", "text": "Hm.", "annotations": [], "logprobs": []}],
}


def encode(*messages: Message, state: ResponsesState | None = None, **named: Any) -> dict[str, Any]:
    asked = question(*messages, **named)
    body: dict[str, Any] = json.loads(encode_request(asked, "openai", state or ResponsesState()))
    return body


def reasoned_call(number: int = 1, model: str = "some-model", **kept: object) -> ToolCall:
    call = ToolCall(f"call_{number}", "weather", "{}")
    given = {"before": [REASONING], "call": {"id": f"fc_{number}"}, **kept}
    return add_provider_data(call, "openai", model, {"responses": given})


def result(number: int = 1, **named: Any) -> Message:
    return Message("tool", "rain", tool_call_id=f"call_{number}", **named)


def test_a_question_is_stateless_and_asks_for_encrypted_reasoning() -> None:
    assert encode(Message("system", "Be brief."), Message("user", "Hi")) == {
        "model": "some-model",
        "instructions": "Be brief.",
        "input": [{"type": "message", "role": "user", "content": "Hi"}],
        "stream": True,
        "store": False,
        "include": ["reasoning.encrypted_content"],
    }


def test_system_messages_alone_are_the_input() -> None:
    body = encode(Message("system", "Say hi."))
    assert "instructions" not in body
    assert body["input"] == [{"type": "message", "role": "system", "content": "Say hi."}]


def test_each_part_of_a_message_has_its_form() -> None:
    message = Message(
        "user",
        (
            TextPart("What is this?"),
            ImagePart(PNG),
            ImagePart("https://example.org/a.png", "low"),
            FilePart(file_data="data:application/pdf;base64,AAAA", filename="a.pdf"),
            AudioPart("AAAA", "wav"),
        ),
    )
    [item] = encode(message)["input"]
    *known, audio = item["content"]
    validate("InputMessage", {**item, "content": known})
    assert known[1:3] == [
        {"type": "input_image", "image_url": PNG, "detail": "auto"},
        {"type": "input_image", "image_url": "https://example.org/a.png", "detail": "low"},
    ]
    assert audio == {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}


def test_answers_calls_and_results_are_items() -> None:
    call = ToolCall("call_1", "weather", "")
    body = encode(
        Message("user", "Weather?"),
        Message("assistant", "Let me see.", (call,)),
        result(),
        Message("assistant", "It rains."),
    )
    assert body["input"][1:] == [
        {"type": "message", "role": "assistant", "content": "Let me see."},
        {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
        {"type": "message", "role": "assistant", "content": "It rains."},
    ]


def test_images_of_a_tool_are_in_its_output() -> None:
    call = ToolCall("call_1", "weather", "{}")
    item = encode(Message("assistant", "", (call,)), result(images=(ImagePart(PNG),)))["input"][1]
    validate("FunctionCallOutputItemParam", item)
    assert item["output"] == [
        {"type": "input_text", "text": "rain"},
        {"type": "input_image", "image_url": PNG, "detail": "auto"},
    ]


def test_a_call_id_that_is_too_long_is_shortened_alike_in_call_and_result() -> None:
    call = ToolCall("call_" + "x" * 200, "weather", "{}")
    items = encode(
        Message("assistant", "", (call,)), Message("tool", "rain", tool_call_id=call.id)
    )["input"]
    assert items[0]["call_id"] == items[1]["call_id"]
    assert len(items[0]["call_id"]) <= 64


@pytest.mark.parametrize(("strict", "sent"), [(None, False), (False, False), (True, True)])
def test_a_tool_is_strict_only_where_it_says_so(strict: bool | None, sent: bool) -> None:
    spec = ToolSpec("weather", "The weather.", {"type": "object"}, strict)
    [tool] = encode(tools=(spec,))["tools"]
    assert tool == {
        "type": "function",
        "name": "weather",
        "description": "The weather.",
        "parameters": {"type": "object"},
        "strict": sent,
    }


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        (NamedTool("weather"), {"type": "function", "name": "weather"}),
    ],
)
def test_a_tool_choice_has_its_form(choice: ToolChoice, sent: object) -> None:
    assert encode(tools=(WEATHER,), tool_choice=choice)["tool_choice"] == sent


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({"max_tokens": 100}, {"max_output_tokens": 100}),
        ({"max_completion_tokens": 5}, {"max_output_tokens": 16}),
        ({"max_tokens": -1}, {"max_output_tokens": -1}),
        ({"temperature": 0.2, "top_p": 0.5}, {"temperature": 0.2, "top_p": 0.5}),
        ({"verbosity": "low"}, {"text": {"verbosity": "low"}}),
        ({"reasoning_effort": "low"}, {"reasoning": {"effort": "low", "summary": "auto"}}),
        ({"reasoning_effort": "none"}, {"reasoning": {"effort": "none"}}),
        (
            {"reasoning": {"effort": "high", "summary": None}, "reasoning_effort": "low"},
            {"reasoning": {"effort": "high", "summary": None}},
        ),
        (
            {"reasoning_effort": "low", "reasoning": {"summary": "detailed"}},
            {"reasoning": {"effort": "low", "summary": "detailed"}},
        ),
        ({"response_format": {"type": "text"}}, {"text": {"format": {"type": "text"}}}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "object"}, "strict": True},
                },
                "verbosity": "low",
            },
            {
                "text": {
                    "format": {
                        "type": "json_schema",
                        "name": "a",
                        "schema": {"type": "object"},
                        "strict": True,
                    },
                    "verbosity": "low",
                }
            },
        ),
        ({"service_tier": "flex", "prompt_cache_key": "k"},) * 2,
        ({"user": "u", "safety_identifier": "s", "metadata": {"a": "b"}},) * 2,
        ({"stop": ["x"], "seed": 1, "presence_penalty": 0.1, "logit_bias": {"1": 2}}, {}),
        ({"parallel_tool_calls": True, "temperature": None}, {}),
    ],
)
def test_settings_have_their_place(settings: dict[str, Any], sent: dict[str, Any]) -> None:
    plain = encode()
    body = encode(**settings)
    assert {name: value for name, value in body.items() if plain.get(name) != value} == sent


def test_settings_that_the_api_does_not_have_are_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = ResponsesState()
    for _ in range(2):
        encode(state=state, stop="x", seed=1)
    assert caplog.messages == ["provider.settings_not_in_responses"]


def test_a_stored_response_needs_no_encrypted_reasoning() -> None:
    body = encode(store=True)
    assert body["store"] is True
    assert "include" not in body


def test_reasoning_goes_back_unchanged_before_the_call_it_led_to() -> None:
    calls = (reasoned_call(1, before=[REASONING, SAID]), reasoned_call(2, before=[]))
    items = encode(Message("assistant", "Hm.", calls), result(1), result(2))["input"]
    sent = {"type": "function_call", "name": "weather", "arguments": "{}"}
    assert items[:4] == [
        REASONING,
        SAID,
        {"id": "fc_1", "call_id": "call_1", **sent},
        {"id": "fc_2", "call_id": "call_2", **sent},
    ]


@pytest.mark.parametrize("model", ["some-model", "another"])
def test_reasoning_of_another_model_is_not_sent(model: str) -> None:
    items = encode(Message("assistant", "", (reasoned_call(model=model),)), result())["input"]
    assert (REASONING in items) == (model == "some-model")
    assert ("id" in items[-2]) == (model == "some-model")


def test_reasoning_of_another_provider_is_not_sent() -> None:
    call = add_provider_data(
        ToolCall("c", "f", "{}"), "azure_openai", "some-model", {"message": {}}
    )
    assert len(encode(Message("assistant", "", (call,)))["input"]) == 1


@pytest.mark.parametrize("store", [True, False])
def test_reasoning_that_is_only_a_reference_is_sent_to_a_server_that_stores(store: bool) -> None:
    bare = {"type": "reasoning", "id": "rs_1", "summary": []}
    call = reasoned_call(before=[bare, SAID])
    items = encode(Message("assistant", "Hm.", (call,)), result(), store=store)["input"]
    assert (bare in items) == store
    assert [item["role"] for item in items if item["type"] == "message"] == ["assistant"]
    assert any("id" in item for item in items) == store


def test_items_that_were_refused_are_left_out_and_later_ones_are_sent() -> None:
    state = ResponsesState()
    old = Message("assistant", "", (reasoned_call(1),))
    state.omit("items", question(old))
    new = Message("assistant", "", (reasoned_call(2, before=[{**REASONING, "id": "rs_2"}]),))
    items = encode(old, result(1), new, result(2), state=state)["input"]
    assert [item.get("id") for item in items] == [None, None, "rs_2", "fc_2", None]


@pytest.mark.parametrize(
    ("message", "part"),
    [
        ("Your organization must be verified to generate reasoning summaries.", "summary"),
        ("Unsupported parameter: 'reasoning.summary' is not supported.", "summary"),
        ("Encrypted content is not supported with this model.", "include"),
        ("Unknown parameter: 'include'.", "include"),
        ("The encrypted content gAAA...DQ== could not be verified.", "items"),
        ("The encrypted content for item rs_1 could not be verified.", "items"),
        ("Item with id 'rs_0de7' not found. Items are not persisted.", "items"),
        (
            "Item 'rs_1' of type 'reasoning' was provided without its required following item.",
            "items",
        ),
        (
            "Item 'fc_1' of type 'function_call' was provided without its required 'reasoning'"
            " item: 'rs_1'.",
            "items",
        ),
        ("Unsupported parameter: 'reasoning.effort' is not supported with this model.", None),
        ("The model `gpt-9` does not exist or you do not have access to it.", None),
        ("Invalid 'temperature'.", None),
        ("Messages must include the parameter 'content'.", None),
    ],
)
def test_an_error_is_about_the_part_that_it_names(message: str, part: Omission | None) -> None:
    error = InvalidRequestError(message)
    asked = question(Message("assistant", "", (reasoned_call(),)))
    assert find_refused_part(error, asked) is None
    error.upstream = UpstreamAnswer(400, "", message)
    assert find_refused_part(error, asked) == part
    error.upstream = UpstreamAnswer(503, "", message)
    assert find_refused_part(error, asked) is None
