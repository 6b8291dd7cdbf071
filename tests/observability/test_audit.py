"""Audit lines: their form, and what is taken out of them."""

import json
import logging
from collections.abc import Generator
from pathlib import Path

import pytest

from ai_agent_service.observability.audit import audit, configure_audit
from ai_agent_service.observability.logging import configure_logging
from ai_agent_service.observability.request_id import current_request_id


@pytest.fixture
def file(tmp_path: Path) -> Generator[Path, None, None]:
    """Where audit lines go while the test runs."""
    before = (audit.handlers, audit.propagate, audit.level)
    configure_audit(tmp_path / "audit.jsonl", ("hunter2hunter2",))
    yield tmp_path / "audit.jsonl"
    for handler in audit.handlers:
        handler.close()
    audit.handlers, audit.propagate = before[:2]
    audit.setLevel(before[2])


def test_a_line_is_one_json_object_with_the_requests_id(file: Path) -> None:
    token = current_request_id.set("req_1")
    audit.info(
        "agent.called",
        extra={
            "agent_id": "helper",
            "user": 'a "quoted"\nname',
            "scopes": ["chat"],
            "odd": Path("x"),
        },
    )
    current_request_id.reset(token)
    [text] = file.read_text(encoding="utf-8").splitlines()
    line = json.loads(text)
    assert line.pop("time").endswith("Z")
    assert line == {
        "event": "agent.called",
        "request_id": "req_1",
        "agent_id": "helper",
        "user": 'a "quoted"\nname',
        "scopes": ["chat"],
        "odd": "x",
    }


def test_secrets_are_taken_out(file: Path) -> None:
    audit.info("agent.called", extra={"user": "hunter2hunter2", "tool": "sk-abcdefgh12345678"})
    line = json.loads(file.read_text(encoding="utf-8"))
    assert (line["user"], line["tool"]) == ("[redacted]", "[redacted]")


@pytest.mark.parametrize(
    "user", ['bearer x"', "sk-aaaaaaaaaaaa", "Bearer \\", "pk-fire-brigade-7", 'a"b\\c\nd']
)
def test_no_name_breaks_its_line_or_blanks_itself(file: Path, user: str) -> None:
    audit.info("agent.called", extra={"user": user, "run_id": "run_1"})
    [text] = file.read_text(encoding="utf-8").splitlines()
    assert (json.loads(text)["user"], json.loads(text)["run_id"]) == (user, "run_1")


def test_audit_lines_are_told_whatever_the_log_level_is_and_there_alone(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before = root.level, root.handlers
    configure_logging("CRITICAL")
    try:
        audit.info("key.created")
    finally:
        root.setLevel(before[0])
        root.handlers = before[1]
    assert json.loads(file.read_text(encoding="utf-8"))["event"] == "key.created"
    assert capsys.readouterr().err == ""
