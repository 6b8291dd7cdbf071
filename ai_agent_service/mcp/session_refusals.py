"""Recognize errors of servers that do not know a session any more.

A server should answer 404, and many answer something else. An error of this table is only a hint:
the same refusal of another request shows that the session is meant, and not a tool's own sessions.
"""

import re

from mcp_types import INVALID_REQUEST, ErrorData

SESSION_STATUSES = frozenset({400, 404})
"""404 in the specification, 2025-11-25, "Session Management"; 400 of TypeScript servers."""

_CODES = frozenset({INVALID_REQUEST, -32001, -32002})
"""-32600 of the Python library, -32001 of the TypeScript library, -32002 of language servers."""

_WORDS = re.compile(
    # "Session not found", "Session terminated", "Invalid session ID", "Unknown Mcp-Session-Id";
    # "Bad Request: No valid session ID provided" (PrefectHQ/fastmcp#3073, punkpeye/fastmcp#121)
    r"session"
    # "Bad Request: Server not initialized" (TypeScript library, streamableHttp.ts)
    r"|not (?:yet )?(?:been )?initiali[sz]ed|uninitiali[sz]ed"
    # "Received request before initialization was complete" (Python library, session.py), which it
    # reports as "Invalid request parameters"
    r"|before initiali[sz]ation|^invalid request parameters$",
    re.IGNORECASE,
)

_OF_LIBRARY = re.compile("Redirect to|server answered a request with|Unexpected content type")
"""How errors begin that the library makes of an answer without a message."""


def is_session_refusal(error: ErrorData, status: int | None, *, has_session: bool) -> bool:
    """Return whether `error`, which came with an HTTP error `status` or without, may mean that the
    server does not know the session; `has_session` says whether a session has an id."""
    if _OF_LIBRARY.match(error.message):
        return False
    return (
        (has_session and status in SESSION_STATUSES)
        or error.code in _CODES
        or _WORDS.search(error.message) is not None
    )
