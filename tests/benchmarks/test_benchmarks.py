"""python -m benchmarks."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.rows import ROWS

ROOT = Path(__file__).parent.parent.parent
OF_MEMORY = [
    name
    for name in ROWS
    if name.startswith(("session", "history", "postgres", "million")) or name.endswith("-database")
]
OTHERS = [name for name in ROWS if name not in OF_MEMORY]


@pytest.mark.slow
@pytest.mark.timeout(190)
@pytest.mark.parametrize(
    "names", [OTHERS, OF_MEMORY], ids=["a service without memory", "a service with memory"]
)
def test_a_quick_run_prints_a_number_for_every_row(names: list[str]) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", *names]
    finished = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )
    assert finished.returncode == 0, finished.stderr
    lines = [line for line in finished.stdout.splitlines() if not line.startswith("  ")]
    assert len(lines) == len(names)
    for name, line in zip(names, lines, strict=True):
        row = ROWS[name]
        number = r"-?\d+\.\d\d"
        figures = line.removeprefix(row.title)
        target = "- +" if row.target is None else rf"{row.target:g} {row.unit or 'P'} +(ok|over)"
        assert re.fullmatch(rf" +{number} +{number} +{number} +{target}", figures), line
