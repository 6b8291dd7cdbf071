"""The ways to start the program as a module."""

import subprocess
import sys
from pathlib import Path

import pytest

from ai_agent_service import __version__

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "module",
    [
        *("app.main", "app.cli", "ai_agent_service", "ai_agent_service.main"),
        *("ai_agent_service.cli", "ai_agent_service.cli.main"),
    ],
)
def test_each_module_runs_the_command_that_is_named(module: str) -> None:
    command = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == __version__
