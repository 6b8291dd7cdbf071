"""POST /v1/chat/completions: an agent's run as an OpenAI chat completion, streamed or not."""

import time

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.api.http.access import ChatCaller, RunRoute
from ai_agent_service.api.http.body import (
    decode_body,
    get_access,
    get_request_id,
    get_service,
    read_body,
)
from ai_agent_service.api.http.idempotency import IDEMPOTENCY_HEADER, make_idempotent
from ai_agent_service.api.http.openapi import describe_route
from ai_agent_service.api.http.run_response import (
    CollectedEvents,
    CollectedRun,
    RunResponse,
    StreamedRun,
)
from ai_agent_service.api.http.session import SessionRequest, parse_session_request
from ai_agent_service.api.openai.chat_request import apply_session, parse_turn
from ai_agent_service.api.openai.chat_schema import (
    ChatCompletion,
    ChatCompletionRequest,
    Choice,
    ResponseMessage,
    ResponseToolCall,
)
from ai_agent_service.api.openai.chat_stream import (
    ChunkFrames,
    to_called_function,
    to_completion_usage,
)
from ai_agent_service.api.openai.open_webui_stream import OpenWebUIFrames
from ai_agent_service.api.openai.open_webui_tasks import detect_task
from ai_agent_service.core.events import RunFinished
from ai_agent_service.core.ids import generate_id
from ai_agent_service.runs.admission import CountedRun

router = APIRouter(tags=["OpenAI"], route_class=RunRoute)

_decoder = msgspec.json.Decoder(ChatCompletionRequest)
_encoder = msgspec.json.Encoder()


@router.post(
    "/v1/chat/completions",
    summary="Ask an agent",
    openapi_extra=describe_route(
        ChatCompletionRequest,
        ChatCompletion,
        stream="chunks of chat completions, ended by `[DONE]`",
        header=IDEMPOTENCY_HEADER,
    ),
)
async def create_chat_completion(request: Request, caller: ChatCaller) -> Response:
    """Runs the agent named in `model` and answers with its chat completion; with `stream`, chunk by
    chunk."""
    service = get_service(request)
    body = await read_body(request, service.settings.max_request_bytes)
    asked = decode_body(body, _decoder)
    agent = service.find_agent(asked.model, caller)
    turn = parse_turn(asked)
    asking = parse_session_request(request, asked.metadata)
    is_open_webui = asking.is_open_webui or caller.key.client == "open_webui"
    task = asking.task or (
        None if asking.history else detect_task(turn.messages, is_open_webui=is_open_webui)
    )
    if task is not None:
        agent = service.build_task_agent(agent, task)
        asking = SessionRequest(idempotency_key=asking.idempotency_key)
    else:
        turn = apply_session(turn, asking, agent)
    context = service.create_context(
        agent.agent_id,
        caller,
        user=asked.user,
        session=asking.session,
        request_id=get_request_id(request),
        task=task,
        agent_version=agent.version,
    )
    run = CountedRun(service, get_access(request).limiter, agent, turn, context, caller)
    if asked.stream:
        options = asked.stream_options
        frames = (OpenWebUIFrames if is_open_webui else ChunkFrames)(
            agent.agent_id,
            include_usage=bool(options and options.include_usage),
            fingerprint=build_fingerprint(agent),
        )
        response: RunResponse = StreamedRun(run, frames)
    else:
        response = CollectedRun(
            run,
            lambda collected, finished: render_completion(
                agent.agent_id, collected, finished, build_fingerprint(agent)
            ),
        )
    return make_idempotent(request, asking.idempotency_key, context, body, response)


def build_fingerprint(agent: BaseAgent) -> str | msgspec.UnsetType:
    """The agent's version as OpenAI's clients know one."""
    return f"fp_{agent.version}" if agent.version else msgspec.UNSET


def render_completion(
    model: str,
    collected: CollectedEvents,
    finished: RunFinished,
    fingerprint: str | msgspec.UnsetType = msgspec.UNSET,
) -> bytes:
    """A collected run as a chat completion."""
    text, reasoning, refusal = (
        "".join(pieces) for pieces in (collected.text, collected.reasoning, collected.refusal)
    )
    message = ResponseMessage(
        text or (None if finished.tool_calls or refusal else ""), refusal=refusal or None
    )
    if reasoning:
        message.reasoning_content = reasoning
    if finished.tool_calls:
        message.tool_calls = [
            ResponseToolCall(call.id, to_called_function(call)) for call in finished.tool_calls
        ]
    answer = ChatCompletion(
        generate_id("chatcmpl-"),
        int(time.time()),
        model,
        [Choice(message, finished.reason)],
        fingerprint,
    )
    if finished.usage is not None:
        answer.usage = to_completion_usage(finished.usage)
    return _encoder.encode(answer)
