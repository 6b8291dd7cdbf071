"""The id of the request under way, for log lines, errors and providers."""

import re
from contextvars import ContextVar

from ai_agent_service.core.ids import new_id

_ACCEPTED = re.compile(r"[A-Za-z0-9._:-]{1,128}")

current_request_id: ContextVar[str] = ContextVar("current_request_id", default="")


def accepted_or_new(given: str) -> str:
    """The caller's id if it is 1 to 128 letters, digits and . _ : -, else a new one."""
    return given if _ACCEPTED.fullmatch(given) else new_id("req_")
