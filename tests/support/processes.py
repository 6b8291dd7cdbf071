"""The service and its commands in their own processes, as an operator runs them."""

import contextlib
import json
import os
import pty
import select
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

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
        "DRAIN_SECONDS": "0",
        **SHIPPED,
        **variables,
    }


def run(
    folder: Path, *arguments: str, stdin: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m app.main` with `arguments` in `folder`."""
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
    """Start the service at a free port and wait until it is ready; yield its address and
    process."""
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
    """Return the JSON at `url`; retry until a service of several processes is up."""
    deadline = time.monotonic() + 40
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return json.load(response)
        except OSError:
            assert time.monotonic() < deadline


def list_models(url: str) -> list[str]:
    """Return the ids of the models of the service at `url`."""
    return [model["id"] for model in get(f"{url}/v1/models")["data"]]


def read_lines(log: Path) -> list[dict[str, Any]]:
    """Return the lines of a JSON log; skip a last line that is not complete."""
    return [
        json.loads(line)
        for line in log.read_text(encoding="utf-8").splitlines(keepends=True)
        if line.endswith("\n")
    ]


@contextlib.contextmanager
def logging_json(
    folder: Path, *arguments: str, ready: int = 1, **variables: str
) -> Generator[tuple[str, Path], None, None]:
    """Start a service that logs JSON to a file and wait for `ready` lines that say so; yield its
    address and the log."""
    log = folder / "log"
    command = [sys.executable, "-m", "app.main", "--port", "0", *arguments]
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment(LOG_FORMAT="auto", **variables), stderr=file
        )
    try:
        deadline = time.monotonic() + 30
        while (
            len(found := [line for line in read_lines(log) if line["event"] == "service.ready"])
            < ready
        ):
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.05)
        yield found[0]["url"], log
    finally:
        process.terminate()
        process.wait(20)


class Terminal:
    """A command in its own terminal."""

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
        """Read until `text` comes; keep what follows for the next wait.

        Type `pressing` whenever nothing comes for half a second.
        """
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
        """Read what is left and return the exit code."""
        with contextlib.suppress(OSError):
            while os.read(self.fd, 65536):
                pass
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


def list_workers(process: "subprocess.Popen[Any]") -> list[int]:
    """Return the numbers of the worker processes of a service."""
    children = (
        Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
    )
    return [
        int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
