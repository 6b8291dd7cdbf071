"""POST /v1/chat/completions: an agent's run as an OpenAI chat completion, streamed or not."""

import time
from functools import partial

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.api.http.access import ChatCaller, RunRoute
from ai_agent_service.api.http.body import (
    get_limiter,
    get_request_id,
    get_service,
    read_json,
)
from ai_agent_service.api.http.idempotency import IDEMPOTENCY_HEADER, make_idempotent
from ai_agent_service.api.http.openapi import describe_route
from ai_agent_service.api.http.run_response import (
    CollectedRun,
    RunResponse,
    StreamedRun,
)
from ai_agent_service.api.http.session import (
    choose_history,
    drop_session,
    find_task,
    is_from_open_webui,
    read_session,
)
from ai_agent_service.api.openai.chat_request import parse_turn
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
from ai_agent_service.runs.record import RunRecord

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
    body, asked = await read_json(request, _decoder)
    agent = service.find_agent(asked.model, caller)
    turn = read_session(parse_turn(asked), request, asked.metadata)
    is_open_webui = is_from_open_webui(request) or caller.key.client == "open_webui"
    task = find_task(request) or (
        None if turn.history else detect_task(turn.messages, is_open_webui=is_open_webui)
    )
    if task is not None:
        agent, turn = service.build_task_agent(agent, task), drop_session(turn)
    else:
        turn = choose_history(turn, agent)
    run = service.create_run(
        agent,
        turn,
        caller,
        user=asked.user,
        request_id=get_request_id(request),
        task=task,
        limiter=get_limiter(request),
    )
    fingerprint = build_fingerprint(agent)
    if asked.stream:
        options = asked.stream_options
        frames = (OpenWebUIFrames if is_open_webui else ChunkFrames)(
            agent.agent_id,
            include_usage=bool(options and options.include_usage),
            fingerprint=fingerprint,
        )
        response: RunResponse = StreamedRun(run, frames)
    else:
        render = partial(render_completion, agent.agent_id, fingerprint=fingerprint)
        response = CollectedRun(run, render)
    return make_idempotent(request, body, response)


def build_fingerprint(agent: BaseAgent) -> str | msgspec.UnsetType:
    """The agent's version as OpenAI's clients know one."""
    return f"fp_{agent.version}" if agent.version else msgspec.UNSET


def render_completion(
    model: str,
    record: RunRecord,
    finished: RunFinished,
    fingerprint: str | msgspec.UnsetType = msgspec.UNSET,
) -> bytes:
    """A collected run as a chat completion."""
    text, reasoning, refusal = record.text, record.reasoning, record.refusal
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
