"""Reading the configuration anew, as an operator has a service do: by a signal, by the command, by
changing a file."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ai_agent_service.cli.reload import reload
from tests.support.events import wait_until
from tests.support.processes import Terminal, list_models, list_workers, run, serving

KEY = "a-key-of-20-characters"


def write(folder: Path, *agents: str, prompt: str = "You help.") -> None:
    """Replaces agent_config.json by one with these agents, in one step."""
    found = [{"agent_id": agent, "system_prompt": prompt, "provider": "demo"} for agent in agents]
    (folder / "new").write_text(json.dumps(found), encoding="utf-8")
    (folder / "new").replace(folder / "agents.json")


def break_it(folder: Path) -> None:
    """Replaces agent_config.json by one with two faults."""
    (folder / "agents.json").write_text(
        '[{"agent_id": "a b", "system_prompt": "x"}, {"agent_id": "c"}]', encoding="utf-8"
    )


def line_with(process: "subprocess.Popen[str]", text: str) -> str:
    """The next line of the log that has `text`."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return line
    pytest.fail(f"no line with {text!r} came")


def asked(*arguments: str, **variables: str) -> Result:
    """What `reload` comes to, in this process, for another one takes its time to start."""
    return CliRunner().invoke(reload, arguments, env=variables)


FILES: dict[str, Any] = {"AGENT_CONFIG_FILE": "agents.json"}


def test_sighup_has_the_service_reload_and_a_faulty_file_is_told_and_changes_nothing(
    tmp_path: Path,
) -> None:
    write(tmp_path, "a")
    with serving(tmp_path, **FILES) as (url, process):
        write(tmp_path, "b")
        process.send_signal(signal.SIGHUP)
        assert "added_agents=b@" in line_with(process, "config.reloaded")
        assert list_models(url) == ["b"]
        break_it(tmp_path)
        process.send_signal(signal.SIGHUP)
        assert "fault=agents.json: agent 'a b': agent_id: an id has letters" in line_with(
            process, "config.rejected"
        )
        assert "fault=agents.json: agent 'c': system_prompt: the agent has no prompt" in line_with(
            process, "config.rejected"
        )
        assert list_models(url) == ["b"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_the_command_has_the_service_reload_and_prints_what_became_of_it(tmp_path: Path) -> None:
    write(tmp_path, "a", "b")
    with serving(tmp_path, **FILES) as (url, _):
        write(tmp_path, "b", "c", prompt="Another.")
        done = run(tmp_path, "reload", "--url", url)
        assert (done.returncode, done.stderr) == (0, "")
        versions = [line.rpartition(" ")[2].strip("()") for line in done.stdout.splitlines()]
        assert done.stdout.splitlines() == [
            f"added the agent c ({versions[0]})",
            f"changed the agent b ({versions[1]})",
            "removed the agent a",
        ]
        port = url.rpartition(":")[2]
        assert asked(PORT=port).stdout == "Nothing has changed.\n"
        break_it(tmp_path)
        result = asked(PORT=port)
        assert result.exit_code == 2
        shown, *faults = result.stderr.splitlines()
        assert shown == "The configuration has 2 faults, and the service goes on as it was:"
        assert faults == run(tmp_path, "check", **FILES).stderr.splitlines()[1:]
        assert list_models(url) == ["b", "c"]


def test_the_command_says_why_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "a")
    made = run(tmp_path, "keys", "create", "--name", "x").stdout.strip()
    with serving(tmp_path, API_KEYS=KEY, **FILES) as (url, _):
        for variables in ({}, {"AAS_API_KEY": "another-key-that-is-none"}):
            result = asked("--url", url, **variables)
            assert result.exit_code == 1
            assert "answered 401" in result.stderr
            assert "AAS_API_KEY" in result.stderr
            assert "another-key" not in result.stderr
        (tmp_path / ".env").write_text(f"AAS_API_KEY={KEY}\n", encoding="utf-8")
        assert asked("--url", url).stdout == "Nothing has changed.\n"
        assert "answered 403" in asked("--url", url, AAS_API_KEY=made).stderr
    result = asked("--url", url)
    assert (
        result.exit_code,
        "cannot be reached" in result.stderr,
        "Traceback" in result.output,
    ) == (1, True, False)
    result = asked("--url", "file:///etc/passwd")
    assert (result.exit_code, "http://" in result.stderr) == (2, True)


def test_with_reload_config_a_changed_file_is_enough(tmp_path: Path) -> None:
    write(tmp_path, "a")
    with serving(tmp_path, RELOAD_CONFIG="true", **FILES) as (url, process):
        write(tmp_path, "b")
        wait_until(lambda: list_models(url) == ["b"])
        break_it(tmp_path)
        line_with(process, "config.rejected")
        assert list_models(url) == ["b"]
        write(tmp_path, "c")
        wait_until(lambda: list_models(url) == ["c"])


def catches_hangups(pid: int) -> bool:
    """Whether the process has a handler of its own for SIGHUP; see SigCgt in proc_pid_status(5)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) & 1)


def test_every_worker_reloads_and_none_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, "a")
    with serving(tmp_path, "--workers", "2", **FILES) as (url, process):
        wait_until(lambda: sum(map(catches_hangups, list_workers(process))) == 2)
        before = list_workers(process)
        assert len(before) == 2
        write(tmp_path, "b")
        process.send_signal(signal.SIGHUP)
        for _ in range(2):
            assert "added_agents=b@" in line_with(process, "config.reloaded")
        assert {tuple(list_models(url)) for _ in range(10)} == {("b",)}
        assert list_workers(process) == before


def test_a_terminal_that_is_closed_ends_the_service_and_a_signal_does_not(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "--port", "0")
    terminal.wait_for("is ready")
    os.kill(terminal.pid, signal.SIGHUP)
    terminal.wait_for("config.unchanged")
    os.close(terminal.fd)
    ended: list[int] = []

    def has_ended() -> bool:
        pid, status = os.waitpid(terminal.pid, os.WNOHANG)
        ended.append(status)
        return pid == terminal.pid

    wait_until(has_ended)
    assert os.waitstatus_to_exitcode(ended[-1]) == 0
