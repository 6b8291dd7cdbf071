"""What is remembered of the calling user: listed, shown, exported, deleted."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import datetime
from typing import Any

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ai_agent_service.api.agents.schema import ToolRun
from ai_agent_service.api.http.access import MemoryDeleter, MemoryReader, resolve_user
from ai_agent_service.api.http.body import ServiceDependency
from ai_agent_service.api.http.idempotency import get_idempotency_cache
from ai_agent_service.api.http.openapi import describe_route
from ai_agent_service.api.openai.chat_request import MAX_NAME, validate_name
from ai_agent_service.api.openai.chat_schema import (
    AudioContent,
    CompletionUsage,
    FileContent,
    ImageContent,
    ImageUrl,
    InputAudio,
    InputFile,
    Part,
    TextContent,
)
from ai_agent_service.api.openai.chat_stream import to_completion_usage
from ai_agent_service.auth.principal import Principal
from ai_agent_service.core.context import ANONYMOUS
from ai_agent_service.core.errors import InvalidRequestError
from ai_agent_service.core.messages import (
    AudioPart,
    Content,
    ContentPart,
    FilePart,
    ImagePart,
    TextPart,
)
from ai_agent_service.memory.base import Conversation, ConversationInfo, Step, StoredMessage
from ai_agent_service.observability.audit import audit
from ai_agent_service.runtime.service import Service

_USER_QUERY: dict[str, tuple[str, dict[str, Any]]] = {
    "user_id": (
        (
            "The user whose conversations are meant; by default the one who asks, or those of"
            " callers who name none."
        ),
        {"type": "string", "maxLength": MAX_NAME},
    )
}


router = APIRouter(tags=["Memory"])

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
MAX_INLINE_MESSAGES = 100
"""Messages of a conversation that is encoded without a thread."""

_encoder = msgspec.json.Encoder()

_PAGE_QUERY: dict[str, tuple[str, dict[str, Any]]] = {
    "limit": (
        "How many at most.",
        {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
    ),
    "after": ("The `next` of the page before.", {"type": "string"}),
}


class ConversationPage(msgspec.Struct):
    """Sessions of the user with an agent, the one used last first; `next` goes on after them, as
    `after`."""

    data: list[ConversationInfo]
    next: str | None


class MessageView(msgspec.Struct):
    """A stored message; `parent` is the one before it, `status` `incomplete` for an answer that was
    interrupted."""

    id: str
    parent: str | None
    role: str
    content: str | list[Part]
    status: str
    origin: str
    created_at: datetime
    tool_calls: list[ToolRun] | UnsetType = UNSET
    run_id: str | None = None
    usage: CompletionUsage | UnsetType = UNSET


class ConversationView(msgspec.Struct):
    """A session: the messages of its newest branch, or of all branches, those before others
    first."""

    agent_id: str
    session_id: str
    created_at: datetime
    updated_at: datetime
    messages: list[MessageView]


class Deleted(msgspec.Struct):
    """How much was deleted for good."""

    sessions: int
    messages: int
    runs: int
    summaries: int


@router.get(
    "/agents/{agent_id}/conversations",
    summary="List a user's conversations with an agent",
    openapi_extra=describe_route(
        None,
        ConversationPage,
        query={**_USER_QUERY, **_PAGE_QUERY},
    ),
)
async def list_conversations(
    agent_id: str, request: Request, service: ServiceDependency, caller: MemoryReader
) -> Response:
    """The user's sessions with the agent, page by page, the one used last first."""
    service.find_agent(agent_id, caller)
    infos, after = await service.conversations.list(
        caller.key.tenant,
        _resolve_user(request, caller),
        agent_id,
        limit=_parse_limit(request),
        after=request.query_params.get("after"),
    )
    return Response(
        _encoder.encode(ConversationPage(list(infos), after)), media_type="application/json"
    )


@router.get(
    "/agents/{agent_id}/conversations/{session_id:path}",
    summary="Show a conversation",
    openapi_extra=describe_route(
        None,
        ConversationView,
        query=_USER_QUERY,
        flag="branches",
        flag_help="Show the messages of all branches.",
    ),
)
async def show_conversation(
    agent_id: str,
    session_id: str,
    request: Request,
    service: ServiceDependency,
    caller: MemoryReader,
) -> Response:
    """The session's messages with the tools that were used."""
    service.find_agent(agent_id, caller)
    branches = request.query_params.get("branches", "false").lower() in ("true", "1")
    found = await service.conversations.get(
        caller.key.tenant, _resolve_user(request, caller), agent_id, session_id, branches=branches
    )
    return Response(await _encode_conversation(found), media_type="application/json")


@router.delete(
    "/agents/{agent_id}/conversations/{session_id:path}",
    summary="Delete a conversation",
    openapi_extra=describe_route(None, Deleted, query=_USER_QUERY),
)
async def delete_conversation(
    agent_id: str,
    session_id: str,
    request: Request,
    service: ServiceDependency,
    caller: MemoryDeleter,
) -> Response:
    """Deletes the session for good."""
    service.find_agent(agent_id, caller)
    tenant, user = caller.key.tenant, _resolve_user(request, caller)
    erased = await service.conversations.delete(tenant, user, agent_id, session_id)
    _forget(request, service, tenant, user)
    audit.info(
        "conversation.deleted",
        extra={**_build_audit_fields(caller, user), "agent_id": agent_id, "session": session_id},
    )
    return Response(_encoder.encode(erased), media_type="application/json")


@router.get(
    "/memory",
    summary="Export everything of a user",
    response_class=StreamingResponse,
    openapi_extra=describe_route(
        None, ConversationView, query=_USER_QUERY, lines="one conversation a line, all branches"
    ),
)
async def export_memory(
    request: Request, service: ServiceDependency, caller: MemoryReader
) -> Response:
    """Every conversation of the user with all agents, as JSON Lines."""
    user = _resolve_user(request, caller)
    lines = _stream_lines(
        service.conversations.export(caller.key.tenant, user, agents=caller.key.agents)
    )
    first = await anext(lines, b"")  # so that an error has its status
    audit.info("memory.exported", extra=_build_audit_fields(caller, user))
    return StreamingResponse(_prepend_line(first, lines), media_type="application/jsonl")


@router.delete(
    "/memory",
    summary="Delete everything of a user",
    openapi_extra=describe_route(None, Deleted, query=_USER_QUERY),
)
async def erase_memory(
    request: Request, service: ServiceDependency, caller: MemoryDeleter
) -> Response:
    """Deletes every conversation of the user with all agents for good."""
    tenant, user = caller.key.tenant, _resolve_user(request, caller)
    erased = await service.conversations.erase(tenant, user, agents=caller.key.agents)
    _forget(request, service, tenant, user)
    audit.info(
        "memory.erased", extra={**_build_audit_fields(caller, user), "sessions": erased.sessions}
    )
    return Response(_encoder.encode(erased), media_type="application/json")


async def _encode_conversation(conversation: Conversation) -> bytes:
    """The conversation as JSON, a long one made in a thread."""

    def encode() -> bytes:
        return _encoder.encode(_build_view(conversation))

    return (
        encode()
        if len(conversation.messages) <= MAX_INLINE_MESSAGES
        else await asyncio.to_thread(encode)
    )


async def _stream_lines(
    conversations: AsyncGenerator[Conversation, None],
) -> AsyncGenerator[bytes, None]:
    async with aclosing(conversations):
        async for conversation in conversations:
            yield await _encode_conversation(conversation) + b"\n"


async def _prepend_line(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    async with aclosing(rest):
        if first:
            yield first
        async for line in rest:
            yield line


def _forget(request: Request, service: Service, tenant: str, user: str) -> None:
    """Drops what this process itself has kept of the user."""
    get_idempotency_cache(request).forget(tenant, user)
    service.pending.forget(tenant, user)


def _build_audit_fields(caller: Principal, user: str) -> dict[str, str]:
    return {"key_id": caller.key.key_id, "tenant": caller.key.tenant, "user": user}


def _resolve_user(request: Request, caller: Principal) -> str:
    given = validate_name(request.query_params.get("user_id") or "", "user_id")
    return resolve_user(caller, given) or ANONYMOUS


def _parse_limit(request: Request) -> int:
    value = request.query_params.get("limit", str(DEFAULT_LIMIT))
    if (
        not value.isascii()
        or not value.isdigit()
        or len(value) > 3
        or not 1 <= int(value) <= MAX_LIMIT
    ):
        raise InvalidRequestError(f"The limit is a number from 1 to {MAX_LIMIT}.", param="limit")
    return int(value)


def _build_view(conversation: Conversation) -> ConversationView:
    return ConversationView(
        conversation.agent_id,
        conversation.session_id,
        conversation.created_at,
        conversation.updated_at,
        [_build_message(message) for message in conversation.messages],
    )


def _build_message(message: StoredMessage) -> MessageView:
    view = MessageView(
        message.id,
        message.parent,
        message.role,
        _render_content(message.content),
        message.status,
        message.origin,
        message.created_at,
        run_id=message.run_id,
    )
    if message.steps:
        view.tool_calls = [run for step in message.steps for run in _collect_tool_runs(step)]
    if message.usage is not None:
        view.usage = to_completion_usage(message.usage)
    return view


def _render_content(content: Content) -> str | list[Part]:
    """Content as OpenAI writes it."""
    return content if isinstance(content, str) else [_render_part(part) for part in content]


def _render_part(part: ContentPart) -> Part:
    match part:
        case TextPart(text=text):
            return TextContent(text)
        case ImagePart(url=url, detail=detail):
            return ImageContent(ImageUrl(url, detail))
        case AudioPart(data=data, format=form):
            return AudioContent(InputAudio(data, form))
        case FilePart():
            return FileContent(InputFile(part.file_id, part.file_data, part.filename))


def _collect_tool_runs(step: Step) -> list[Any]:
    results = {message.tool_call_id: message for message in step.messages if message.role == "tool"}
    known = {result.call_id: result for result in step.results}
    return [
        ToolRun(
            call.id,
            call.name,
            call.arguments,
            results[call.id].text,
            known[call.id].is_error if call.id in known else True,
            round(known[call.id].seconds, 3) if call.id in known else 0.0,
        )
        for call in step.calls
    ]
