"""Log lines: one form for all of them, on standard error, with the request's id and without secrets."""

import logging
import sys
from typing import Any

from app.core.text import without_secrets
from app.observability.request_id import current_request_id

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


def extra_of(record: logging.LogRecord) -> dict[str, Any]:
    """What the call that made `record` gave as `extra`."""
    return {key: value for key, value in record.__dict__.items() if key not in _STANDARD}


class KeepsOut(logging.Formatter):
    """A formatter that takes secrets out of its lines, longest first, so that no part of one is left over."""

    def __init__(self, layout: str | None = None, secrets: tuple[str, ...] = ()) -> None:
        super().__init__(layout)
        self._secrets = secrets

    def keep_out(self, secrets: tuple[str, ...]) -> None:
        """Takes `secrets` out too, from now on."""
        self._secrets = tuple(sorted({*self._secrets, *secrets}, key=len, reverse=True))


class LineFormatter(KeepsOut):
    """`time LEVEL logger message key=value ... request_id=...`, with `secrets`, API keys and bearer tokens taken out."""

    def __init__(self, secrets: tuple[str, ...] = ()) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s %(message)s", secrets)

    def format(self, record: logging.LogRecord) -> str:
        """The line of `record`, its traceback after it."""
        extra = extra_of(record)
        if request_id := current_request_id.get():
            extra.setdefault("request_id", request_id)
        line = super().format(record)
        if extra:
            first, newline, rest = line.partition("\n")
            line = f"{first} {' '.join(f'{key}={_in_line(value)}' for key, value in extra.items())}{newline}{rest}"
        return without_secrets(line, self._secrets)


def keep_out(secrets: tuple[str, ...]) -> None:
    """Has `secrets` taken out of log lines and audit lines too, from now on."""
    for handler in (*logging.getLogger().handlers, *logging.getLogger("audit").handlers):
        if isinstance(formatter := handler.formatter, KeepsOut):
            formatter.keep_out(secrets)


def _in_line(value: object) -> str:
    """`value` as text without control characters, so that nobody begins a line of their own."""
    text = str(value)
    return text if text.isprintable() else repr(text)[1:-1]


def configure_logging(level: str, secrets: tuple[str, ...] = ()) -> None:
    """Sends every logger's lines of at least `level` to standard error, `secrets` taken out."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(secrets))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # No line tells them, and to find them out takes a third of a line's time; see "Optimization" in the documentation of logging.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
    # Its "Started server process" and the like say nothing that our own lines do not.
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.getLevelName(level)))
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)  # worker processes turn it on by themselves
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
