"""The agents API: what agents there are, and a chat that also shows the tools at work."""

import asyncio
from datetime import UTC, datetime

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ai_agent_service.agents.base import BaseAgent, Turn
from ai_agent_service.api.agents.events import EventFrames
from ai_agent_service.api.agents.schema import AgentChatRequest, AgentChatResponse, AgentView, ToolRun
from ai_agent_service.api.http.access import Caller, Chatting, named_user
from ai_agent_service.api.http.body import ServiceDependency, access_in, body_of, decoded, request_id_of, service_in
from ai_agent_service.api.http.idempotency import HEADER, once
from ai_agent_service.api.http.json_limits import checked_values
from ai_agent_service.api.http.openapi import documented
from ai_agent_service.api.http.run_response import Collected, CollectedRun, RunResponse, StreamedRun
from ai_agent_service.api.http.session import asking_of
from ai_agent_service.api.openai.chat_request import FREE_FORM, checked_name, messages_of, settings_of, with_session
from ai_agent_service.api.openai.chat_schema import CallersSettings
from ai_agent_service.api.openai.chat_stream import usage_of
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import InvalidRequest, UpstreamError
from ai_agent_service.core.events import (
    RunFinished,
)
from ai_agent_service.core.messages import Message
from ai_agent_service.runs.admission import CountedRun

_decoder = msgspec.json.Decoder(AgentChatRequest)

router = APIRouter(tags=["Agents"])

_encoder = msgspec.json.Encoder()


@router.get("/agents", summary="List the agents", openapi_extra=documented(None, list[AgentView]))
async def list_agents(service: ServiceDependency, caller: Caller) -> Response:
    """The agents that the key is for, in the order of agent_config.json."""
    views = await asyncio.gather(*(_view(agent) for agent in service.agents_of(caller)))
    return Response(_encoder.encode(views), media_type="application/json")


@router.get("/agents/{agent_id}", summary="Show an agent", openapi_extra=documented(None, AgentView))
async def show_agent(agent_id: str, service: ServiceDependency, caller: Caller) -> Response:
    """The agent with this id."""
    return Response(_encoder.encode(await _view(service.shown_agent(agent_id, caller))), media_type="application/json")


@router.post(
    "/agents/{agent_id}/chat",
    summary="Chat with an agent",
    openapi_extra=documented(
        AgentChatRequest,
        AgentChatResponse,
        stream="the run's events as JSON objects with a `type`, ended by `[DONE]`",
        one_of=("message", "messages"),
        header=HEADER,
    ),
)
async def chat(agent_id: str, request: Request, caller: Chatting) -> Response:
    """Runs the agent on the message and answers with its text and the tools it used; with `stream`, event by event."""
    service = service_in(request)
    agent = service.agent(agent_id, caller)
    body = await body_of(request, service.settings.max_request_bytes)
    asked = decoded(body, _decoder)
    asking = asking_of(request, session_id=asked.session_id)
    turn = with_session(_turn(asked, agent), asking, agent, default="server" if asked.message is not None else "client")
    user = named_user(caller, asked.user_id)
    context = service.context(
        agent_id, caller, user=user, session=asking.session, request_id=request_id_of(request), agent_version=agent.version
    )
    run = CountedRun(service, access_in(request).limiter, agent, turn, context, caller)
    if asked.stream:
        response: RunResponse = StreamedRun(run, EventFrames(context))
    else:
        model = turn.model or await _model(agent) or ""
        tools = len(agent.parts.toolset.specs)
        response = CollectedRun(run, lambda collected, finished: _answer(context, model, tools, collected, finished))
    return once(request, asking.idempotency_key, context, body, response)


def _turn(asked: AgentChatRequest, agent: BaseAgent) -> Turn:
    checked_name(asked.user_id or "", "user_id")
    if (asked.message is None) == (asked.messages is None):
        raise InvalidRequest("Send either message, a text, or messages, a conversation.", param="message")
    settings = settings_of(asked.model_settings or CallersSettings())
    for name in FREE_FORM & settings.keys():
        checked_values(settings[name], f"model_settings.{name}")
    allowed = agent.parts.provider.model_list
    if asked.model is not None and asked.model not in (*allowed, agent.definition.model):
        names = f": it may be one of {', '.join(allowed)}" if allowed else " for this agent"
        raise InvalidRequest(f"The model cannot be chosen freely{names}.", param="model", code="model_not_allowed")
    if asked.message is not None:
        messages: tuple[Message, ...] = (Message("user", asked.message),)
    else:
        messages = messages_of(asked.messages or ())
    return Turn(messages=messages, settings=settings, model=asked.model)


def _answer(context: RunContext, model: str, tools: int, collected: Collected, finished: RunFinished) -> bytes:
    results = {result.call_id: result for result in collected.results}
    runs = [
        ToolRun(call.id, call.name, call.arguments, results[call.id].content, results[call.id].is_error, round(results[call.id].seconds, 3))
        for call in collected.calls
    ]
    answer = AgentChatResponse(
        response="".join(collected.text or collected.refusal),
        agent_id=context.agent_id,
        user_id=context.user,
        session_id=context.session,
        run_id=context.run_id,
        timestamp=datetime.now(UTC),
        model_used=(finished.steps[-1].model if finished.steps else "") or model,
        finish_reason=finished.reason,
        tools_available=tools,
        tool_calls=runs,
        steps=len(finished.steps),
        reasoning="".join(collected.reasoning) or None,
    )
    if finished.usage is not None:
        answer.usage = usage_of(finished.usage)
    return _encoder.encode(answer)


async def _model(agent: BaseAgent) -> str | None:
    """The agent's model, or None where its provider cannot name one."""
    try:
        return await agent.model()
    except UpstreamError:
        return None


async def _view(agent: BaseAgent) -> AgentView:
    definition, provider = agent.definition, agent.parts.provider
    problem = await agent.problem()
    model = definition.model or (await agent.model() if problem is None else None)
    toolset = agent.parts.toolset
    return AgentView(
        agent_id=agent.agent_id,
        description=definition.description,
        type=definition.type,
        provider=provider.name,
        model=model or None,
        tools_available=[spec.name for spec in toolset.specs],
        mcp_servers=list(definition.allowed_mcp_servers),
        resources=list(definition.resources),
        max_steps=definition.max_steps,
        available=problem is None,
        problem=problem,
        unavailable=list(toolset.unavailable),
        version=agent.version,
    )
