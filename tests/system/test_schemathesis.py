"""What schemathesis makes of our OpenAPI description, and of the service by it: no request has it
answer with something else."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.support.processes import environment, serving

pytestmark = pytest.mark.slow

SECONDS = 20
"""How long requests are made up; a run takes some seconds more."""

KEY = "a-key-for-schemathesis"


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "key", [(), ("-H", f"Authorization: Bearer {KEY}")], ids=["without a key", "with a key"]
)
def test_no_request_is_answered_with_what_is_not_described(
    tmp_path: Path, key: tuple[str, ...]
) -> None:
    agent = {
        "agent_id": "helper",
        "system_prompt": "You help.",
        "provider": "demo",
        "allowed_regular_tools": ["calculate"],
        "resources": ["memory"],
    }
    (tmp_path / "agents.json").write_text(json.dumps([agent]), encoding="utf-8")
    with serving(
        tmp_path,
        API_KEYS=KEY,
        AGENT_CONFIG_FILE="agents.json",
        AUDIT_LOG_FILE="audit.jsonl",
        LOG_LEVEL="CRITICAL",
    ) as (url, _):
        description = tmp_path / "openapi.json"
        asked = urllib.request.Request(f"{url}/openapi.json", headers={"x-api-key": KEY})
        with urllib.request.urlopen(asked, timeout=20) as response:
            description.write_bytes(response.read())
        command = [
            str(Path(sys.executable).parent / "schemathesis"),
            "run",
            str(description),
            "--url",
            url,
            *key,
        ]
        # A description cannot tell all that makes a request one that cannot be done: a NUL, a model
        # that may not be chosen.
        options = [
            "--exclude-checks",
            "positive_data_acceptance",
            "--suppress-health-check",
            "all",
            "--warnings",
            "off",
        ]
        bounds = [
            "--max-time",
            str(SECONDS),
            "--max-examples",
            "20",
            "--request-timeout",
            "20",
            "--seed",
            "1",
            "--no-shrink",
        ]
        done = subprocess.run(
            [*command, *options, *bounds, "--no-color"],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 0, done.stdout
    routes = sum(map(len, json.loads(description.read_bytes())["paths"].values()))
    assert f"{routes}/{routes}" in done.stdout
