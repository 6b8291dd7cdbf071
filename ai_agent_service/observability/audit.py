"""Write audit lines: who did what, one JSON object a line, separate from the other log."""

import asyncio
import logging
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from ai_agent_service.core.errors import AuditUnavailableError, ConfigError, Fault
from ai_agent_service.observability.line_writer import LineFile, LineWriter, find_writers
from ai_agent_service.observability.logging import RedactingFormatter, encode_line, read_extra
from ai_agent_service.observability.request_id import current_request_id

audit = logging.getLogger("audit")
"""The logger of audit lines: the message is the event's name, `extra` its fields."""

logger = logging.getLogger(__name__)

WRITE_SECONDS = 5.0
"""How long a run waits for its audit line to be written."""

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


class _AuditHandler(logging.StreamHandler[Any]):
    """Writes audit lines; with `is_required`, runs wait for theirs."""

    is_required = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Report a line that could not be formatted or written."""
        error = sys.exception()
        reason = error.strerror if isinstance(error, OSError) else type(error).__name__
        logger.critical("audit.line_lost", extra={"audit_event": record.msg, "reason": reason})


class _DirectStream:
    """Writes to a file at once: for a command, which may wait."""

    def __init__(self, file: LineFile) -> None:
        self._file = file

    def write(self, text: str) -> None:
        """Write `text`; raises OSError."""
        _, error = self._file.write(text.encode())
        if error is not None:
            raise error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def configure_audit(
    path: Path | None,
    secrets: tuple[str, ...] = (),
    *,
    queue_lines: int | None = None,
    is_required: bool = False,
) -> None:
    """Append audit lines without `secrets` to the file `path` (AUDIT_LOG_FILE), or to standard
    error.

    With `queue_lines` a thread writes them, and with `is_required` too, `record_start` waits for
    it. Raises ConfigError if the file cannot be written.
    """
    formatter = AuditFormatter(secrets)
    stream: Any
    if path is None:
        stream = sys.stderr if queue_lines is None else find_writers()["log"]
    else:
        file = _open_file(path)
        describe = partial(_describe_dropped, formatter)
        report = partial(_report_problem, path)
        stream = (
            _DirectStream(file)
            if queue_lines is None
            else LineWriter(file, queue_lines, describe, report)
        )
    handler = _AuditHandler(stream)
    handler.is_required = is_required and queue_lines is not None
    handler.setFormatter(formatter)
    for old in audit.handlers:
        if isinstance(old, _AuditHandler) and isinstance(old.stream, _DirectStream):
            old.stream.close()
    audit.handlers, audit.propagate = [handler], False
    audit.setLevel(logging.INFO)


async def record_start(fields: Mapping[str, Any]) -> None:
    """Write the line `agent.started` and wait until it is written, if AUDIT_REQUIRED is set.

    Raises AuditUnavailableError.
    """
    handler = next((each for each in audit.handlers if isinstance(each, _AuditHandler)), None)
    if handler is None or not handler.is_required:
        return
    loop = asyncio.get_running_loop()
    written = asyncio.Event()

    def confirm() -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(written.set)

    record = logging.makeLogRecord({**fields, "msg": "agent.started"})
    writer: LineWriter = handler.stream
    if writer.problem is None and writer.put(f"{handler.format(record)}\n", confirm):
        with suppress(TimeoutError):
            async with asyncio.timeout(WRITE_SECONDS):
                await written.wait()
                return
    raise AuditUnavailableError(
        "The audit log cannot be written now, and this service answers nothing without it. Try"
        " again in a moment.",
        retry_after=2,
    )


def reopen_audit_file() -> None:
    """Open the audit file again before the next line."""
    if (writer := find_writers().get("audit")) is not None:
        writer.file.request_reopen()


def _open_file(path: Path) -> LineFile:
    try:
        return LineFile(path)
    except OSError as error:
        problem = f"{path} cannot be written: {error.strerror}"
        remedy = "Name a file in a folder that exists"
        raise ConfigError([Fault.in_environment("AUDIT_LOG_FILE", problem, remedy)]) from None


def _describe_dropped(formatter: logging.Formatter, count: int) -> str:
    record = logging.makeLogRecord({"msg": "audit.lines_dropped", "dropped": count})
    return f"{formatter.format(record)}\n"


def _report_problem(path: Path, problem: str | None) -> None:
    """Log that an outage of the audit log begins or ends."""
    if problem is None:
        logger.warning("audit.back", extra={"file": str(path)})
    else:
        logger.error("audit.lost", extra={"file": str(path), "reason": problem})
