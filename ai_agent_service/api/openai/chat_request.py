"""From a chat completion request to a turn."""

import re
from collections.abc import Sequence
from typing import Any

from ai_agent_service.api.http.json_limits import validate_values
from ai_agent_service.api.http.url_safety import validate_file_data, validate_image_url
from ai_agent_service.api.openai.chat_schema import (
    AudioContent,
    CallersSettings,
    ChatCompletionRequest,
    ChatMessage,
    ChosenTool,
    FileContent,
    ImageContent,
    ModelSettings,
    OfferedTool,
    Part,
    RefusalContent,
    TextContent,
    ToolMode,
)
from ai_agent_service.core.bounds import MAX_MESSAGE_PARTS
from ai_agent_service.core.errors import InvalidRequestError
from ai_agent_service.core.messages import (
    AudioPart,
    ContentPart,
    FilePart,
    ImagePart,
    Message,
    NamedTool,
    Role,
    TextPart,
    ToolCall,
    ToolChoice,
    ToolSpec,
)
from ai_agent_service.core.turn import Turn

FREE_FORM = frozenset({"response_format", "prediction", "metadata"})
"""Fields of a request whose values may be of any form."""

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}

MAX_NAME = 255


_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def parse_turn(asked: ChatCompletionRequest) -> Turn:
    """The request in the words of the agents; raises InvalidRequestError for what agents cannot
    do."""
    if asked.n not in (None, 1):
        raise InvalidRequestError(
            "Agents give one choice: n must be 1.", param="n", code="unsupported_value"
        )
    if asked.logprobs:
        raise InvalidRequestError(
            "Agents do not give log probabilities.", param="logprobs", code="unsupported_parameter"
        )
    if asked.modalities and asked.modalities != ["text"]:
        raise InvalidRequestError(
            "Agents answer with text only.", param="modalities", code="unsupported_value"
        )
    if asked.functions:
        raise InvalidRequestError(
            "functions is no longer supported: send tools.",
            param="functions",
            code="unsupported_parameter",
        )
    validate_name(asked.user or "", "user")
    for name in FREE_FORM:
        validate_values(getattr(asked, name), name)
    settings = collect_settings(asked)
    tools = tuple(_parse_tool(tool, number) for number, tool in enumerate(asked.tools or ()))
    tools, choice = _parse_tool_choice(asked.tool_choice, tools)
    return Turn(
        messages=parse_messages(asked.messages), tools=tools, tool_choice=choice, settings=settings
    )


def parse_messages(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """A request's messages; raises InvalidRequestError."""
    if (
        sum(len(message.content) for message in messages if isinstance(message.content, list))
        > MAX_MESSAGE_PARTS
    ):
        raise InvalidRequestError(
            f"The messages have more than {MAX_MESSAGE_PARTS} parts together.", param="messages"
        )
    return tuple([_parse_message(message, number) for number, message in enumerate(messages)])


def _parse_message(message: ChatMessage, place: int) -> Message:
    """The message at this place of a request."""
    role = _ROLES.get(message.role)
    if role is None:
        raise InvalidRequestError(
            "The role is one of system, developer, user, assistant and tool.",
            param=f"messages[{place}].role",
        )
    if role == "tool" and not message.tool_call_id:
        problem = "A message with the role 'tool' needs the tool_call_id it answers."
        raise InvalidRequestError(problem, param=f"messages[{place}].tool_call_id")
    given = message.content
    content: str | tuple[ContentPart, ...]
    if isinstance(given, list):
        content = tuple(
            _parse_part(part, f"messages[{place}].content[{number}]")
            for number, part in enumerate(given)
        )
    else:
        content = given or message.refusal or ""
    if not message.tool_calls and role != "tool":
        return Message(role, content)
    calls = tuple(
        ToolCall(call.id, call.function.name, call.function.arguments)
        for call in message.tool_calls or ()
    )
    answered = message.tool_call_id if role == "tool" else None
    return Message(role, content, calls if role == "assistant" else (), answered)


def _parse_tool_choice(
    asked: ChosenTool | ToolMode | None, tools: tuple[ToolSpec, ...]
) -> tuple[tuple[ToolSpec, ...], ToolChoice | None]:
    """Return those of the client's `tools` that may be called, and the choice among them."""
    if not isinstance(asked, ChosenTool):
        return tools, asked
    if asked.type == "function" and asked.function is not None:
        return tools, NamedTool(asked.function.name)
    if asked.type != "allowed_tools" or asked.allowed_tools is None:
        raise InvalidRequestError(
            "tool_choice is none, auto or required, or an object of the type 'function' or"
            " 'allowed_tools' with the field of that name.",
            param="tool_choice",
            code="unsupported_value",
        )
    allowed = asked.allowed_tools
    known = {spec.name for spec in tools}
    names = [tool.function.name if tool.function else None for tool in allowed.tools]
    if allowed.mode == "required" and not names:
        raise InvalidRequestError(
            "The mode 'required' needs at least one tool.",
            param="tool_choice.allowed_tools.tools",
        )
    for number, name in enumerate(names):
        if name not in known:
            raise InvalidRequestError(
                "allowed_tools names a function that is not in tools.",
                param=f"tool_choice.allowed_tools.tools[{number}]",
            )
    return tuple(spec for spec in tools if spec.name in names), allowed.mode


def _parse_tool(tool: OfferedTool, number: int) -> ToolSpec:
    function = tool.function
    if tool.type != "function":
        raise InvalidRequestError(
            "Tools of the type 'custom' are not supported: send tools of the type 'function'.",
            param=f"tools[{number}].type",
            code="unsupported_value",
        )
    if function is None:
        raise InvalidRequestError("A tool needs its function.", param=f"tools[{number}].function")
    if not _TOOL_NAME.fullmatch(function.name):
        raise InvalidRequestError(
            "A tool's name has letters, digits, _ and - only, 64 at most.",
            param=f"tools[{number}].function.name",
        )
    parameters = validate_values(function.parameters, f"tools[{number}].function.parameters") or {
        "type": "object",
        "properties": {},
    }
    return ToolSpec(function.name, function.description or "", parameters, function.strict)


def _parse_part(part: Part, place: str) -> ContentPart:
    match part:
        case TextContent(text=text):
            return TextPart(text)
        case RefusalContent(refusal=refusal):
            return TextPart(refusal)
        case ImageContent(image_url=image):
            return ImagePart(validate_image_url(image.url, f"{place}.image_url.url"), image.detail)
        case AudioContent(input_audio=audio):
            return AudioPart(
                validate_file_data(audio.data, f"{place}.input_audio.data"), audio.format
            )
        case FileContent(file=file):
            for name, value in (("file_id", file.file_id), ("file_data", file.file_data)):
                validate_file_data(value or "", f"{place}.file.{name}")
            return FilePart(file.file_id, file.file_data, file.filename)


def validate_name(text: str, place: str) -> str:
    """`text`, if it may be the name of a user: 255 characters at most, none of them NUL; `place`
    names it in the InvalidRequestError."""
    if len(text) > MAX_NAME:
        raise InvalidRequestError(f"This is longer than {MAX_NAME} characters.", param=place)
    if "\x00" in text:
        raise InvalidRequestError("Text cannot contain the character NUL.", param=place)
    return text


def collect_settings(given: ModelSettings) -> dict[str, Any]:
    """What is set, for the provider."""
    names = (
        CallersSettings if isinstance(given, CallersSettings) else ModelSettings
    ).__struct_fields__
    return {name: value for name in names if (value := getattr(given, name)) is not None}
