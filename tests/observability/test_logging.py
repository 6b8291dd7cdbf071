"""Log lines: their two forms, what is taken out of them, and that each is one line."""

import asyncio
import io
import json
import logging
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from ai_agent_service.core import redaction
from ai_agent_service.observability.logging import LogFormat, configure_logging
from ai_agent_service.observability.request_id import current_request_id, select_request_id
from tests.support.commands import logging_restored

logger = logging.getLogger("ai_agent_service.somewhere")
SECRET = 'hunter2-"quoted"\\and\nlong'


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """It is."""
        return True


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Generator[None, None, None]:
    monkeypatch.delenv("NO_COLOR", raising=False)
    with logging_restored():
        yield


class Log:
    """Where lines go."""

    def __init__(self, stream: io.StringIO) -> None:
        self._stream = stream

    @property
    def text(self) -> str:
        """All that was written."""
        return self._stream.getvalue()

    @property
    def line(self) -> dict[str, Any]:
        """The only line, which is an object of JSON."""
        [found] = self.text.splitlines()
        line: dict[str, Any] = json.loads(found)
        return line


def configured(
    monkeypatch: pytest.MonkeyPatch,
    log_format: LogFormat = "json",
    level: str = "INFO",
    stream: io.StringIO | None = None,
    **more: Any,
) -> Log:
    """Logging that is configured so, with standard error a stream of the test's."""
    stream = stream or io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    configure_logging(level, (SECRET, "plain-secret-1"), log_format=log_format, **more)
    return Log(stream)


def test_a_line_is_one_json_object_with_its_fields_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    log = configured(monkeypatch)
    token = current_request_id.set("req_1")
    logger.warning(
        "run.failed",
        extra={
            "code": "x",
            "steps": 3,
            "odd": Path("p"),
            "level": "theirs",
            "calls": ["a"],
            "big": 2**70,
        },
    )
    current_request_id.reset(token)
    line = log.line
    assert line.pop("time").endswith("Z")
    assert list(line)[:3] == ["level", "logger", "event"]
    assert line == {
        "level": "WARNING",
        "logger": "ai_agent_service.somewhere",
        "event": "run.failed",
        "code": "x",
        "steps": 3,
        "odd": "p",
        "level_": "theirs",
        "calls": ["a"],
        "big": 2**70 if isinstance(line["big"], int) else str(2**70),
        "request_id": "req_1",
    }


@pytest.mark.parametrize(
    ("log_format", "stream", "is_json"),
    [
        ("auto", io.StringIO, True),
        ("auto", Terminal, False),
        ("json", Terminal, True),
        ("text", io.StringIO, False),
    ],
)
def test_lines_are_json_where_no_person_reads_them_unless_it_is_said(
    monkeypatch: pytest.MonkeyPatch, log_format: LogFormat, stream: type[io.StringIO], is_json: bool
) -> None:
    log = configured(monkeypatch, log_format, stream=stream())
    logger.info("it.happened")
    assert log.text.startswith("{") is is_json


@pytest.mark.parametrize("name", ["uvicorn.error", "somebody.elses", "asyncio"])
def test_lines_of_libraries_come_in_the_same_form(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    log = configured(monkeypatch)
    logging.getLogger(name).error("%d pieces", 3)
    assert (log.line["logger"], log.line["event"]) == (name, "3 pieces")


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
@pytest.mark.parametrize(
    "secret", [SECRET, "plain-secret-1", "sk-abcdefgh12345678", "Bearer abcdefgh"]
)
def test_secrets_are_taken_out_wherever_they_stand(
    monkeypatch: pytest.MonkeyPatch, log_format: LogFormat, level: str, secret: str
) -> None:
    log = configured(monkeypatch, log_format, level)
    told = {"a": secret, "b": {"c": [f"x {secret} y"], secret: 1}, "d": Path(secret)}
    line = logging.DEBUG if level == "DEBUG" else logging.INFO
    try:
        raise ValueError(f"no {secret}")
    except ValueError:
        logger.log(line, "with %s in it", secret, extra=told, exc_info=True)
    whole = log.text.replace("\\n", "\n").replace('\\"', '"').replace("\\\\", "\\")
    assert secret not in log.text
    assert secret not in whole
    assert '"quoted"' not in whole
    assert "[redacted]" in log.text
    if log_format == "json":
        assert log.line["a"] == "[redacted]"


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
@pytest.mark.parametrize("end", ["\n", "\r", "\x0b", "\x85", "\u2028", "\x1b[2J", "\x7f"])
def test_nobody_begins_a_line_of_their_own(
    monkeypatch: pytest.MonkeyPatch, log_format: LogFormat, level: str, end: str
) -> None:
    log = configured(monkeypatch, log_format, level)
    forged = f"x{end}2026-01-01 00:00:00,000 ERROR app forged"
    try:
        raise ValueError(forged)
    except ValueError:
        logger.log(
            logging.DEBUG if level == "DEBUG" else logging.INFO,
            forged,
            extra={"a": forged, "b": [{"c": forged}]},
            exc_info=True,
        )
    lines = log.text.removesuffix("\n").splitlines()
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith("2026-01-01") for line in lines)
    assert [line.startswith(" ") for line in lines] == [False] + [True] * (len(lines) - 1)
    if log_format == "json":
        assert log.line["a"] == forged


def test_half_a_surrogate_pair_and_odd_keys_still_make_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = configured(monkeypatch)
    logger.info("a\ud800b", extra={"nan": float("nan"), "keys": {(1, 2): "x", 3: "y"}})
    assert (log.line["event"], log.line["nan"]) == ("a\ufffdb", None)
    assert log.line["keys"] == {"(1, 2)": "x", "3": "y"}


def test_a_record_that_cannot_be_written_tells_where_it_is_from_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = configured(monkeypatch)
    logger.info("%d pieces", "canary")
    assert (log.line["event"], log.line["logger"], log.line["cause"]) == (
        "log.line_failed",
        "ai_agent_service.somewhere",
        "TypeError",
    )
    assert "canary" not in log.text


def fail(words: str) -> None:
    """Fails as a tool may, with what it was given in each of its errors."""
    try:
        int(words)
    except ValueError as error:
        raise ExceptionGroup(words, [OSError(28, words), KeyError(words)]) from error


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_an_error_is_told_by_its_place_and_type_and_at_debug_level_with_its_words(
    monkeypatch: pytest.MonkeyPatch, log_format: LogFormat, level: str
) -> None:
    log = configured(monkeypatch, log_format, level)
    try:
        fail("canary")
    except ExceptionGroup:
        logger.exception("tool.failed")
    for told in (
        "in fail",
        "ValueError",
        "ExceptionGroup",
        "OSError",
        "KeyError",
        "test_logging.py",
    ):
        assert told in log.text
    said = log.text.replace('fail("canary")', "").replace(
        'fail(\\"canary\\")', ""
    )  # which stands in the program
    assert ("canary" in said) is (level == "DEBUG")
    assert ("No space left on device" in said) is (level == "INFO")


def test_errors_that_caused_each_other_without_end_are_told_in_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = configured(monkeypatch)
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    logger.error("it.broke", exc_info=first)
    assert 10 < log.line["exception"].count("ValueError") < 20


async def test_an_error_that_nobody_waited_for_is_told_without_its_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = configured(monkeypatch)
    context = {
        "message": "Task exception was never retrieved",
        "exception": ValueError("canary"),
        "future": "canary",
    }
    asyncio.get_running_loop().default_exception_handler(context)
    assert log.line["event"] == "Task exception was never retrieved"
    assert "canary" not in log.text
    assert "ValueError" in log.line["exception"]


def test_one_of_several_processes_tells_which_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    log = configured(monkeypatch, is_one_of_several=True)
    logger.info("it.happened")
    assert log.line["pid"] == os.getpid()
    log = configured(monkeypatch)
    logger.info("it.happened")
    assert "pid" not in log.line


def test_long_texts_of_debug_lines_are_cut_and_never_within_a_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = configured(monkeypatch, level="DEBUG")
    logger.debug(
        "model.asked",
        extra={
            "messages": [{"text": "x" * 12_345}],
            "near": "y" * 1995 + "plain-secret-1" + "z" * 50,
        },
    )
    assert log.line["messages"] == [{"text": "x" * 2000 + "... (12345 characters)"}]
    assert log.line["near"] == "y" * 1995 + "[reda... (2055 characters)"


def test_debug_lines_on_a_terminal_are_indented_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    log = configured(monkeypatch, "auto", "DEBUG", Terminal())
    messages = [{"role": "user", "text": "Two\nlines"}, {"role": "tool", "text": "42"}]
    logger.debug(
        "model.asked",
        extra={
            "step": 1,
            "messages": messages,
            "tools": ["a", "b"],
            "settings": {"temperature": 0},
        },
    )
    first, *below = log.text.splitlines()
    assert first.endswith("DEBUG   ai_agent_service.somewhere model.asked step=1")
    assert below == [
        "    messages:",
        "      - role: user",
        "        text:",
        "          Two",
        "          lines",
        "      - role: tool",
        "        text: 42",
        "    tools: a, b",
        "    settings: temperature=0",
    ]


def test_a_terminal_shows_what_is_wrong_in_colour_unless_it_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = configured(monkeypatch, "auto", stream=Terminal())
    logger.error("it.broke", extra={"reason": "worn out"})
    assert "\x1b[31mERROR  \x1b[0m ai_agent_service.somewhere it.broke reason=worn out" in log.text
    monkeypatch.setenv("NO_COLOR", "1")
    log = configured(monkeypatch, "auto", stream=Terminal())
    logger.error("it.broke")
    assert "\x1b" not in log.text


def test_whatever_looks_like_a_key_is_looked_for() -> None:
    for prefix in redaction._PREFIXES:
        for sign in "-_":
            assert (
                redaction.redact_secrets(f"a {prefix.upper()}{sign}abcdefgh1 b") == "a [redacted] b"
            )


def test_an_id_with_an_end_of_line_is_not_taken() -> None:
    assert select_request_id("abc") == "abc"
    assert select_request_id("abc\n") != "abc\n"
