"""Write audit lines: who did what, one JSON object a line, separate from the other log."""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ai_agent_service.core.errors import ConfigError, Fault
from ai_agent_service.observability.logging import RedactingFormatter, encode_line, read_extra
from ai_agent_service.observability.request_id import current_request_id

audit = logging.getLogger("audit")
"""The logger of audit lines: the message is the event's name, `extra` its fields."""

_IDENTITY_FIELDS = frozenset({"agent_id", "key_id", "tenant", "user", "run_id", "session"})
"""The fields that identify a caller, who must stay identifiable even if a name looks like a key."""


class AuditFormatter(RedactingFormatter):
    """`{"time", "event", "request_id", ...}` without secrets, nor, except in `_IDENTITY_FIELDS`,
    what looks like one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of `record`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "event": record.getMessage(),
        }
        if request_id := current_request_id.get():
            line["request_id"] = request_id
        return encode_line({**line, **read_extra(record)}, self._secrets, names=_IDENTITY_FIELDS)


def configure_audit(file: Path | None, secrets: tuple[str, ...] = ()) -> None:
    """Append audit lines without `secrets` to `file` (AUDIT_LOG_FILE), or to standard error.

    Raises ConfigError if the file cannot be written.
    """
    try:
        handler = logging.FileHandler(file, encoding="utf-8") if file else logging.StreamHandler()
    except OSError as error:
        problem = f"{file} cannot be written: {error.strerror}"
        remedy = "Name a file in a folder that there is"
        raise ConfigError(
            [Fault(file="environment", field="AUDIT_LOG_FILE", problem=problem, remedy=remedy)]
        ) from None
    handler.setFormatter(AuditFormatter(secrets))
    for old in audit.handlers:
        old.close()
    audit.handlers, audit.propagate = [handler], False
    audit.setLevel(logging.INFO)
