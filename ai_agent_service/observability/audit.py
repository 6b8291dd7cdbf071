"""Audit lines: who did what, one JSON object a line, apart from the other log."""

import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ai_agent_service.core.errors import ConfigError, Fault
from ai_agent_service.observability.logging import JsonWriter, RedactingFormatter, read_extra
from ai_agent_service.observability.request_id import current_request_id

audit = logging.getLogger("audit")
"""Where audit lines are told: the message is the event's name, `extra` what there is to say of
it."""


_IDENTITY_FIELDS = frozenset({"agent_id", "key_id", "tenant", "user", "run_id", "session"})
"""What says who did what, which a caller must not be able to have blanked by a name that looks like
a key."""


class AuditFormatter(RedactingFormatter):
    """`{"time", "event", "request_id", ...}`, with `secrets` taken out, and what looks like one
    where it is no name."""

    def __init__(self, secrets: tuple[str, ...] = ()) -> None:
        super().__init__(secrets)
        self._written = JsonWriter(secrets, _IDENTITY_FIELDS)

    def add_secrets(self, secrets: tuple[str, ...]) -> None:
        """Takes `secrets` out too, from now on."""
        super().add_secrets(secrets)
        self._written = JsonWriter(self._secrets, _IDENTITY_FIELDS)

    def format(self, record: logging.LogRecord) -> str:
        """The line of `record`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "event": record.getMessage(),
        }
        if request_id := current_request_id.get():
            line["request_id"] = request_id
        return self._written({**line, **read_extra(record)})


def configure_audit(file: Path | None, secrets: tuple[str, ...] = ()) -> None:
    """Sends audit lines, `secrets` taken out, to the end of `file` (AUDIT_LOG_FILE) or to standard
    error.

    Raises ConfigError if the file cannot be written.
    """
    try:
        handler = (
            logging.StreamHandler(sys.stderr)
            if file is None
            else logging.FileHandler(file, encoding="utf-8")
        )
    except OSError as error:
        problem, remedy = (
            f"{file} cannot be written: {error.strerror}",
            "Name a file in a folder that there is",
        )
        raise ConfigError(
            [Fault(file="environment", field="AUDIT_LOG_FILE", problem=problem, remedy=remedy)]
        ) from None
    handler.setFormatter(AuditFormatter(secrets))
    for old in audit.handlers:
        old.close()
    audit.handlers, audit.propagate = [handler], False
    audit.setLevel(logging.INFO)
