"""The npm package `openai` against a real server."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ai_agent_service.core.errors import ProviderUnavailableError
from ai_agent_service.core.events import TextDelta
from ai_agent_service.server.application import create_app
from tests.support.fake_provider import Script, calls, says
from tests.support.openai_schema import Recorded
from tests.support.service import configuration, running

FOLDER = Path(__file__).parent / "npm"
INSTALL = ("ci", "--no-audit", "--no-fund", "--ignore-scripts")


@pytest.fixture
def node() -> str:
    """The command that runs JavaScript, with the packages of package-lock.json in place."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        problem = "node and npm are needed to test the npm package openai"
        if os.environ.get("CI"):
            pytest.fail(problem)
        pytest.skip(problem)
    installed = FOLDER / "node_modules" / ".installed"
    locked = hashlib.sha256((FOLDER / "package-lock.json").read_bytes()).hexdigest()
    if not installed.exists() or installed.read_text(encoding="ascii") != locked:
        done = subprocess.run(
            [npm, *INSTALL], cwd=FOLDER, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        installed.write_text(locked, encoding="ascii")
    return node


@pytest.mark.xdist_group("npm")
@pytest.mark.timeout(180)
def test_the_javascript_client_is_served(tmp_path: Path, node: str) -> None:
    script = Script(
        says("Good ", "day."),
        calls(("calculate", {"expression": "6*7"}), ("weather", {"city": "Oslo"})),
        says("42, and sunny."),
        says('{"name": "Ada", "age": 36}'),
        [TextDelta("Half"), ProviderUnavailableError("It is down.")],
    )
    recorded = Recorded(create_app(configuration(tmp_path, script)))
    with running(recorded) as address:
        command = [node, "client.mjs", f"{address}/v1"]
        done = subprocess.run(
            command, cwd=FOLDER, capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == 0, done.stderr
    learnt: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert learnt == [
        {"step": "models", "models": ["helper"]},
        {"step": "stream", "pieces": ["Good ", "day."], "total_tokens": 12},
        {"step": "tools", "text": "42, and sunny.", "called": [["weather", '{"city":"Oslo"}']]},
        {"step": "structured", "person": {"name": "Ada", "age": 36}},
        {
            "step": "error",
            "kind": "NotFoundError",
            "status": 404,
            "code": "model_not_found",
            "has_request_id": True,
        },
        {
            "step": "broken stream",
            "half": ["", "Half"],
            "kind": "APIError",
            "code": "provider_unavailable",
        },
    ]
    assert [message.text for message in script.requests[2].messages[-2:]] == ["42", "sunny in Oslo"]
    recorded.check()


def test_the_locked_packages_name_no_registry() -> None:
    lock = (FOLDER / "package-lock.json").read_text(encoding="utf-8")
    packages = json.loads(lock)["packages"]
    assert {name for name in packages if name} == {"node_modules/openai", "node_modules/zod"}
    assert all(package["integrity"] for name, package in packages.items() if name)
    assert not re.search(r'"resolved"|registry', lock)
