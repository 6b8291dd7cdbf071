"""All commands: their faults end with code 2."""

import json
from pathlib import Path

import pytest

from tests.support.commands import invoke


@pytest.mark.parametrize(
    "command", [(), ("check",), ("chat", "research_agent"), ("--workers", "2")]
)
def test_faults_end_every_command_with_code_2_and_all_of_them_readable(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "agents.json").write_text(
        '[{"agent_id": "a", "sytem_prompt": "x"}, {"agent_id": "b", "system_prompt_file": "no.txt",'
        ' "provider": "dmo"}]',
        encoding="utf-8",
    )
    done = invoke(
        tmp_path,
        *command,
        AGENT_CONFIG_FILE="agents.json",
        PLUGINS_DIR="absent",
        REQUEST_TIMEOUT="soon",
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "The configuration has 6 faults:"
    assert "environment: REQUEST_TIMEOUT: " in done.stderr
    assert (
        "agents.json: agent 'b': provider: 'dmo' is not a provider. Did you mean 'demo'?"
        in done.stderr
    )
    assert (
        "agents.json: agent 'a': sytem_prompt: this field is not known. Did you mean"
        " 'system_prompt'?" in done.stderr
    )
    assert "agents.json: agent 'b': system_prompt_file: " in done.stderr
    assert "absent: PLUGINS_DIR: this is not a folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_setting_ends_with_code_2_and_its_name(tmp_path: Path) -> None:
    done = invoke(tmp_path, PORT="many")
    assert done.returncode == 2
    assert "environment: PORT: " in done.stderr


def test_an_unknown_option_or_command_is_told(tmp_path: Path) -> None:
    for arguments in (("--nonsense",), ("nonsense",), ("chat",)):
        done = invoke(tmp_path, *arguments)
        assert done.returncode == 2
        assert "Usage: ai-agent-service" in done.stderr


def test_what_is_done_to_keys_stands_in_the_audit_log(tmp_path: Path) -> None:
    for arguments in (("create", "--name", "first"), ("rotate", "first"), ("revoke", "first")):
        done = invoke(tmp_path, "keys", *arguments, AUDIT_LOG_FILE="audit.jsonl")
        assert (done.returncode, '"event"' in done.stderr) == (0, False), done.stderr
    lines = [
        json.loads(line)
        for line in (tmp_path / "audit.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [(line["event"], line["key_name"]) for line in lines] == [
        (f"key.{what}", "first") for what in ("created", "rotated", "revoked")
    ]
