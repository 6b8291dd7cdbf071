"""The id of the current request, for log lines, errors and providers."""

import re
from contextvars import ContextVar

from ai_agent_service.core.ids import generate_id

_ACCEPTED = re.compile(r"[A-Za-z0-9._:-]{1,128}")

current_request_id: ContextVar[str] = ContextVar("current_request_id", default="")


def select_request_id(given: str) -> str:
    """Return the caller's id if it is 1 to 128 letters, digits and . _ : -, else a new one."""
    return given if _ACCEPTED.fullmatch(given) else generate_id("req_")
