"""A process that keeps its descriptors and its memory to itself."""

import os
import subprocess
import sys

import pytest

from ai_agent_service.core.process_privacy import without_secrets

RUN = "from ai_agent_service.core.process_privacy import *\n"


def test_descriptors_that_were_inherited_are_not_passed_on() -> None:
    read, write = os.pipe()
    script = RUN + (
        "import os\n"
        f"assert os.get_inheritable({read})\n"
        "keep_descriptors()\n"
        f"print(os.get_inheritable({read}), os.get_inheritable(1))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], pass_fds=(read,), capture_output=True, text=True, check=True
    )
    os.close(read)
    os.close(write)
    assert done.stdout == "False True\n"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is a call of Linux")
@pytest.mark.parametrize("hides", [True, False])
def test_another_process_of_the_user_cannot_read_the_environment(hides: bool) -> None:
    script = (
        RUN
        + f"""
import ctypes, os
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
assert not is_memory_hidden()
if {hides}:
    hide_memory()
parent = os.getpid()
if os.fork() == 0:
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
    try:
        print("SECRET=canary" in open(f"/proc/{{parent}}/environ").read(), flush=True)
    except PermissionError:
        print("refused", flush=True)
    os._exit(0)
os.wait()
print(is_memory_hidden())
"""
    )
    environment = {**os.environ, "SECRET": "canary"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == ("refused\nTrue\n" if hides else "True\nFalse\n")


def test_a_process_is_started_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "canary-123456")
    monkeypatch.setenv("SOME_URL", "postgresql://u:canary-123456@h/d")
    monkeypatch.setenv("SOME_TUNABLE", "1")
    show = [sys.executable, "-c", "import os; print(*os.environ)"]
    with without_secrets() as removed:
        seen = subprocess.run(show, capture_output=True, text=True, check=True).stdout.split()
    assert set(removed) >= {"SOME_API_KEY", "SOME_URL"}
    assert {"SOME_API_KEY", "SOME_URL"}.isdisjoint(seen)
    assert "SOME_TUNABLE" in seen
    assert os.environ["SOME_API_KEY"] == "canary-123456"
