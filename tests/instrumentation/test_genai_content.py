"""What is said, as the conventions for GenAI write it."""

from ai_agent_service.core.messages import (
    AudioPart,
    FilePart,
    ImagePart,
    Message,
    TextPart,
    ToolCall,
    ToolSpec,
)
from ai_agent_service.instrumentation.genai_content import (
    build_input_messages,
    build_output_messages,
    build_tool_definitions,
)


def test_each_part_of_a_message_has_its_form_and_data_is_left_out() -> None:
    content = (
        TextPart("Look."),
        ImagePart("https://example.com/a.png"),
        ImagePart("data:image/png;base64,QUJD"),
        AudioPart("QUJD", "wav"),
        FilePart(file_data="data:text/plain;base64,QUJD", filename="a.txt"),
    )
    [message] = build_input_messages([Message("user", content)])
    assert message == {
        "role": "user",
        "parts": [
            {"type": "text", "content": "Look."},
            {"type": "uri", "modality": "image", "uri": "https://example.com/a.png"},
            {"type": "image"},
            {"type": "audio"},
            {"type": "file", "name": "a.txt"},
        ],
    }


def test_calls_have_their_arguments_as_an_object_where_they_are_one() -> None:
    calls = (ToolCall("call_1", "add", '{"a": 1}'), ToolCall("call_2", "add", "{broken"))
    [message] = build_input_messages([Message("assistant", "", calls)])
    assert message["parts"] == [
        {"type": "tool_call", "id": "call_1", "name": "add", "arguments": {"a": 1}},
        {"type": "tool_call", "id": "call_2", "name": "add", "arguments": "{broken"},
    ]
    [result] = build_input_messages([Message("tool", "2", tool_call_id="call_1")])
    assert result == {
        "role": "tool",
        "parts": [{"type": "tool_call_response", "id": "call_1", "response": "2"}],
    }


def test_an_answer_says_why_it_ended() -> None:
    assert build_output_messages("Hi.", (), "length") == [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": "Hi."}],
            "finish_reason": "length",
        }
    ]
    [asking] = build_output_messages("", (ToolCall("call_1", "add", "{}"),), "tool_calls")
    assert asking["finish_reason"] == "tool_call"


def test_tools_are_told_with_their_schemas() -> None:
    schema: dict[str, object] = {"type": "object", "properties": {}}
    assert build_tool_definitions([ToolSpec("add", "Adds.", schema)]) == [
        {"type": "function", "name": "add", "description": "Adds.", "parameters": schema}
    ]
