"""Finds out which session a request belongs to, and what its client says about turns that it asks
again."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request

from ai_agent_service.agents.chat_tasks import TASKS, Task
from ai_agent_service.core.errors import InvalidRequestError
from ai_agent_service.memory.base import IDEMPOTENCY_PREFIX, History

TEMPORARY_PREFIXES = ("temporary:", "local:")
"""What Open WebUI's ids begin with of chats that are not to be kept."""

_SESSION_ID = re.compile(r"[^\x00-\x1f\x7f]{1,255}")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_OPEN_WEBUI_HEADERS = (b"x-openwebui-", b"x-aas-")
"""What headers begin with that only Open WebUI sends, the latter as docs/open-webui.md has it."""

_HEADERS = {
    b"x-openwebui-chat-id": "chat",
    b"x-session-id": "session",
    b"x-session-history": "history",
    b"x-aas-message": "message",
    b"x-aas-task": "task",
    b"x-stainless-retry-count": "retries",
    b"idempotency-key": "key",
}


class SessionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a request says of its session: `session` None where nothing is to be stored, `history`
    None where it does not say."""

    session: str | None = None
    is_chat: bool = False
    """Whether Open WebUI names the session."""

    history: History | None = None
    is_open_webui: bool = False
    """Whether the client shows itself to be Open WebUI."""

    task: Task | None = None
    """What is asked for beside the chat, where a header says so."""

    is_retry: bool = False
    message_id: str | None = None
    idempotency_key: str | None = None


def parse_session_request(
    request: Request, metadata: Mapping[str, Any] | None = None, session_id: str | None = None
) -> SessionRequest:
    """Reads `X-OpenWebUI-Chat-Id`, `X-Session-Id`, the body's `session_id` and
    `metadata.session_id`, the first that is given, and what else tells of the turn. Raises
    InvalidRequestError."""
    found = {
        _HEADERS[name]: _decode_header(value)
        for name, value in request.scope["headers"]
        if name in _HEADERS
    }
    given = metadata or {}
    session = _select_session(
        (found.get("chat"), "X-OpenWebUI-Chat-Id"),
        (found.get("session"), "X-Session-Id"),
        (session_id, "session_id"),
        (given.get("session_id"), "metadata.session_id"),
    )
    if found.get("history"):
        history = _parse_history(found["history"], "X-Session-History")
    else:
        history = _parse_history(given.get("session_history"), "metadata.session_history")
    if session is None and history == "server":
        raise InvalidRequestError(
            "The server's history is that of a session: name one.", param="metadata.session_id"
        )
    if session is not None and (session.startswith(TEMPORARY_PREFIXES) or found.get("task")):
        session = None
    key = found.get("key")
    if key is not None and not _KEY.fullmatch(key):
        raise InvalidRequestError(
            "An Idempotency-Key has 1 to 255 visible ASCII characters.", param="Idempotency-Key"
        )
    message = found.get("message", "")[:255].removeprefix(IDEMPOTENCY_PREFIX) or (
        IDEMPOTENCY_PREFIX + key if key else None
    )
    return SessionRequest(
        session=session,
        is_chat=bool(found.get("chat")),
        history=history,
        is_open_webui=any(
            name.startswith(_OPEN_WEBUI_HEADERS) for name, _ in request.scope["headers"]
        ),
        task=parse_task(found["task"]) if found.get("task") else None,
        is_retry=found.get("retries", "0") not in ("", "0"),
        message_id=message,
        idempotency_key=key,
    )


def _decode_header(value: bytes) -> str:
    """A header's value: UTF-8, as clients send it today, else Latin-1, as HTTP has it."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _select_session(*sources: tuple[object, str]) -> str | None:
    for value, place in sources:
        if value is None or value == "":
            continue
        if not isinstance(value, str) or not _SESSION_ID.fullmatch(value):
            raise InvalidRequestError(
                "A session id is a text of 1 to 255 characters, none of them a control character.",
                param=place,
            )
        return value
    return None


def _parse_history(value: object, place: str) -> History | None:
    if value is None or value == "":
        return None
    if value != "client" and value != "server":
        raise InvalidRequestError("The history is either client or server.", param=place)
    return value


def parse_task(name: str) -> Task:
    """The task that a header names; `other` for one that is not known here."""
    return next((task for task in TASKS if task == name), "other")
