"""The trace of what goes on in a run, content and all, which is written at debug level alone."""

import logging
from typing import Any

debug_log = logging.getLogger("ai_agent_service.trace")
"""Where it is told: the message is the event's name, `extra` what there is to say of it."""


def is_debug_enabled() -> bool:
    """Whether anybody reads it; asked once a step, so that it costs nothing where nobody does."""
    return debug_log.isEnabledFor(logging.DEBUG)


def drop_empty(**fields: Any) -> dict[str, Any]:
    """Those of `fields` that hold something; 0 and False do."""
    return {
        name: value
        for name, value in fields.items()
        if value is not None and value not in ("", (), [], {})
    }
