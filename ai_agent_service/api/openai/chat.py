"""POST /v1/chat/completions: an agent's run as an OpenAI chat completion, streamed or not."""

import re
import time
from collections.abc import Sequence

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ai_agent_service.agents.base import BaseAgent, Turn
from ai_agent_service.api.http.access import Chatting, RunRoute
from ai_agent_service.api.http.body import access_in, body_of, decoded, request_id_of, service_in
from ai_agent_service.api.http.idempotency import HEADER, once
from ai_agent_service.api.http.json_limits import checked_values
from ai_agent_service.api.http.openapi import documented
from ai_agent_service.api.http.run_response import Collected, CollectedRun, RunResponse, StreamedRun
from ai_agent_service.api.http.session import Asking, asking_of
from ai_agent_service.api.http.url_safety import checked_file_data, checked_image_url
from ai_agent_service.api.openai.chat_schema import (
    FREE_FORM,
    AudioContent,
    ChatCompletion,
    ChatCompletionRequest,
    ChatMessage,
    Choice,
    ChosenTool,
    FileContent,
    ImageContent,
    OfferedFunction,
    Part,
    RefusalContent,
    ResponseMessage,
    ResponseToolCall,
    TextContent,
    settings_of,
)
from ai_agent_service.api.openai.chat_stream import ChunkFrames, called, usage_of
from ai_agent_service.api.openai.open_webui_stream import OpenWebUIFrames
from ai_agent_service.api.openai.open_webui_tasks import shaped_task
from ai_agent_service.core.errors import InvalidRequest
from ai_agent_service.core.events import RunFinished
from ai_agent_service.core.ids import new_id
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
    ToolSpec,
)
from ai_agent_service.memory.base import History
from ai_agent_service.runs.admission import CountedRun

router = APIRouter(tags=["OpenAI"], route_class=RunRoute)

_decoder = msgspec.json.Decoder(ChatCompletionRequest)
_encoder = msgspec.json.Encoder()
_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
MAX_NAME = 255
MAX_PARTS = 20_000
_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@router.post(
    "/v1/chat/completions",
    summary="Ask an agent",
    openapi_extra=documented(ChatCompletionRequest, ChatCompletion, stream="chunks of chat completions, ended by `[DONE]`", header=HEADER),
)
async def create_chat_completion(request: Request, caller: Chatting) -> Response:
    """Runs the agent named in `model` and answers with its chat completion; with `stream`, chunk by chunk."""
    service = service_in(request)
    body = await body_of(request, service.settings.max_request_bytes)
    asked = decoded(body, _decoder)
    agent = service.agent(asked.model, caller)
    turn = turn_of(asked)
    asking = asking_of(request, asked.metadata)
    is_open_webui = asking.is_open_webui or caller.key.client == "open_webui"
    task = asking.task or (None if asking.history else shaped_task(turn.messages, is_open_webui=is_open_webui))
    if task is not None:
        agent = service.background(agent, task)
        asking = Asking(idempotency_key=asking.idempotency_key)
    else:
        turn = with_session(turn, asking, agent)
    context = service.context(
        agent.agent_id,
        caller,
        user=asked.user,
        session=asking.session,
        request_id=request_id_of(request),
        task=task,
        agent_version=agent.version,
    )
    run = CountedRun(service, access_in(request).limiter, agent, turn, context, caller)
    if asked.stream:
        options = asked.stream_options
        frames = (OpenWebUIFrames if is_open_webui else ChunkFrames)(
            agent.agent_id, include_usage=bool(options and options.include_usage), fingerprint=fingerprint_of(agent)
        )
        response: RunResponse = StreamedRun(run, frames)
    else:
        response = CollectedRun(run, lambda collected, finished: completion(agent.agent_id, collected, finished, fingerprint_of(agent)))
    return once(request, asking.idempotency_key, context, body, response)


def with_session(turn: Turn, asking: Asking, agent: BaseAgent, *, default: History = "client") -> Turn:
    """`turn` with what the request says of its session; the history is the client's for an agent that has no memory."""
    if agent.definition.memory is None:
        if asking.history == "server":
            raise InvalidRequest("This agent has no memory: send the whole conversation.", param="metadata.session_history")
        return turn
    history = (asking.history or default) if asking.session is not None else "client"
    return msgspec.structs.replace(turn, history=history, is_retry=asking.is_retry, message_id=asking.message_id)


def turn_of(asked: ChatCompletionRequest) -> Turn:
    """The request in the words of the agents; raises InvalidRequest for what agents cannot do."""
    if asked.n not in (None, 1):
        raise InvalidRequest("Agents give one choice: n must be 1.", param="n", code="unsupported_value")
    if asked.logprobs:
        raise InvalidRequest("Agents do not give log probabilities.", param="logprobs", code="unsupported_parameter")
    if asked.modalities and asked.modalities != ["text"]:
        raise InvalidRequest("Agents answer with text only.", param="modalities", code="unsupported_value")
    if asked.functions:
        raise InvalidRequest("functions is no longer supported: send tools.", param="functions", code="unsupported_parameter")
    checked_name(asked.user or "", "user")
    for name in FREE_FORM:
        checked_values(getattr(asked, name), name)
    settings = settings_of(asked)
    tools = tuple(_tool(tool.function, number) for number, tool in enumerate(asked.tools or ()))
    choice = NamedTool(asked.tool_choice.function.name) if isinstance(asked.tool_choice, ChosenTool) else asked.tool_choice
    return Turn(messages=messages_of(asked.messages), tools=tools, tool_choice=choice, settings=settings)


def messages_of(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """A request's messages; raises InvalidRequest."""
    if sum(len(message.content) for message in messages if isinstance(message.content, list)) > MAX_PARTS:
        raise InvalidRequest(f"The messages have more than {MAX_PARTS} parts together.", param="messages")
    return tuple([_message(message, number) for number, message in enumerate(messages)])


def _message(message: ChatMessage, place: int) -> Message:
    """The message at this place of a request."""
    role = _ROLES.get(message.role)
    if role is None:
        raise InvalidRequest("The role is one of system, developer, user, assistant and tool.", param=f"messages[{place}].role")
    if role == "tool" and not message.tool_call_id:
        problem = "A message with the role 'tool' needs the tool_call_id it answers."
        raise InvalidRequest(problem, param=f"messages[{place}].tool_call_id")
    given = message.content
    content: str | tuple[ContentPart, ...]
    if isinstance(given, list):
        content = tuple(_part(part, f"messages[{place}].content[{number}]") for number, part in enumerate(given))
    else:
        content = given or message.refusal or ""
    if not message.tool_calls and role != "tool":
        return Message(role, content)
    calls = tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ())
    answered = message.tool_call_id if role == "tool" else None
    return Message(role, content, calls if role == "assistant" else (), answered)


def fingerprint_of(agent: BaseAgent) -> str | msgspec.UnsetType:
    """The agent's version as OpenAI's clients know one."""
    return f"fp_{agent.version}" if agent.version else msgspec.UNSET


def completion(model: str, collected: Collected, finished: RunFinished, fingerprint: str | msgspec.UnsetType = msgspec.UNSET) -> bytes:
    """A collected run as a chat completion."""
    text, reasoning, refusal = ("".join(pieces) for pieces in (collected.text, collected.reasoning, collected.refusal))
    message = ResponseMessage(text or (None if finished.tool_calls or refusal else ""), refusal=refusal or None)
    if reasoning:
        message.reasoning_content = reasoning
    if finished.tool_calls:
        message.tool_calls = [ResponseToolCall(call.id, called(call)) for call in finished.tool_calls]
    answer = ChatCompletion(new_id("chatcmpl-"), int(time.time()), model, [Choice(message, finished.reason)], fingerprint)
    if finished.usage is not None:
        answer.usage = usage_of(finished.usage)
    return _encoder.encode(answer)


def _tool(function: OfferedFunction, number: int) -> ToolSpec:
    if not _TOOL_NAME.fullmatch(function.name):
        raise InvalidRequest("A tool's name has letters, digits, _ and - only, 64 at most.", param=f"tools[{number}].function.name")
    parameters = checked_values(function.parameters, f"tools[{number}].function.parameters") or {"type": "object", "properties": {}}
    return ToolSpec(function.name, function.description or "", parameters, function.strict)


def _part(part: Part, place: str) -> ContentPart:
    match part:
        case TextContent(text=text):
            return TextPart(text)
        case RefusalContent(refusal=refusal):
            return TextPart(refusal)
        case ImageContent(image_url=image):
            return ImagePart(checked_image_url(image.url, f"{place}.image_url.url"), image.detail)
        case AudioContent(input_audio=audio):
            return AudioPart(checked_file_data(audio.data, f"{place}.input_audio.data"), audio.format)
        case FileContent(file=file):
            for name, value in (("file_id", file.file_id), ("file_data", file.file_data)):
                checked_file_data(value or "", f"{place}.file.{name}")
            return FilePart(file.file_id, file.file_data, file.filename)


def checked_name(text: str, place: str) -> str:
    """`text`, if it may be the name of a user: 255 characters at most, none of them NUL; `place` names it in the InvalidRequest."""
    if len(text) > MAX_NAME:
        raise InvalidRequest(f"This is longer than {MAX_NAME} characters.", param=place)
    if "\x00" in text:
        raise InvalidRequest("Text cannot contain the character NUL.", param=place)
    return text
