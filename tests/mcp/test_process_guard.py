"""The guard of a command: it passes everything through, and leaves nothing behind."""

import os
import pwd
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

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


DAEMON = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(15, signal.SIG_IGN)
        print(os.getpid(), flush=True)
        for number in range(3):
            os.close(number)
        time.sleep(600)
    os._exit(0)
os.wait()
"""
"""A command that leaves a daemon, whose number it prints."""


def guarded(command: list[str], **options: Any) -> "subprocess.Popen[str]":
    """`command` under its guard, as servers are started."""
    pipe = subprocess.PIPE
    whole = [sys.executable, "-I", "-S", guard.__file__, *command]
    return subprocess.Popen(
        whole, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True, **options
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


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="prctl is a call of Linux")


@linux_only
def test_a_daemon_of_the_command_ends_with_it() -> None:
    with guarded([sys.executable, "-c", DAEMON]) as process:
        assert process.stdout is not None
        assert is_gone(int(process.stdout.readline()))


@linux_only
def test_a_daemon_ends_when_the_input_is_closed() -> None:
    with guarded([sys.executable, "-c", f"{DAEMON}\ntime.sleep(600)"]) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        daemon = int(process.stdout.readline())
        assert not is_gone(daemon, 0.1)
        process.stdin.close()
        assert is_gone(daemon)


@linux_only
def test_the_command_dies_with_its_guard() -> None:
    with guarded(CLINGS) as process:
        assert process.stdout is not None
        command = int(process.stdout.readline())
        process.kill()
        assert is_gone(command)


@linux_only
def test_the_command_ends_with_the_service_though_its_input_stays_open() -> None:
    read, write = os.pipe()
    starter = f"""
import subprocess, sys, time
command = {[sys.executable, "-I", "-S", guard.__file__, *CLINGS]!r}
subprocess.Popen(command, stdin={read}, start_new_session=True)
time.sleep(600)
"""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", starter], stdout=pipe, text=True, pass_fds=(read,)
    ) as service:
        assert service.stdout is not None
        command = int(service.stdout.readline())
        service.kill()
        assert is_gone(command)
    os.close(read)
    os.close(write)


def test_the_command_inherits_nothing_but_its_pipes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.set_inheritable(True)
        show = "import os; print(*os.listdir('/dev/fd'))"
        with guarded([sys.executable, "-c", show], close_fds=False) as process:
            out, _ = process.communicate(timeout=20)
    assert set(out.split()) <= {"0", "1", "2", "3"}  # 3 is the listing itself


def test_the_command_runs_as_the_user_that_is_named() -> None:
    user = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    with guarded([f"--user={user}", "id", "-u"]) as process:
        out, err = process.communicate(timeout=20)
    if os.geteuid() == 0:
        assert out == f"{pwd.getpwnam('nobody').pw_uid}\n"
    else:
        assert "cannot be run (Operation not permitted)" in err


def test_a_user_that_does_not_exist_is_reported() -> None:
    with guarded(["--user=no-such-user", "id"]) as process:
        out, err = process.communicate(timeout=20)
    assert (out, "cannot be run" in err) == ("", True)
