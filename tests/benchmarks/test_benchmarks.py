"""python -m benchmarks."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.rows import ROWS

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.timeout(120)
def test_a_quick_run_prints_a_number_for_every_row() -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert finished.returncode == 0, finished.stderr
    _, *lines = finished.stdout.splitlines()
    assert len(lines) == len(ROWS)
    for row, line in zip(ROWS.values(), lines, strict=True):
        number = r"-?\d+\.\d\d"
        figures = line.removeprefix(row.title)
        assert re.fullmatch(rf" +{number} +{number} +{number} +{row.target:g} {row.unit or 'P'} +(ok|over)", figures), line
