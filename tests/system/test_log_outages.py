"""Logs that cannot be written: requests go on, the process still ends, and health says so."""

import contextlib
import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT, environment, get, list_workers, run
from tests.support.talker import configured

pytestmark = pytest.mark.timeout(180)
WORKERS = pytest.mark.parametrize(
    "workers",
    [(), pytest.param(("--workers", "2"), marks=pytest.mark.slow)],
    ids=["one", "workers"],
)
BLOCKER = """
import time
from ai_agent_service.providers.demo import Demo

class Blocker(Demo):
    name = "blocker"

    async def stream(self, request):
        open("blocked", "w").close()
        time.sleep(600)
        yield
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(is_there: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_there():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextlib.contextmanager
def started(
    folder: Path, stderr: int, *arguments: str, **variables: str
) -> Generator[tuple[str, "subprocess.Popen[bytes]"], None, None]:
    """Start the service with `stderr`, which need not be read, and wait until it answers."""
    port = str(free_port())
    process = subprocess.Popen(
        [sys.executable, "-m", "app.main", "--port", port, *arguments],
        cwd=folder,
        env=environment(LOG_FORMAT="json", **variables),
        stderr=stderr,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        get(f"{url}/health/live")
        yield url, process
    finally:
        process.kill()
        process.wait(20)


def ask(url: str, agent: str = "research_agent", **more: Any) -> tuple[int, dict[str, Any]]:
    body = {"model": agent, "messages": [{"role": "user", "content": "hello"}], **more}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def read_metric(url: str, series: str) -> float:
    """Return the value of a series, such as `name{label="value"}`; 0 if it is not there."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{series} "))


@pytest.fixture
def pipe() -> Generator[tuple[int, int], None, None]:
    """A pipe of the smallest size."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    yield reading, writing
    for end in (reading, writing):
        with contextlib.suppress(OSError):
            os.close(end)


@WORKERS
def test_a_log_that_nobody_reads_stops_neither_requests_nor_the_end(
    tmp_path: Path, pipe: tuple[int, int], workers: tuple[str, ...]
) -> None:
    reading, writing = pipe
    with started(tmp_path, writing, *workers, LOG_QUEUE_LINES="100") as (url, process):
        for _ in range(300):
            assert get(f"{url}/v1/models")["data"]
        dropped = 'aas_log_lines_dropped_total{log="log"}'
        assert read_metric(url, dropped) > 0

        def is_reported() -> bool:  # by the worker that dropped lines
            reasons = get(f"{url}/health?detailed=true").get("reasons", [])
            return any("its reader is too slow" in reason for reason in reasons)

        wait_for(is_reported)
        if not workers:
            os.close(writing)
            with os.fdopen(os.dup(reading), encoding="utf-8") as log:
                events = iter(json.loads(line)["event"] for line in log)
                wait_for(lambda: next(events).endswith("log lines were dropped"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.slow
@WORKERS
def test_a_second_signal_ends_a_process_whose_loop_hangs_and_whose_log_nobody_reads(
    tmp_path: Path, pipe: tuple[int, int], workers: tuple[str, ...]
) -> None:
    variables = configured(tmp_path, LOG_QUEUE_LINES="100")
    (tmp_path / "talker.py").write_text(BLOCKER, encoding="utf-8")
    agent = {"agent_id": "a", "system_prompt": "x", "provider": "blocker"}
    (tmp_path / "agents.json").write_text(json.dumps([agent]), encoding="utf-8")
    with started(tmp_path, pipe[1], *workers, **variables) as (url, process):
        for _ in range(50):
            get(f"{url}/v1/models")
        with pytest.raises(OSError, match="timed out"):
            ask(url, "a", timeout=2)
        wait_for((tmp_path / "blocked").exists)
        threads = Path(f"/proc/{process.pid}/task")
        before = len(list(threads.iterdir()))
        process.send_signal(signal.SIGTERM)
        if not workers:  # the deadline is a thread
            wait_for(lambda: len(list(threads.iterdir())) > before)
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 1


def test_the_audit_file_is_opened_again_after_rotation_and_an_outage_is_loud_and_ends(
    tmp_path: Path,
) -> None:
    folder, log = tmp_path / "audit", tmp_path / "log"
    folder.mkdir()
    file = folder / "audit.jsonl"
    variables = {"AUDIT_LOG_FILE": str(file), "AUDIT_REQUIRED": "true"}

    def events(path: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    with log.open("wb") as stderr, started(tmp_path, stderr.fileno(), **variables) as (url, _):
        assert ask(url)[0] == 200
        assert "agent.started" in [line["event"] for line in events(file)]
        file.rename(folder / "audit.1")
        assert ask(url)[0] == 200
        assert "agent.started" in [line["event"] for line in events(file)]
        assert file.stat().st_mode & 0o777 == 0o600
        for each in folder.iterdir():
            each.unlink()
        folder.rmdir()
        for _ in range(3):
            status, answer = ask(url)
            assert (status, answer["error"]["code"]) == (503, "audit_unavailable")
        health = get(f"{url}/health?detailed=true")
        assert health["status"] == "degraded"
        [reason] = [each for each in health["reasons"] if "audit" in each and "Lines" in each]
        assert str(file) in reason
        assert "No such file or directory" in reason
        assert read_metric(url, 'aas_log_write_failures_total{log="audit"}') == 1
        folder.mkdir()
        wait_for(lambda: ask(url)[0] == 200)
        assert read_metric(url, 'aas_log_lines_dropped_total{log="audit"}') == 0
    lost = [line for line in events(log) if line["event"] == "audit.lost"]
    assert [(line["level"], line["file"]) for line in lost] == [("ERROR", str(file))]
    assert [line["event"] for line in events(log)].count("audit.back") == 1


def test_a_full_disk_tears_no_line_and_both_logs_go_on_once_there_is_room(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk; both logs begin near it."""
    size, paths = 1_000_000, (tmp_path / "log", tmp_path / "audit.jsonl")
    filler = f"{json.dumps({'event': 'filler' + 'x' * 4000})}\n"
    for path in paths:
        path.write_text(filler * (size // len(filler)), encoding="utf-8")

    with (
        paths[0].open("ab") as log,
        started(tmp_path, log.fileno(), AUDIT_LOG_FILE=str(paths[1])) as (url, process),
    ):
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, hard))
        for _ in range(60):
            assert ask(url)[0] == 200
        health = get(f"{url}/health?detailed=true")
        assert {each["error"] for each in health["logs"].values()} == {"File too large"}
        assert health["status"] == "degraded"
        assert all(path.read_bytes().endswith(b"}\n") for path in paths)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))

        def is_well() -> bool:
            logs = get(f"{url}/health?detailed=true")["logs"]
            return all(each["state"] == "ready" for each in logs.values())

        wait_for(is_well)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    events = [
        [json.loads(line)["event"] for line in path.read_text(encoding="utf-8").splitlines()]
        for path in paths
    ]
    assert events[1].count("agent.called") == 60
    assert events[0].count("request") >= 60
    assert "Traceback" not in paths[0].read_text(encoding="utf-8")


@pytest.mark.parametrize("redirection", ["2>&-", "1>&-", "1>&- 2>&-", "2>/dev/full"])
def test_closed_streams_change_no_exit_code(tmp_path: Path, redirection: str) -> None:
    for expected, agents in ((0, ROOT / "agent_config.json"), (2, tmp_path / "absent.json")):
        command = f'"$0" -m app.main check {redirection}'
        variables = environment(AGENT_CONFIG_FILE=str(agents))
        done = subprocess.run(
            ["/bin/sh", "-c", command, sys.executable],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == expected


def test_a_log_whose_reader_left_changes_no_exit_code(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with started(tmp_path, writing) as (url, process):
        os.close(writing)
        os.close(reading)
        assert get(f"{url}/v1/models")["data"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_faults_at_the_start_reach_the_terminal(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run(tmp_path, "--port", str(taken.getsockname()[1]), ALLOW_UNAUTHENTICATED="true")
    assert done.returncode == 1
    assert "ALLOW_UNAUTHENTICATED is set" in done.stderr
    assert "Cannot listen on" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_metrics_folder_of_a_killed_parent_goes_at_the_next_start(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()

    def has_ended(pid: int) -> bool:
        return not Path(f"/proc/{pid}").exists()

    for _ in range(2):
        with started(tmp_path, subprocess.DEVNULL, "--workers", "2", TMPDIR=str(temporary)) as (
            _,
            process,
        ):
            workers = list_workers(process)
            assert len(list(temporary.glob("ai-agent-service-metrics-*"))) == 1
            process.kill()
            process.wait(20)
            for pid in workers:
                wait_for(partial(has_ended, pid))
