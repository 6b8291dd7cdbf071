"""`ai-agent-service serve`: where it says that it serves, whom it lets in, and what it logs."""

import itertools
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from ai_agent_service.cli.serve import _open_listener
from ai_agent_service.config.settings import Settings
from tests.support.commands import invoke
from tests.support.mcp_definitions import KEYLESS, TIME, configure
from tests.support.processes import (
    ROOT,
    environment,
    get,
    list_models,
    logging_json,
    read_lines,
    serving,
)


def test_a_port_in_use_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = invoke(tmp_path, "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert done.stderr.startswith("Cannot listen on 127.0.0.1:")
    assert len(done.stderr.splitlines()) == 1


def test_the_service_says_where_to_go_and_ends_well_when_it_is_told_to(tmp_path: Path) -> None:
    with serving(tmp_path) as (url, process):
        assert get(f"{url}/health")["status"] == "healthy"
        assert list_models(url) == ["research_agent", "cli_agent"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


SLOW = """
import asyncio
from ai_agent_service.core.messages import ToolCall
from ai_agent_service.providers.demo import Demo
from ai_agent_service.tools import tool

@tool(timeout=60)
async def wait() -> str:
    await asyncio.sleep(60)

class Slow(Demo):
    name = "slow"

    def _tool_call(self, request):
        return ToolCall("c", "wait", "{}")
"""


def test_a_stream_that_does_not_end_in_time_is_told_that_the_service_stops(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW, encoding="utf-8")
    agent = {
        "agent_id": "a",
        "system_prompt": "x",
        "provider": "slow",
        "allowed_regular_tools": ["wait"],
    }
    (tmp_path / "agents.json").write_text(json.dumps([agent]), encoding="utf-8")
    with (
        serving(
            tmp_path,
            AGENT_CONFIG_FILE="agents.json",
            PLUGINS_DIR=str(tmp_path),
            SHUTDOWN_TIMEOUT="1",
        ) as (url, process),
        urllib.request.urlopen(
            f"{url}/agents/a/chat", data=b'{"message": "x", "stream": true}', timeout=20
        ) as answer,
    ):
        assert b"tool_started" in answer.readline()
        process.send_signal(signal.SIGTERM)
        rest = answer.read()
        assert process.wait(10) == 0
    assert b"shutting_down" in rest
    assert rest.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_to_be_told_to_stop_is_no_failure(tmp_path: Path, told: signal.Signals) -> None:
    with serving(tmp_path) as (_, process):
        process.send_signal(told)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read().strip().startswith("agents ")


def test_several_workers_share_the_port_and_the_options(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2", "--debug") as (url, process):
        assert get(f"{url}/health")["status"] == "healthy"
        with urllib.request.urlopen(
            f"{url}/agents/cli_agent/chat", data=b'{"message": "Hi."}', timeout=10
        ) as response:
            assert response.status == 200
        assert process.stderr is not None
        for line in process.stderr:
            if "model.asked" in line:
                break
        else:
            pytest.fail("no debug line came")


def test_where_no_person_reads_the_log_each_line_is_json_from_the_first_to_the_last(
    tmp_path: Path,
) -> None:
    with logging_json(tmp_path) as (url, log):
        assert get(f"{url}/health")["status"] == "healthy"
        with urllib.request.urlopen(
            f"{url}/agents/cli_agent/chat", data=b'{"message": "Hi."}', timeout=10
        ) as response:
            assert response.status == 200
    lines = read_lines(log)
    assert [line["outcome"] for line in lines if line["event"] == "agent.called"] == ["answered"]
    [ready] = [line for line in lines if line["event"] == "service.ready"]
    assert (ready["agents"], ready["needs_key"], "pid" in ready) == (
        ["research_agent", "cli_agent"],
        False,
        False,
    )
    assert any("demo provider" in note for note in ready["notes"])


@pytest.mark.timeout(90)
def test_each_of_several_workers_tells_which_it_is(tmp_path: Path) -> None:
    with (
        logging_json(tmp_path, "--workers", "2", "--debug") as (url, log),
        urllib.request.urlopen(
            f"{url}/agents/cli_agent/chat", data=b'{"message": "Hi."}', timeout=50
        ) as response,
    ):
        assert response.status == 200
    lines = [
        line for line in read_lines(log) if "level" in line
    ]  # which those of the audit log lack
    assert all(line["pid"] > 0 for line in lines)
    assert [line for line in lines if line["event"] == "model.asked"]
    [ready] = [line for line in lines if line["event"] == "service.ready"]
    assert ready["pid"] not in {line["pid"] for line in lines if line["event"] == "model.asked"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["one", "workers"])
def test_beyond_this_machine_the_service_does_not_start_without_a_key(
    tmp_path: Path, host: str, workers: tuple[str, ...]
) -> None:
    done = invoke(tmp_path, "serve", "--host", host, "--port", "0", *workers)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "The configuration has 1 fault:"
    for way_out in ("API_KEYS", "HOST=127.0.0.1", "ALLOW_UNAUTHENTICATED=true"):
        assert way_out in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists(), "a database was made to see that there is no key in it"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost"])
def test_on_this_machine_one_line_says_that_no_key_is_needed(tmp_path: Path, host: str) -> None:
    with serving(tmp_path, "--host", host) as (url, process):
        assert get(f"{url}/health")["access"] == "open"
        assert process.stderr is not None
        told = "".join(itertools.islice(process.stderr, 4))
    assert len(re.findall("no API key is needed", told)) == 1


def test_with_a_key_the_service_starts_anywhere(tmp_path: Path) -> None:
    with serving(tmp_path, "--host", "0.0.0.0", API_KEYS="a-key-of-20-characters") as (
        url,
        process,
    ):
        assert get(f"{url}/health")["access"] == "keys"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{url}/v1/models", timeout=5)
        request = urllib.request.Request(
            f"{url}/v1/models", headers={"x-api-key": "a-key-of-20-characters"}
        )
        with urllib.request.urlopen(request, timeout=5) as response:
            assert response.status == 200
        assert process.stderr is not None
        assert "an API key is needed" in "".join(itertools.islice(process.stderr, 4))


def test_a_key_that_was_made_before_lets_the_service_start_anywhere(tmp_path: Path) -> None:
    made = invoke(tmp_path, "keys", "create", "--name", "first")
    assert made.returncode == 0, made.stderr
    with serving(tmp_path, "--host", "0.0.0.0") as (url, _):
        request = urllib.request.Request(
            f"{url}/v1/models", headers={"Authorization": f"Bearer {made.stdout.strip()}"}
        )
        with urllib.request.urlopen(request, timeout=5) as response:
            assert response.status == 200
    assert invoke(tmp_path, "keys", "revoke", "first").returncode == 0
    assert invoke(tmp_path, "--host", "0.0.0.0", "--port", "0").returncode == 2


def test_to_be_open_to_everybody_is_said_loudly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "app.main", "--host", "0.0.0.0", "--port", "0"]
    started = environment(ALLOW_UNAUTHENTICATED="true")
    with subprocess.Popen(
        command, cwd=tmp_path, env=started, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        url = next(
            line.split("is ready: ")[1].strip() for line in process.stderr if "is ready: " in line
        )
        assert get(f"{url}/health")["access"] == "open"
        assert "OPEN TO EVERYBODY" in "".join(itertools.islice(process.stderr, 4))
        process.terminate()
    assert "WARNING" in first
    assert "WHOEVER REACHES 0.0.0.0:0 MAY USE EVERY AGENT" in first


def test_the_audit_log_is_a_file_of_json_lines(tmp_path: Path) -> None:
    asked = b'{"message": "Hi.", "user_id": "ada"}'
    with (
        serving(tmp_path, AUDIT_LOG_FILE="audit.jsonl") as (url, _),
        urllib.request.urlopen(f"{url}/agents/cli_agent/chat", data=asked, timeout=10) as response,
    ):
        request_id = response.headers["x-request-id"]
        response.read()
    [line] = [
        json.loads(line)
        for line in (tmp_path / "audit.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert (line["event"], line["agent_id"], line["user"], line["outcome"]) == (
        "agent.called",
        "cli_agent",
        "ada",
        "answered",
    )
    assert line["request_id"] == request_id
    assert line["time"].endswith("Z")


def test_an_audit_log_that_cannot_be_written_is_a_fault(tmp_path: Path) -> None:
    done = invoke(tmp_path, AUDIT_LOG_FILE="absent/audit.jsonl")
    assert done.returncode == 2
    assert "AUDIT_LOG_FILE: absent/audit.jsonl cannot be written" in done.stderr


def test_the_start_names_make_webui_where_there_is_one(tmp_path: Path) -> None:
    def told(folder: Path) -> str:
        command = [sys.executable, "-m", "app.main", "--port", "0"]
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(DATA_DIR=str(tmp_path)),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("  note "):
                break
        process.terminate()
        process.communicate(timeout=20)
        return "".join(lines)

    assert re.search(r"  web      make webui SERVICE_URL=http://127\.0\.0\.1:\d+ ", told(ROOT))
    assert "make webui" not in told(tmp_path)


def test_the_start_tells_of_servers_that_are_off(tmp_path: Path) -> None:
    unused = {**TIME, "server_label": "unused"}
    with serving(tmp_path, **configure(tmp_path, KEYLESS, unused, wiki={})) as (_, process):
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr is not None
        told = process.stderr.read()
    assert (
        "note     MCP servers that are off: wiki (NO_SUCH_WIKI_KEY is not set), unused (No agent"
        " uses it)\n" in told
    )


def test_serving_loads_no_library_of_the_terminal() -> None:
    source = "import sys, ai_agent_service.cli.serve; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert "uvicorn" in loaded
    assert [name for name in ("rich", "jinja2", "markdown_it", "fastmcp") if name in loaded] == []


def test_connections_are_refused_until_the_service_takes_them() -> None:
    """So that a proxy sends a request elsewhere while a replica starts."""
    with _open_listener(Settings.model_validate({"port": 0})) as bound:
        assert bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(bound.getsockname(), timeout=5)
