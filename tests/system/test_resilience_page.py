"""docs/resilience.md: each fault and attack names tests that exist."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "resilience.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith(("| fault |", "| attack |"))
]
FINDINGS = {*(f"F{n}" for n in range(1, 10)), *(f"S{n}" for n in range(1, 14))}


@cache
def find_tests(file: str) -> frozenset[str]:
    """Return the names of the tests in a file."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 100
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (ROOT / file).exists() or name not in find_tests(file)
    ]
    assert missing == []


def test_every_row_has_a_fault_what_must_be_true_and_a_test() -> None:
    assert len(ROWS) > 60
    for row in ROWS:
        assert len(row) == 3, row
        assert all(row), row
        assert "`tests/" in row[2], row


def test_every_finding_has_a_row() -> None:
    found = {name for row in ROWS for name in re.findall(r"\b[FS]\d+\b", row[0])}
    assert found >= FINDINGS
