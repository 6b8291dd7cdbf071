"""Log the steps of a run with their content, at debug level only."""

import logging
from typing import Any

debug_log = logging.getLogger("ai_agent_service.trace")
"""The logger of the steps: the message is the event's name, `extra` its fields."""


def is_debug_enabled() -> bool:
    """Return whether steps are logged; callers ask once a step."""
    return debug_log.isEnabledFor(logging.DEBUG)


def drop_empty(**fields: Any) -> dict[str, Any]:
    """Return `fields` without None and empty values; 0 and False stay."""
    return {
        name: value
        for name, value in fields.items()
        if value is not None and value not in ("", (), [], {})
    }
