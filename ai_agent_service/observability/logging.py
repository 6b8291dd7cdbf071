"""Format log lines for standard error, with the request's id and without secrets."""

import logging
import os
import sys
import traceback
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, Literal

import msgspec

from ai_agent_service.core.redaction import has_secret_marker, redact_known, redact_secrets
from ai_agent_service.core.text import escape_unprintable, replace_unstorable, show_foreign
from ai_agent_service.observability.line_writer import LineFile, LineWriter
from ai_agent_service.observability.request_id import current_request_id

LogFormat = Literal["auto", "json", "text"]

MAX_DEBUG_TEXT = 2_000
"""Characters of each text in a debug line."""

MAX_CAUSES = 20
"""Errors of a chain that a traceback shows."""

_STANDARD_FIELDS = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message"}
_NOISY_LOGGERS = ("aiosqlite", "alembic", "asyncio", "markdown_it", "sqlalchemy")
"""Libraries whose lines below WARNING would drown ours."""

_encode = msgspec.json.Encoder(enc_hook=str).encode
_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}
_PLAIN = "\x1b[0m"


def read_extra(record: logging.LogRecord) -> dict[str, Any]:
    """Return what the logging call passed as `extra`."""
    return {key: value for key, value in record.__dict__.items() if key not in _STANDARD_FIELDS}


def encode_line(
    fields: Mapping[str, Any],
    secrets: tuple[str, ...],
    *,
    limit: int | None = None,
    names: Collection[str] = (),
) -> str:
    """Return `fields` as one line of JSON without secrets, each text cut to `limit` characters.

    The fields called `names` keep what only looks like a secret.
    """
    try:
        line = _encode(fields).decode()
    # a key that is not text, half of a surrogate pair, ...
    except (TypeError, ValueError, OverflowError, RecursionError):
        line = ""
    if (
        not line
        or limit is not None
        or has_secret_marker(line)
        or any(secret in line for secret in _escape_secrets(secrets))
    ):
        redacted = {
            name: replace_unstorable(redact_known(value, secrets))
            if name in names and isinstance(value, str)
            else redact_value(value, secrets, limit)
            for name, value in fields.items()
        }
        line = _encode(redacted).decode()
    return escape_unprintable(line)


@lru_cache(maxsize=4)
def _escape_secrets(secrets: tuple[str, ...]) -> tuple[str, ...]:
    """Return `secrets` as JSON contains them."""
    return tuple(_encode(replace_unstorable(secret))[1:-1].decode() for secret in secrets)


def redact_value(value: object, secrets: tuple[str, ...] = (), limit: int | None = None) -> object:
    """Return `value` in JSON's types, its texts redacted and then cut to `limit` characters."""
    match value:
        case bool() | int() | float() | None | datetime():
            return value if not isinstance(value, int) or -(2**63) <= value < 2**63 else str(value)
        case Mapping():
            return {
                str(redact_value(str(key), secrets, limit)): redact_value(item, secrets, limit)
                for key, item in value.items()
            }
        case list() | tuple():
            return [redact_value(item, secrets, limit) for item in value]
        case _:
            text = value if isinstance(value, str) else str(value)
            text = replace_unstorable(redact_secrets(text, secrets))
            if limit is None or len(text) <= limit:
                return text
            return f"{text[:limit]}... ({len(text)} characters)"


class RedactingFormatter(logging.Formatter):
    """A formatter whose lines contain no `secrets`. It replaces the longest first, so that no part
    of one remains."""

    def __init__(self, secrets: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._secrets = secrets

    def add_secrets(self, secrets: tuple[str, ...]) -> None:
        """Redact `secrets` too, from now on."""
        self._secrets = tuple(sorted({*self._secrets, *secrets}, key=len, reverse=True))


class _BaseFormatter(RedactingFormatter):
    """The part that both forms share. With `with_words`, lines contain the messages of errors,
    which may repeat what users, models and tools said."""

    def __init__(
        self, secrets: tuple[str, ...] = (), *, pid: int | None = None, with_words: bool = False
    ) -> None:
        super().__init__(secrets)
        self._pid = pid
        self._with_words = with_words

    def _format_event(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        # asyncio adds the error of a task that nothing awaited to its message.
        return text if self._with_words or record.name != "asyncio" else text.partition("\n")[0]

    def _collect_fields(self, record: logging.LogRecord) -> dict[str, Any]:
        extra = read_extra(record)
        if "request_id" not in extra and (request_id := current_request_id.get()):
            extra["request_id"] = request_id
        if self._pid is not None:
            extra["pid"] = self._pid
        return extra

    def _format_exception(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return ""
        if self._with_words:
            return "".join(traceback.format_exception(error)).rstrip("\n")
        return format_bare_traceback(error)


class JsonFormatter(_BaseFormatter):
    """`{"time", "level", "logger", "event", ...}`, then the call's `extra`, the request's id, `pid`
    and `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of `record`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname,
            "logger": record.name,
            "event": self._format_event(record),
        }
        for name, value in self._collect_fields(record).items():
            line[f"{name}_" if name in line else name] = value
        if exception := self._format_exception(record):
            line["exception"] = exception
        limit = MAX_DEBUG_TEXT if record.levelno <= logging.DEBUG else None
        return encode_line(line, self._secrets, limit=limit)


class LineFormatter(_BaseFormatter):
    """`time LEVEL logger message key=value ... request_id=...`, and indented below it the long
    fields of a debug line and a traceback."""

    is_coloured = False

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of `record` and the lines below it."""
        is_detailed = record.levelno <= logging.DEBUG
        limit = MAX_DEBUG_TEXT if is_detailed else None
        short, below = [], []
        for name, value in self._collect_fields(record).items():
            value = redact_value(value, self._secrets, limit)
            if is_detailed and _is_long(value):
                below += _format_block(name, value)
            else:
                short.append(f"{name}={_escape_line(value)}")
        if exception := self._format_exception(record):
            below += map(_escape_line, redact_secrets(exception, self._secrets).split("\n"))
        level = f"{record.levelname:<7}"
        if self.is_coloured and record.levelname in _COLOURS:
            level = f"{_COLOURS[record.levelname]}{level}{_PLAIN}"
        event = _escape_line(redact_value(self._format_event(record), self._secrets, limit))
        first = " ".join((self.formatTime(record), level, record.name, event, *short))
        return "\n".join((first, *(f"    {line}" for line in below)))


def _format_block(name: str, value: object) -> list[str]:
    """Return `value` as readable lines, indented below `name`."""
    match value:
        case dict() if any(map(_is_long, value.values())):
            lines = _format_entries(value)
        case list() if any(map(_is_long, value)):
            lines = []
            for item in value:
                entries = _format_entries(item if isinstance(item, dict) else {"": item})
                lines += [f"{'  ' if place else '- '}{line}" for place, line in enumerate(entries)]
        case str() if _is_long(value):
            lines = [_escape_line(line) for line in value.split("\n")]
        case _:
            return [f"{_escape_line(name)}: {_escape_line(_format_short(value))}"]
    return [f"{_escape_line(name)}:", *(f"  {line}" for line in lines)]


def _format_entries(fields: dict[str, object]) -> list[str]:
    return [line for name, value in fields.items() for line in _format_block(name, value)]


def _format_short(value: object) -> str:
    match value:
        case dict():
            return ", ".join(f"{key}={_format_short(item)}" for key, item in value.items())
        case list():
            return ", ".join(map(_format_short, value))
        case _:
            return str(value)


def _is_long(value: object) -> bool:
    return (bool(value) and isinstance(value, dict | list)) or (
        isinstance(value, str) and (len(value) > 80 or "\n" in value)
    )


def _escape_line(value: object) -> str:
    """Return `value` as text that cannot forge a line."""
    return show_foreign(str(value))


def add_secrets(secrets: tuple[str, ...]) -> None:
    """Redact `secrets` in log lines and audit lines too, from now on."""
    for handler in (*logging.getLogger().handlers, *logging.getLogger("audit").handlers):
        if isinstance(formatter := handler.formatter, RedactingFormatter):
            formatter.add_secrets(secrets)


def format_bare_traceback(error: BaseException, left: int = MAX_CAUSES) -> str:
    """Return the traceback of `error` and of its causes, each with its type alone: the message may
    repeat what users and tools said."""
    lines = []
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and left > 0:
        lines += [format_bare_traceback(cause, left - 1), "\nof which came:\n"]
    lines += [
        "Traceback (most recent call last):",
        "".join(traceback.format_tb(error.__traceback__)).rstrip("\n"),
    ]
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    if isinstance(error, OSError) and isinstance(error.errno, int):
        kind += f": {os.strerror(error.errno)}"
    lines.append(kind)
    if isinstance(error, BaseExceptionGroup):
        lines += (
            f"\nin it:\n\n{format_bare_traceback(inner, left - 1)}"
            for inner in error.exceptions[: max(0, left)]
        )
    return "\n".join(line for line in lines if line)


class _StderrHandler(logging.StreamHandler[Any]):
    """Write to standard error; report where a record that cannot be formatted comes from, and
    nothing of its content."""

    def handleError(self, record: logging.LogRecord) -> None:
        """See logging."""
        failed = {
            "name": record.name,
            "levelname": "ERROR",
            "levelno": logging.ERROR,
            "msg": "log.line_failed",
            "file": record.pathname,
            "line": record.lineno,
            "cause": type(sys.exception()).__name__,
        }
        try:
            self.stream.write(f"{self.format(logging.makeLogRecord(failed))}\n")
        except (OSError, ValueError):
            return  # the log has no reader any more


def _describe_dropped(formatter: logging.Formatter, count: int) -> str:
    record = logging.makeLogRecord(
        {
            "name": __name__,
            "levelname": "WARNING",
            "levelno": logging.WARNING,
            "msg": f"{count} log lines were dropped",
            "dropped": count,
        }
    )
    return f"{formatter.format(record)}\n"


def write_plain(text: str) -> None:
    """Write `text` among the log lines, as it is."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _StderrHandler):
            handler.stream.write(text)


def is_json_format(log_format: LogFormat) -> bool:
    """Return whether lines are JSON, as `auto` means where standard error is not a terminal."""
    return log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())


def configure_logging(
    level: str,
    secrets: tuple[str, ...] = (),
    *,
    log_format: LogFormat = "text",
    is_one_of_several: bool = False,
    queue_lines: int | None = None,
) -> None:
    """Send every logger's lines of at least `level` to standard error, without `secrets`.

    The lines of one of several processes contain its pid. At the level DEBUG they contain the
    messages of errors. With `queue_lines` a thread writes them, so that logging never blocks;
    further lines than that are dropped.
    """
    pid = os.getpid() if is_one_of_several else None
    with_words = level == "DEBUG"
    formatter: JsonFormatter | LineFormatter
    if is_json_format(log_format):
        formatter = JsonFormatter(secrets, pid=pid, with_words=with_words)
    else:
        formatter = LineFormatter(secrets, pid=pid, with_words=with_words)
        formatter.is_coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    handler = _StderrHandler(
        sys.stderr
        if queue_lines is None
        else LineWriter(LineFile(None), queue_lines, partial(_describe_dropped, formatter))
    )
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # No line contains them, and finding them takes a third of a line's time; see "Optimization" in
    # the documentation of logging.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
    # Lines such as "Started server process" say nothing that our own lines do not.
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.getLevelName(level)))
    # Worker processes enable the lines of uvicorn.access by themselves.
    for name in ("uvicorn.access", *_NOISY_LOGGERS):
        logging.getLogger(name).setLevel(logging.WARNING)
