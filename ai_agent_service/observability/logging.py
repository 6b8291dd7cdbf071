"""Log lines: one form for all of them, on standard error, with the request's id and without
secrets."""

import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from ai_agent_service.core.redaction import has_secret_marker, redact_known, redact_secrets
from ai_agent_service.core.text import replace_unstorable
from ai_agent_service.observability.request_id import current_request_id

LogFormat = Literal["auto", "json", "text"]

MAX_DEBUG_TEXT = 2_000
"""Characters of each text in a debug line."""

MAX_CAUSES = 20
"""Errors of a chain that are told."""

_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "color_message",
    "taskName",
}
_LINE_ENDS = re.compile("[\x7f-\x9f\u2028\u2029]")
"""What JSON leaves as it is and some programs take for the end of a line, or for a command to the
terminal."""

_NOISY_LOGGERS = ("aiosqlite", "alembic", "asyncio", "markdown_it", "sqlalchemy")
"""Libraries whose lines below WARNING would drown ours."""

_encode = msgspec.json.Encoder(enc_hook=str).encode
_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}
_PLAIN = "\x1b[0m"


def read_extra(record: logging.LogRecord) -> dict[str, Any]:
    """What the call that made `record` gave as `extra`."""
    return {key: value for key, value in record.__dict__.items() if key not in _STANDARD_FIELDS}


class JsonWriter:
    """Writes fields as one line of JSON, `secrets` and what looks like one taken out; of the fields
    `names` only the former."""

    def __init__(self, secrets: tuple[str, ...] = (), names: frozenset[str] = frozenset()) -> None:
        self._secrets = secrets
        self._written = tuple(
            msgspec.json.encode(replace_unstorable(secret))[1:-1].decode() for secret in secrets
        )
        self._names = names

    def __call__(self, fields: Mapping[str, Any], limit: int | None = None) -> str:
        """The line; each text in it is cut to `limit` characters."""
        try:
            line = _encode(fields).decode()
        except (
            TypeError,
            ValueError,
            OverflowError,
            RecursionError,
        ):  # a key that is no text, half of a surrogate pair, ...
            line = ""
        if (
            not line
            or limit is not None
            or has_secret_marker(line)
            or any(secret in line for secret in self._written)
        ):
            line = _encode(
                {name: self._redact_field(name, value, limit) for name, value in fields.items()}
            ).decode()
        return (
            line
            if line.isprintable()
            else _LINE_ENDS.sub(lambda found: f"\\u{ord(found[0]):04x}", line)
        )

    def _redact_field(self, name: str, value: object, limit: int | None) -> object:
        if isinstance(value, str) and name in self._names:
            return replace_unstorable(redact_known(value, self._secrets))
        return redact_value(value, self._secrets, limit)


def redact_value(value: object, secrets: tuple[str, ...] = (), limit: int | None = None) -> object:
    """`value` as what JSON knows, its texts without secrets and then cut to `limit` characters."""
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
            text = replace_unstorable(
                redact_secrets(value if isinstance(value, str) else str(value), secrets)
            )
            return (
                text
                if limit is None or len(text) <= limit
                else f"{text[:limit]}... ({len(text)} characters)"
            )


class RedactingFormatter(logging.Formatter):
    """A formatter that takes secrets out of its lines, longest first, so that no part of one is
    left over."""

    def __init__(self, secrets: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._secrets = secrets

    def add_secrets(self, secrets: tuple[str, ...]) -> None:
        """Takes `secrets` out too, from now on."""
        self._secrets = tuple(sorted({*self._secrets, *secrets}, key=len, reverse=True))


class _BaseFormatter(RedactingFormatter):
    """What both forms share. `with_words` has errors tell what they say, which may repeat what
    users, models and tools said."""

    def __init__(
        self, secrets: tuple[str, ...] = (), *, pid: int | None = None, with_words: bool = False
    ) -> None:
        super().__init__(secrets)
        self._pid = pid
        self._with_words = with_words

    def _format_event(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        # asyncio adds the error of a task that nobody waited for to its message.
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
        return (
            "".join(traceback.format_exception(error)).rstrip("\n")
            if self._with_words
            else format_bare_traceback(error)
        )


class JsonFormatter(_BaseFormatter):
    """`{"time", "level", "logger", "event", ...}`: what the call gave as `extra`, the request's id,
    `pid` and `exception` follow."""

    def __init__(
        self, secrets: tuple[str, ...] = (), *, pid: int | None = None, with_words: bool = False
    ) -> None:
        super().__init__(secrets, pid=pid, with_words=with_words)
        self._written = JsonWriter(secrets)

    def add_secrets(self, secrets: tuple[str, ...]) -> None:
        """Takes `secrets` out too, from now on."""
        super().add_secrets(secrets)
        self._written = JsonWriter(self._secrets)

    def format(self, record: logging.LogRecord) -> str:
        """The line of `record`."""
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
        return self._written(line, MAX_DEBUG_TEXT if record.levelno <= logging.DEBUG else None)


class LineFormatter(_BaseFormatter):
    """`time LEVEL logger message key=value ... request_id=...`; below it, indented, long texts of a
    debug line, and a traceback."""

    def __init__(
        self,
        secrets: tuple[str, ...] = (),
        *,
        pid: int | None = None,
        with_words: bool = False,
        is_coloured: bool = False,
    ) -> None:
        super().__init__(secrets, pid=pid, with_words=with_words)
        self._is_coloured = is_coloured

    def format(self, record: logging.LogRecord) -> str:
        """The line of `record`, and what stands below it."""
        is_detailed = record.levelno <= logging.DEBUG
        limit = MAX_DEBUG_TEXT if is_detailed else None
        short, below = [], []
        for name, value in self._collect_fields(record).items():
            value = redact_value(value, self._secrets, limit)
            if is_detailed and _is_long(value):
                below += format_block(name, value)
            else:
                short.append(f"{name}={_escape_line(value)}")
        if exception := self._format_exception(record):
            below += redact_lines(exception, self._secrets)
        level = f"{record.levelname:<7}"
        if self._is_coloured and record.levelname in _COLOURS:
            level = f"{_COLOURS[record.levelname]}{level}{_PLAIN}"
        event = _escape_line(redact_value(self._format_event(record), self._secrets, limit))
        first = " ".join((self.formatTime(record), level, record.name, event, *short))
        return "\n".join((first, *(f"    {line}" for line in below)))


def redact_lines(text: str, secrets: tuple[str, ...]) -> list[str]:
    """The lines of `text`, without secrets, each of which stays one line."""
    return [_escape_line(line) for line in redact_secrets(text, secrets).split("\n")]


def format_block(name: str, value: object) -> list[str]:
    """`value` as lines that a person can read, indented below `name`."""
    match value:
        case dict() if value and any(map(_is_long, value.values())):
            lines = [line for key, item in value.items() for line in format_block(str(key), item)]
        case list() if value and any(map(_is_long, value)):
            lines = [line for item in value for line in _format_item(item)]
        case str() if _is_long(value):
            lines = [_escape_line(line) for line in value.split("\n")]
        case _:
            return [f"{_escape_line(name)}: {_escape_line(_format_short(value))}"]
    return [f"{_escape_line(name)}:", *(f"  {line}" for line in lines)]


def _format_item(value: object) -> list[str]:
    lines = (
        [line for key, item in value.items() for line in format_block(str(key), item)]
        if isinstance(value, dict)
        else format_block("", value)
    )
    return [f"{'- ' if place == 0 else '  '}{line}" for place, line in enumerate(lines)]


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


def add_secrets(secrets: tuple[str, ...]) -> None:
    """Has `secrets` taken out of log lines and audit lines too, from now on."""
    for handler in (*logging.getLogger().handlers, *logging.getLogger("audit").handlers):
        if isinstance(formatter := handler.formatter, RedactingFormatter):
            formatter.add_secrets(secrets)


def _escape_line(value: object) -> str:
    """`value` as text without control characters, so that nobody begins a line of their own."""
    text = str(value)
    return text if text.isprintable() else repr(text)[1:-1]


def format_bare_traceback(error: BaseException, left: int = MAX_CAUSES) -> str:
    """The traceback of `error` and of its causes, each by its type alone, for its words may repeat
    what users and tools said."""
    lines = []
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and left > 0:
        lines += [format_bare_traceback(cause, left - 1), "\nof which came:\n"]
    lines += [
        "Traceback (most recent call last):",
        "".join(traceback.format_tb(error.__traceback__)).rstrip("\n"),
    ]
    reason = (
        f": {os.strerror(error.errno)}"
        if isinstance(error, OSError) and isinstance(error.errno, int)
        else ""
    )
    lines.append(
        f"{type(error).__module__}.{type(error).__qualname__}{reason}".removeprefix("builtins.")
    )
    if isinstance(error, BaseExceptionGroup):
        lines += (
            f"\nin it:\n\n{format_bare_traceback(inner, left - 1)}"
            for inner in error.exceptions[: max(0, left)]
        )
    return "\n".join(line for line in lines if line)


class _StderrHandler(logging.StreamHandler[Any]):
    """Writes to standard error; of a record that cannot be written it says where it comes from, and
    nothing of what it holds."""

    def handleError(self, record: logging.LogRecord) -> None:
        """See logging."""
        kind = getattr(sys.exc_info()[0], "__name__", "")
        failed = logging.makeLogRecord(
            {
                "name": record.name,
                "levelname": "ERROR",
                "levelno": logging.ERROR,
                "msg": "log.line_failed",
            }
        )
        failed.__dict__.update(file=record.pathname, line=record.lineno, cause=kind)
        try:
            self.stream.write(f"{self.format(failed)}\n")
        except (OSError, ValueError):
            return  # nobody reads the log any more


def is_json_format(log_format: LogFormat) -> bool:
    """Whether lines are JSON: `auto` is so where standard error is no terminal."""
    return log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())


def configure_logging(
    level: str,
    secrets: tuple[str, ...] = (),
    *,
    log_format: LogFormat = "text",
    is_one_of_several: bool = False,
) -> None:
    """Sends every logger's lines of at least `level` to standard error, `secrets` taken out.

    Lines of one of several processes tell which it is. At the level DEBUG errors tell what they
    say.
    """
    handler = _StderrHandler(sys.stderr)
    pid = os.getpid() if is_one_of_several else None
    with_words = level == "DEBUG"
    if is_json_format(log_format):
        handler.setFormatter(JsonFormatter(secrets, pid=pid, with_words=with_words))
    else:
        is_coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        handler.setFormatter(
            LineFormatter(secrets, pid=pid, with_words=with_words, is_coloured=is_coloured)
        )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # No line tells them, and to find them out takes a third of a line's time; see "Optimization" in
    # the documentation of logging.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
    # Its "Started server process" and the like say nothing that our own lines do not.
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.getLevelName(level)))
    logging.getLogger("uvicorn.access").setLevel(
        logging.WARNING
    )  # worker processes turn it on by themselves
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
