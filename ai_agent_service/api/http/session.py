"""Finds out which session a request belongs to, and what its client says about turns that it asks
again."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.agents.chat_tasks import TASKS, Task
from ai_agent_service.core.errors import InvalidRequestError
from ai_agent_service.core.turn import IDEMPOTENCY_PREFIX, History, Turn

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


def read_session(
    turn: Turn,
    request: Request,
    metadata: Mapping[str, Any] | None = None,
    session_id: str | None = None,
) -> Turn:
    """Return `turn` with its session and what the client says about earlier attempts.

    The session is the first that is given of `X-OpenWebUI-Chat-Id`, `X-Session-Id`, the body's
    `session_id` and `metadata.session_id`. `history` stays None where the request does not state
    it. Raises InvalidRequestError.
    """
    found = _read_headers(request)
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
    return msgspec.structs.replace(
        turn,
        session=session,
        history=history,
        is_retry=found.get("retries", "0") not in ("", "0"),
        message_id=message,
        idempotency_key=key,
    )


def choose_history(turn: Turn, agent: BaseAgent, *, default: History = "client") -> Turn:
    """Return `turn` with the history that counts: the client's for an agent without a memory."""
    if agent.definition.memory is None:
        if turn.history == "server":
            raise InvalidRequestError(
                "This agent has no memory: send the whole conversation.",
                param="metadata.session_history",
            )
        return msgspec.structs.replace(turn, history="client", is_retry=False, message_id=None)
    history = (turn.history or default) if turn.session is not None else "client"
    return msgspec.structs.replace(turn, history=history)


def drop_session(turn: Turn) -> Turn:
    """Return `turn` for a task beside the chat: without a session, but still idempotent."""
    return msgspec.structs.replace(
        turn, session=None, history="client", is_retry=False, message_id=None
    )


def is_from_open_webui(request: Request) -> bool:
    """Return whether the client's headers are those of Open WebUI."""
    return any(name.startswith(_OPEN_WEBUI_HEADERS) for name, _ in request.scope["headers"])


def find_task(request: Request) -> Task | None:
    """Return the task beside the chat that a header names, or None."""
    name = _read_headers(request).get("task")
    return parse_task(name) if name else None


def parse_task(name: str) -> Task:
    """Return the task of this name; `other` for an unknown one."""
    return next((task for task in TASKS if task == name), "other")


def _read_headers(request: Request) -> dict[str, str]:
    return {
        _HEADERS[name]: _decode_header(value)
        for name, value in request.scope["headers"]
        if name in _HEADERS
    }


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
