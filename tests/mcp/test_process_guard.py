"""The guard of a command: it passes everything through, and leaves nothing behind."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ai_agent_service.mcp import process_guard as guard

SLEEPS = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]
CLINGS = [
    sys.executable,
    "-c",
    (
        "import os, signal, time; signal.signal(15, signal.SIG_IGN); print(os.getpid(),"
        " flush=True); time.sleep(600)"
    ),
]
LEAVES = ["sh", "-c", "sleep 600 & echo $!"]


def guarded(command: list[str]) -> "subprocess.Popen[str]":
    """`command` under its guard, as servers are started."""
    pipe = subprocess.PIPE
    whole = [sys.executable, "-I", "-S", guard.__file__, *command]
    return subprocess.Popen(
        whole, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def is_gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether no such process runs, or will within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        except OSError:
            return True
        if stat.rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.01)
    return False


def test_what_goes_in_and_comes_out_is_untouched() -> None:
    with guarded(["cat"]) as process:
        out, err = process.communicate("one\ntwo\n", timeout=20)
    assert (out, err) == ("one\ntwo\n", f"{guard.EXITED}exited with code 0\n")


@pytest.mark.parametrize(
    ("command", "how"),
    [
        (["sh", "-c", "exit 7"], "exited with code 7"),
        (["sh", "-c", "kill -SEGV $$"], "was ended by SIGSEGV"),
        (["/nowhere/to/be/found"], "cannot be run (No such file or directory)"),
    ],
)
def test_how_the_command_ended_is_the_last_thing_said(command: list[str], how: str) -> None:
    with guarded(command) as process:
        _, err = process.communicate(timeout=20)
    assert err.split("\n")[0] == f"{guard.EXITED}{how}"


@pytest.mark.parametrize("command", [SLEEPS, CLINGS])
def test_the_command_ends_when_nobody_speaks_to_it_any_more(command: list[str]) -> None:
    with guarded(command) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.stdin.close()
        assert is_gone(pid)
        assert process.wait(10) == -signal.SIGKILL


def test_what_the_command_leaves_behind_ends_with_it() -> None:
    with guarded(LEAVES) as process:
        assert process.stdout is not None
        assert is_gone(int(process.stdout.readline()))


def test_a_signal_to_the_group_reaches_the_command_and_its_end_is_told() -> None:
    with guarded(SLEEPS) as process:
        assert process.stdout is not None
        process.stdout.readline()
        subprocess.run(["kill", "-TERM", "--", f"-{process.pid}"], check=True)
        _, err = process.communicate(timeout=20)
    assert err == f"{guard.EXITED}was ended by SIGTERM\n"


def test_the_command_has_the_signals_that_any_has() -> None:
    ignored = (
        "import signal; print([n for n in ('SIGTERM', 'SIGINT', 'SIGPIPE') if"
        " signal.getsignal(getattr(signal, n)) == signal.SIG_IGN])"
    )
    with guarded([sys.executable, "-c", ignored]) as process:
        out, _ = process.communicate(timeout=20)
    assert out == "['SIGPIPE']\n"  # which Python itself ignores


def test_a_guard_is_small() -> None:
    with guarded(SLEEPS) as process:
        assert process.stdout is not None
        process.stdout.readline()
        resident = re.findall(
            r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        )
        assert int(resident[0]) < 14 * 1024
        process.communicate(timeout=20)
