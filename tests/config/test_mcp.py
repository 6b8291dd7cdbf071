"""mcp.json: the labels that it defines."""

import json
from pathlib import Path

import pytest

from app.config.mcp import read_server_labels


@pytest.mark.parametrize(
    "content",
    [
        [{"server_label": "time", "command": "x"}, {"server_label": "wiki", "server_url": "https://example.org"}],
        {"mcpServers": {"time": {"command": "x"}, "wiki": {"url": "https://example.org"}}},
    ],
)
def test_both_forms_are_read(tmp_path: Path, content: object) -> None:
    (tmp_path / "mcp.json").write_text(json.dumps(content), encoding="utf-8")
    assert read_server_labels(tmp_path / "mcp.json") == (frozenset({"time", "wiki"}), [])


def test_an_absent_file_defines_none(tmp_path: Path) -> None:
    assert read_server_labels(tmp_path / "mcp.json") == (frozenset(), [])


@pytest.mark.parametrize("content", ["{", "5", "[{}]", '{"servers": {}}'])
def test_anything_else_is_a_fault(tmp_path: Path, content: str) -> None:
    (tmp_path / "mcp.json").write_text(content, encoding="utf-8")
    labels, faults = read_server_labels(tmp_path / "mcp.json")
    assert (labels, len(faults)) == (frozenset(), 1)
