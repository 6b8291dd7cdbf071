"""Convert messages and tools to the form of span attributes in the conventions for GenAI.

https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/gen-ai-spans.md
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from ai_agent_service.core.events import FinishReason
from ai_agent_service.core.messages import (
    AudioPart,
    ContentPart,
    FilePart,
    ImagePart,
    Message,
    TextPart,
    ToolCall,
    ToolSpec,
)


def build_input_messages(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Return `gen_ai.input.messages`, without the data of images and files."""
    return [{"role": message.role, "parts": _build_parts(message)} for message in messages]


def build_output_messages(
    text: str, calls: Iterable[ToolCall], reason: FinishReason
) -> list[dict[str, Any]]:
    """Return `gen_ai.output.messages`."""
    parts = _build_parts(Message(role="assistant", content=text, tool_calls=tuple(calls)))
    return [
        {
            "role": "assistant",
            "parts": parts,
            "finish_reason": "tool_call" if reason == "tool_calls" else reason,
        }
    ]


def build_tool_definitions(tools: Iterable[ToolSpec]) -> list[dict[str, Any]]:
    """Return `gen_ai.tool.definitions`."""
    return [
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
        }
        for tool in tools
    ]


def _build_parts(message: Message) -> list[dict[str, Any]]:
    if message.role == "tool":
        return [
            {"type": "tool_call_response", "id": message.tool_call_id, "response": message.text}
        ]
    content = (TextPart(message.content),) if isinstance(message.content, str) else message.content
    parts = [_build_part(part) for part in content if not isinstance(part, TextPart) or part.text]
    calls = (
        {
            "type": "tool_call",
            "id": call.id,
            "name": call.name,
            "arguments": _decode_arguments(call.arguments),
        }
        for call in message.tool_calls
    )
    return [*parts, *calls]


def _build_part(part: ContentPart) -> dict[str, Any]:
    match part:
        case TextPart(text=text):
            return {"type": "text", "content": text}
        case ImagePart(url=url) if not url.startswith("data:"):
            return {"type": "uri", "modality": "image", "uri": url}
        case ImagePart():
            return {"type": "image"}
        case AudioPart():
            return {"type": "audio"}
        case FilePart(filename=name):
            return {"type": "file", "name": name}


def _decode_arguments(arguments: str) -> object:
    try:
        return msgspec.json.decode(arguments)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return arguments
