"""The agents API: what agents there are, and a chat that also shows the tools at work."""

import asyncio
from datetime import UTC, datetime
from functools import partial

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.api.agents.events import EventFrames
from ai_agent_service.api.agents.schema import (
    AgentChatRequest,
    AgentChatResponse,
    AgentView,
    ToolRun,
)
from ai_agent_service.api.http.access import Caller, ChatCaller, resolve_user
from ai_agent_service.api.http.body import (
    ServiceDependency,
    get_limiter,
    get_request_id,
    get_service,
    read_json,
)
from ai_agent_service.api.http.idempotency import IDEMPOTENCY_HEADER, make_idempotent
from ai_agent_service.api.http.json_limits import validate_values
from ai_agent_service.api.http.openapi import describe_route
from ai_agent_service.api.http.run_response import (
    CollectedRun,
    RunResponse,
    StreamedRun,
)
from ai_agent_service.api.http.session import choose_history, read_session
from ai_agent_service.api.openai.chat_request import (
    FREE_FORM,
    collect_settings,
    parse_messages,
    validate_name,
)
from ai_agent_service.api.openai.chat_schema import CallersSettings
from ai_agent_service.api.openai.chat_stream import to_completion_usage
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import InvalidRequestError, UpstreamError
from ai_agent_service.core.events import (
    RunFinished,
)
from ai_agent_service.core.messages import Message
from ai_agent_service.core.turn import Turn
from ai_agent_service.runs.record import RunRecord
from ai_agent_service.runtime.service import Service

_decoder = msgspec.json.Decoder(AgentChatRequest)

router = APIRouter(tags=["Agents"])

_encoder = msgspec.json.Encoder()


@router.get(
    "/agents", summary="List the agents", openapi_extra=describe_route(None, list[AgentView])
)
async def list_agents(service: ServiceDependency, caller: Caller) -> Response:
    """The agents that the key is for, in the order of agent_config.json."""
    views = await asyncio.gather(
        *(_build_view(service, agent) for agent in service.list_agents(caller))
    )
    return Response(_encoder.encode(views), media_type="application/json")


@router.get(
    "/agents/{agent_id}", summary="Show an agent", openapi_extra=describe_route(None, AgentView)
)
async def show_agent(agent_id: str, service: ServiceDependency, caller: Caller) -> Response:
    """The agent with this id."""
    return Response(
        _encoder.encode(await _build_view(service, service.find_visible_agent(agent_id, caller))),
        media_type="application/json",
    )


@router.post(
    "/agents/{agent_id}/chat",
    summary="Chat with an agent",
    openapi_extra=describe_route(
        AgentChatRequest,
        AgentChatResponse,
        stream="the run's events as JSON objects with a `type`, ended by `[DONE]`",
        one_of=("message", "messages"),
        header=IDEMPOTENCY_HEADER,
    ),
)
async def chat(agent_id: str, request: Request, caller: ChatCaller) -> Response:
    """Runs the agent on the message and answers with its text and the tools it used; with `stream`,
    event by event."""
    service = get_service(request)
    agent = service.find_agent(agent_id, caller)
    body, asked = await read_json(request, _decoder)
    turn = read_session(Turn(messages=()), request, session_id=asked.session_id)
    turn = _parse_turn(asked, agent, turn)
    turn = choose_history(turn, agent, default="client" if asked.message is None else "server")
    run = service.create_run(
        agent,
        turn,
        caller,
        user=resolve_user(caller, asked.user_id),
        request_id=get_request_id(request),
        limiter=get_limiter(request),
    )
    if asked.stream:
        response: RunResponse = StreamedRun(run, EventFrames(run.context))
    else:
        model = turn.model or await _find_model(agent) or ""
        tools = len(agent.parts.toolset.specs)
        response = CollectedRun(run, partial(_render_answer, run.context, model, tools))
    return make_idempotent(request, body, response)


def _parse_turn(asked: AgentChatRequest, agent: BaseAgent, session: Turn) -> Turn:
    """Return the turn of `session` with what is asked; raises InvalidRequestError."""
    validate_name(asked.user_id or "", "user_id")
    if (asked.message is None) == (asked.messages is None):
        raise InvalidRequestError(
            "Send either message, a text, or messages, a conversation.", param="message"
        )
    settings = collect_settings(asked.model_settings or CallersSettings())
    for name in FREE_FORM & settings.keys():
        validate_values(settings[name], f"model_settings.{name}")
    allowed = agent.parts.provider.model_list
    if asked.model is not None and asked.model not in (*allowed, agent.definition.model):
        names = f": it may be one of {', '.join(allowed)}" if allowed else " for this agent"
        raise InvalidRequestError(
            f"The model cannot be chosen freely{names}.", param="model", code="model_not_allowed"
        )
    if asked.message is not None:
        messages: tuple[Message, ...] = (Message("user", asked.message),)
    else:
        messages = parse_messages(asked.messages or ())
    return msgspec.structs.replace(session, messages=messages, settings=settings, model=asked.model)


def _render_answer(
    context: RunContext, model: str, tools: int, record: RunRecord, finished: RunFinished
) -> bytes:
    results = {result.call_id: result for result in record.results}
    runs = [
        ToolRun(
            call.id,
            call.name,
            call.arguments,
            results[call.id].content,
            results[call.id].is_error,
            round(results[call.id].seconds, 3),
        )
        for call in record.calls
    ]
    answer = AgentChatResponse(
        response=record.text or record.refusal,
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
        reasoning=record.reasoning or None,
    )
    if finished.usage is not None:
        answer.usage = to_completion_usage(finished.usage)
    return _encoder.encode(answer)


async def _find_model(agent: BaseAgent) -> str | None:
    """The agent's model, or None where its provider cannot name one."""
    try:
        return await agent.model()
    except UpstreamError:
        return None


async def _build_view(service: Service, agent: BaseAgent) -> AgentView:
    definition, provider = agent.definition, agent.parts.provider
    problem = await agent.find_problem()
    model = definition.model or (await agent.model() if problem is None else None)
    toolset = agent.parts.toolset
    return AgentView(
        agent_id=agent.agent_id,
        description=definition.description,
        type=definition.type,
        provider=provider.name,
        model=model or None,
        api=service.describe_api(agent, model or ""),
        tools_available=[spec.name for spec in toolset.specs],
        mcp_servers=list(definition.allowed_mcp_servers),
        resources=list(definition.resources),
        max_steps=definition.max_steps,
        available=problem is None,
        problem=problem,
        unavailable=list(toolset.unavailable),
        version=agent.version,
    )
