"""POST /v1/chat/completions: an agent's run as an OpenAI chat completion, streamed or not."""

import time

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.api.http.access import Chatting, RunRoute
from ai_agent_service.api.http.body import access_in, body_of, decoded, request_id_of, service_in
from ai_agent_service.api.http.idempotency import HEADER, once
from ai_agent_service.api.http.openapi import documented
from ai_agent_service.api.http.run_response import Collected, CollectedRun, RunResponse, StreamedRun
from ai_agent_service.api.http.session import Asking, asking_of
from ai_agent_service.api.openai.chat_request import turn_of, with_session
from ai_agent_service.api.openai.chat_schema import ChatCompletion, ChatCompletionRequest, Choice, ResponseMessage, ResponseToolCall
from ai_agent_service.api.openai.chat_stream import ChunkFrames, called, usage_of
from ai_agent_service.api.openai.open_webui_stream import OpenWebUIFrames
from ai_agent_service.api.openai.open_webui_tasks import shaped_task
from ai_agent_service.core.events import RunFinished
from ai_agent_service.core.ids import new_id
from ai_agent_service.runs.admission import CountedRun

router = APIRouter(tags=["OpenAI"], route_class=RunRoute)

_decoder = msgspec.json.Decoder(ChatCompletionRequest)
_encoder = msgspec.json.Encoder()


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
