"""The terminal: the commands as an operator runs them."""

import contextlib
import itertools
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from ai_agent_service.config.settings import Settings

ROOT = Path(__file__).parents[2]
SHIPPED = {
    "AGENT_CONFIG_FILE": str(ROOT / "agent_config.json"),
    "PROMPTS_DIR": str(ROOT / "prompts"),
    "DEFAULT_PROVIDER": "demo",
}


def environment(**variables: str) -> dict[str, str]:
    own = {
        name: value
        for name, value in os.environ.items()
        if name.lower() not in Settings.model_fields and name[:5] != "OTEL_"
    }
    return {
        **own,
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "100",
        "LOG_FORMAT": "text",
        **SHIPPED,
        **variables,
    }


def run(
    folder: Path, *arguments: str, stdin: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """`python -m app.main` with `arguments`, in `folder`."""
    command = [sys.executable, "-m", "app.main", *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(**variables),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@contextlib.contextmanager
def serving(
    folder: Path, *arguments: str, **variables: str
) -> Generator[tuple[str, "subprocess.Popen[str]"], None, None]:
    """A service on a free port, once it says that it is ready; gives its address."""
    command = [sys.executable, "-m", "app.main", "--port", "0", *arguments]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(**variables), stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        url = ""
        for line in process.stderr:
            if "is ready: " in line:
                url = line.split("is ready: ")[1].strip()
                break
        assert url, f"the service ended with {process.wait(5)}"
        yield url, process
    finally:
        process.terminate()
        process.communicate(timeout=20)


def get(url: str) -> Any:
    """The JSON at `url`, asked until a server of several processes is up."""
    deadline = time.monotonic() + 40
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return json.load(response)
        except OSError:
            assert time.monotonic() < deadline


TIME = {
    "server_label": "time",
    "command": sys.executable,
    "args": ["-m", "mcp_server_time", "--local-timezone", "UTC"],
}
KEYLESS = {
    "server_label": "wiki",
    "server_url": "https://wiki.invalid/mcp",
    "header": {"Authorization": "Bearer ${NO_SUCH_WIKI_KEY}"},
}


@contextlib.contextmanager
def dead_server() -> Generator[dict[str, str], None, None]:
    """A server `dead` at an address where nobody listens."""
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        yield {
            "server_label": "dead",
            "server_url": f"http://127.0.0.1:{nobody_listens.getsockname()[1]}/mcp",
        }


def configure(folder: Path, *servers: dict[str, Any], **allowed: Any) -> dict[str, str]:
    """The environment of a command in `folder` with `servers` and one agent that is `allowed` to
    use them."""
    agent = {"agent_id": "a", "system_prompt": "x", "allowed_mcp_servers": allowed}
    (folder / "agents.json").write_text(json.dumps([agent]), encoding="utf-8")
    (folder / "mcp.json").write_text(json.dumps(servers), encoding="utf-8")
    return {"AGENT_CONFIG_FILE": "agents.json"}


def row_of(output: str, label: str) -> list[str]:
    """The cells of the server `label` in the table of `check --connect`."""
    return re.split(
        r"  +", next(line for line in output.splitlines() if line.startswith(f"{label}  "))
    )


def test_check_shows_the_shipped_agents(tmp_path: Path) -> None:
    done = run(tmp_path, "check")
    assert (done.returncode, done.stderr) == (0, "")
    assert "research_agent" in done.stdout
    assert "get_current_datetime, calculate" in done.stdout
    assert "Agents with the provider auto use: demo" in done.stdout
    assert "2 agents in" in done.stdout


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
    done = run(
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
    done = run(tmp_path, PORT="many")
    assert done.returncode == 2
    assert "environment: PORT: " in done.stderr


def test_an_unknown_option_or_command_is_told(tmp_path: Path) -> None:
    for arguments in (("--nonsense",), ("nonsense",), ("chat",)):
        done = run(tmp_path, *arguments)
        assert done.returncode == 2
        assert "Usage: ai-agent-service" in done.stderr


def test_a_port_in_use_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run(tmp_path, "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert done.stderr.startswith("Cannot listen on 127.0.0.1:")
    assert len(done.stderr.splitlines()) == 1


def test_the_service_says_where_to_go_and_ends_well_when_it_is_told_to(tmp_path: Path) -> None:
    with serving(tmp_path) as (url, process):
        assert get(f"{url}/health")["status"] == "healthy"
        assert [model["id"] for model in get(f"{url}/v1/models")["data"]] == [
            "research_agent",
            "cli_agent",
        ]
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


def lines_of(log: Path) -> list[dict[str, Any]]:
    """The lines of a log of JSON; the last one may be on its way."""
    return [
        json.loads(line)
        for line in log.read_text(encoding="utf-8").splitlines(keepends=True)
        if line.endswith("\n")
    ]


@contextlib.contextmanager
def logging_json(
    folder: Path, *arguments: str, ready: int = 1, **variables: str
) -> Generator[tuple[str, Path], None, None]:
    """A service whose log, a file, is JSON throughout, once `ready` lines say so; gives its address
    and the log."""
    log = folder / "log"
    command = [sys.executable, "-m", "app.main", "--port", "0", *arguments]
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment(LOG_FORMAT="auto", **variables), stderr=file
        )
    try:
        deadline = time.monotonic() + 30
        while (
            len(found := [line for line in lines_of(log) if line["event"] == "service.ready"])
            < ready
        ):
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.05)
        yield found[0]["url"], log
    finally:
        process.terminate()
        process.wait(20)


def test_where_no_person_reads_the_log_each_line_is_json_from_the_first_to_the_last(
    tmp_path: Path,
) -> None:
    with logging_json(tmp_path) as (url, log):
        assert get(f"{url}/health")["status"] == "healthy"
        with urllib.request.urlopen(
            f"{url}/agents/cli_agent/chat", data=b'{"message": "Hi."}', timeout=10
        ) as response:
            assert response.status == 200
    lines = lines_of(log)
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
    lines = [line for line in lines_of(log) if "level" in line]  # which those of the audit log lack
    assert all(line["pid"] > 0 for line in lines)
    assert [line for line in lines if line["event"] == "model.asked"]
    [ready] = [line for line in lines if line["event"] == "service.ready"]
    assert ready["pid"] not in {line["pid"] for line in lines if line["event"] == "model.asked"}


def test_debug_shows_on_a_terminal_what_a_model_is_asked(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "chat", "cli_agent", "--debug", "-m", "What is 6*7?")
    terminal.wait_for("model.asked")
    terminal.wait_for("      - role: user\r\n        text: What is 6*7?\r\n")
    terminal.wait_for("tool.started tool=calculate")
    terminal.wait_for("model.answered")
    assert terminal.end() == 0


def test_an_agent_that_cannot_answer_is_told_of(tmp_path: Path) -> None:
    done = run(tmp_path, "check", DEFAULT_PROVIDER="openai", OPENAI_API_KEY="k")
    assert done.returncode == 0
    assert "no: The agent names no model for openai" in done.stdout
    assert (
        "no: OPENROUTER_API_KEY must be set for openrouter."
        in run(tmp_path, "check", DEFAULT_PROVIDER="openrouter").stdout
    )
    assert run(tmp_path, "check", DEFAULT_PROVIDER="azure_openai_cc").returncode == 0


def test_check_shows_whom_an_agent_falls_back_to(tmp_path: Path) -> None:
    others = [
        {"provider": "openrouter", "model": "a/b"},
        {"provider": "openai"},
        {"provider": "demo"},
    ]
    agent = {
        "agent_id": "helper",
        "system_prompt": "You help.",
        "provider": "openai",
        "model": "big",
        "fallback": others,
    }
    (tmp_path / "agents.json").write_text(json.dumps([agent]), encoding="utf-8")
    done = run(tmp_path, "check", AGENT_CONFIG_FILE="agents.json", OPENROUTER_API_KEY="k")
    assert done.returncode == 0
    assert re.search(r"^helper +openai +big +- +- +yes$", done.stdout, re.MULTILINE)
    missing = "(no: OPENAI_API_KEY must be set for openai.)"
    assert (
        f"helper asks openai/big {missing}; if that fails: openrouter/a/b, openai {missing}, demo\n"
        in done.stdout
    )
    agent["fallback"] = [{"provider": "opnai"}]
    (tmp_path / "agents.json").write_text(json.dumps([agent]), encoding="utf-8")
    done = run(tmp_path, "check", AGENT_CONFIG_FILE="agents.json")
    assert done.returncode == 2
    assert (
        "agent 'helper': fallback.0.provider: 'opnai' is not a provider. Did you mean 'openai'?"
        in done.stderr
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["one", "workers"])
def test_beyond_this_machine_the_service_does_not_start_without_a_key(
    tmp_path: Path, host: str, workers: tuple[str, ...]
) -> None:
    done = run(tmp_path, "serve", "--host", host, "--port", "0", *workers)
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
    made = run(tmp_path, "keys", "create", "--name", "first")
    assert made.returncode == 0, made.stderr
    with serving(tmp_path, "--host", "0.0.0.0") as (url, _):
        request = urllib.request.Request(
            f"{url}/v1/models", headers={"Authorization": f"Bearer {made.stdout.strip()}"}
        )
        with urllib.request.urlopen(request, timeout=5) as response:
            assert response.status == 200
    assert run(tmp_path, "keys", "revoke", "first").returncode == 0
    assert run(tmp_path, "--host", "0.0.0.0", "--port", "0").returncode == 2


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


def test_what_is_done_to_keys_stands_in_the_audit_log(tmp_path: Path) -> None:
    for arguments in (("create", "--name", "first"), ("rotate", "first"), ("revoke", "first")):
        done = run(tmp_path, "keys", *arguments, AUDIT_LOG_FILE="audit.jsonl")
        assert (done.returncode, '"event"' in done.stderr) == (0, False), done.stderr
    lines = [
        json.loads(line)
        for line in (tmp_path / "audit.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [(line["event"], line["key_name"]) for line in lines] == [
        (f"key.{what}", "first") for what in ("created", "rotated", "revoked")
    ]


def test_an_audit_log_that_cannot_be_written_is_a_fault(tmp_path: Path) -> None:
    done = run(tmp_path, AUDIT_LOG_FILE="absent/audit.jsonl")
    assert done.returncode == 2
    assert "AUDIT_LOG_FILE: absent/audit.jsonl cannot be written" in done.stderr


def test_chat_answers_one_message(tmp_path: Path) -> None:
    done = run(tmp_path, "chat", "research_agent", "-m", "What is (17 + 4) * 2?")
    assert (done.returncode, done.stderr) == (0, "")
    assert '> calculate {"expression":"(17 + 4) * 2"}' in done.stdout
    assert done.stdout.endswith("(17 + 4) * 2 = **42**\n")


def test_chat_remembers_what_was_said(tmp_path: Path) -> None:
    done = run(tmp_path, "chat", "cli_agent", stdin="My name is Ada.\n\nWhat is my name?\n")
    assert done.returncode == 0
    assert "Your name is Ada." in done.stdout


def test_chat_tells_of_an_unknown_agent_and_of_bad_settings(tmp_path: Path) -> None:
    unknown = run(tmp_path, "chat", "nobody", "-m", "x")
    assert unknown.returncode == 2
    assert "There are: research_agent, cli_agent." in unknown.stderr
    assert "'x' is not NAME=VALUE" in run(tmp_path, "chat", "cli_agent", "--setting", "x").stderr
    assert (
        "messages cannot be set"
        in run(tmp_path, "chat", "cli_agent", "--setting", "messages=1").stderr
    )


def test_chat_fails_when_the_agent_cannot_answer(tmp_path: Path) -> None:
    done = run(tmp_path, "chat", "cli_agent", "-m", "x", DEFAULT_PROVIDER="openrouter")
    assert done.returncode == 1
    assert "OPENROUTER_API_KEY" in done.stdout


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:  # the child
            os.chdir(folder)
            os.execve(
                sys.executable,
                [sys.executable, "-m", "app.main", *arguments],
                {**environment(), "TERM": "xterm"},
            )
        self.seen = ""

    def wait_for(self, text: str, *, pressing: str = "") -> None:
        """Reads until `text` came, what follows is for the next wait; types `pressing` whenever
        nothing comes for half a second."""
        deadline = time.monotonic() + 20
        while text not in self.seen:
            ready, _, _ = select.select(
                [self.fd], [], [], 0.5 if pressing else deadline - time.monotonic()
            )
            assert time.monotonic() < deadline, f"{text!r} did not come; seen: {self.seen!r}"
            if not ready:
                os.write(self.fd, pressing.encode())
                continue
            self.seen += os.read(self.fd, 65536).decode(errors="replace")
        self.seen = self.seen.split(text, 1)[1]

    def type(self, text: str) -> None:
        self.seen = ""
        os.write(self.fd, text.encode())

    def end(self) -> int:
        """The exit code, once what is left was read."""
        with contextlib.suppress(OSError):
            while os.read(self.fd, 65536):
                pass
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


def test_chat_in_a_terminal_sets_markdown_stops_and_goes_on(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "chat", "research_agent")
    terminal.wait_for("> ")
    terminal.type("help\n")
    terminal.wait_for("demo")
    terminal.type("\x03")
    terminal.wait_for("stopped")
    terminal.wait_for("> ")
    terminal.type("What is 6*7?\n")
    terminal.wait_for("calculate")
    terminal.wait_for("6*7 = \x1b[1m42\x1b[0m")
    terminal.wait_for("> ")
    terminal.type("half a line")
    terminal.wait_for(
        "Ctrl-D ends the chat", pressing="\x03"
    )  # once is not enough if it comes before the prompt reads
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.end() == 0


def test_check_names_the_servers_and_what_is_off(tmp_path: Path) -> None:
    files = {"server_label": "files", "command": "no-such-command-anywhere"}
    disabled = {**TIME, "disabled": True}
    done = run(
        tmp_path, "check", **configure(tmp_path, files, disabled, KEYLESS, files={}, wiki={})
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        "MCP servers: files (off: The command 'no-such-command-anywhere' is not found; install it,"
        " or name it with its full path), time (off: It is disabled in the MCP configuration), wiki"
        " (off: NO_SUCH_WIKI_KEY is not set). To see whether they can be reached: check --connect\n"
        in done.stdout
    )
    assert next(line for line in done.stdout.splitlines() if line.startswith("a  ")).split() == [
        *("a", "demo", "demo", "-"),
        *("files,", "wiki", "yes"),
    ]


def test_check_connect_tells_of_each_server_and_fails_when_one_is_down(tmp_path: Path) -> None:
    with dead_server() as dead:
        done = run(
            tmp_path, "check", "--connect", **configure(tmp_path, TIME, dead, KEYLESS, time={})
        )
    assert (done.returncode, done.stderr) == (1, "")
    assert row_of(done.stdout, "MCP SERVER") == [
        "MCP SERVER",
        "TRANSPORT",
        "STATE",
        "TOOLS",
        "TIME",
        "ERROR",
    ]
    label, transport, state, tools, seconds = row_of(done.stdout, "time")
    assert (label, transport, state, tools) == ("time", "stdio", "ready", "2")
    assert re.fullmatch(r"\d+\.\d\d s", seconds)
    assert row_of(done.stdout, "dead")[:5] == ["dead", "http", "down", "-", "-"]
    assert row_of(done.stdout, "dead")[5].startswith("it cannot be reached")
    assert row_of(done.stdout, "wiki") == [
        "wiki",
        "http",
        "off",
        "-",
        "-",
        "NO_SUCH_WIKI_KEY is not set.",
    ]
    assert "\ntime: get_current_time, convert_time\n" in done.stdout


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


def test_check_connect_succeeds_when_every_server_is_ready_or_off_and_warns_of_missing_tools(
    tmp_path: Path,
) -> None:
    allowed = {
        "allowed_mcp_tools": ["convert_tme", "get_current_time"],
        "cached_mcp_tools": ["get_curent_time"],
    }
    done = run(
        tmp_path,
        "check",
        "--connect",
        **configure(tmp_path, TIME, KEYLESS, time=allowed, wiki={"allowed_mcp_tools": ["ask"]}),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if "has no tool" in line] == [
        "warning: agent a: time has no tool 'convert_tme'. Did you mean 'convert_time'?",
        "warning: agent a: time has no tool 'get_curent_time'. Did you mean 'get_current_time'?",
    ]


def test_check_connect_warns_of_more_tools_than_a_provider_takes(tmp_path: Path) -> None:
    many = {
        "server_label": "many",
        "command": sys.executable,
        "args": [str(ROOT / "tests" / "support" / "mcp_rogue_stdio.py"), "offers-much"],
    }
    done = run(tmp_path, "check", "--connect", **configure(tmp_path, many, many={}))
    assert done.returncode == 0
    assert re.search(r"warning: agent \w+: it has 20\d tools, and OpenAI takes 128", done.stdout)
    done = run(
        tmp_path,
        "check",
        "--connect",
        **configure(tmp_path, many, many={"allowed_mcp_tools": ["echo"]}),
    )
    assert "OpenAI takes" not in done.stdout


def test_check_connect_without_servers_says_so(tmp_path: Path) -> None:
    done = run(tmp_path, "check", "--connect")
    assert done.returncode == 0
    assert "No MCP server is defined in mcp.json." in done.stdout


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
