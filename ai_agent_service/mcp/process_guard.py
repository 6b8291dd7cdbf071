"""Run a command and leave nothing of it behind: `python guard.py [--user=NAME] COMMAND [ARGUMENT
...]`.

The guard leads a process group, which the command belongs to. When its parent closes the standard
input, or dies, the command has some time to end by itself before it is ended with all processes
that descend from it. They also end with the command. The last line on standard error says how the
command ended. The guard imports little, and only from Python's standard library.

On Linux, daemons that left the process group are found too, and the command dies with its guard;
elsewhere the group alone is ended.
"""

import contextlib
import os
import select
import signal
import sys
import time

GRACE_SECONDS = 2.0
"""From the end of standard input to SIGTERM, and again to SIGKILL."""

KILL_SECONDS = 2.0
"""How long killed processes are waited for, and those that they started meanwhile are killed."""

EXITED = "\x00guard: "
"""The prefix of the line that says how the command ended."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(arguments: list[str]) -> None:
    """Run a command with this process's standard input and output, until both have ended."""
    _close_descriptors()
    user = ""
    if arguments[0].startswith("--user="):
        user, arguments = arguments[0].removeprefix("--user="), arguments[1:]
    parent = os.getppid()
    ended, ending = os.pipe()
    for end in (ended, ending):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(ending, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # These are meant for the command, whose end this process awaits.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)
    _control_process(_PR_SET_CHILD_SUBREAPER, 1)
    # Wakes this process when the thread that started it ends, which may be its parent's end.
    _control_process(_PR_SET_PDEATHSIG, signal.SIGTERM)
    guard = os.getpid()
    child = os.fork()
    if child == 0:
        _exec_command(arguments, user, guard)
    watched = select.poll()
    watched.register(ended, select.POLLIN)
    # Without events it reports only that the other side has closed, and reads nothing.
    watched.register(0, 0)
    deadline: float | None = None
    was_asked = False
    while True:
        events = watched.poll(
            None if deadline is None else max(0, int((deadline - time.monotonic()) * 1000))
        )
        if _has_exited(child):
            break
        for file, _ in events:
            if file == ended:
                os.read(ended, 1024)
            else:
                watched.unregister(0)
        if deadline is None and (0 in dict(events) or os.getppid() != parent):
            deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() >= deadline:
            if was_asked:
                break
            _terminate_all()
            was_asked, deadline = True, time.monotonic() + GRACE_SECONDS
    _kill_all()


def _close_descriptors() -> None:
    """Close all but the standard ones, which are the command's."""
    try:
        numbers = [int(entry.name) for entry in os.scandir("/dev/fd")]
    except OSError:  # a container without it
        numbers = list(range(4096))
    for number in numbers:
        if number > 2:
            with contextlib.suppress(OSError):  # the one that listed them is closed
                os.close(number)


def _control_process(option: int, value: int) -> None:
    """Call prctl(2), where there is one."""
    if sys.platform == "linux":
        with contextlib.suppress(ImportError):  # a Python without libffi
            import ctypes  # noqa: PLC0415 - it may be missing

            ctypes.CDLL(None).prctl(option, int(value), 0, 0, 0)


def _exec_command(command: list[str], user: str, guard: int) -> None:
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    try:
        if user:
            os.get_exec_path()  # imports a module, which the user may not be able to read
            _become(user)
        # After the user has changed, which resets it.
        _control_process(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # it died before that
            os._exit(127)
        # a command line from the operator's configuration, without a shell
        os.execvp(command[0], command)  # noqa: S606
    except (OSError, KeyError) as error:
        _report(f"cannot be run ({getattr(error, 'strerror', error)})")
        os._exit(127)


def _become(user: str) -> None:
    """Take the user, its group and its further groups; raises OSError without the right to."""
    import pwd  # noqa: PLC0415 - most commands need none

    entry = pwd.getpwnam(user)
    os.initgroups(user, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def _has_exited(child: int) -> bool:
    """Wait for every process that has ended, orphans of the command among them; return whether the
    command has, and report it then."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if pid == 0:
            return False
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            ended = f"exited with code {code}"
            _report(ended if code >= 0 else f"was ended by {signal.Signals(-code).name}")
            return True


def _report(how: str) -> None:
    with contextlib.suppress(OSError):  # its reader may be gone
        os.write(2, f"{EXITED}{how}\n".encode())


def _find_descendants() -> list[int]:
    """Return the processes that descend from this one; without /proc, none."""
    parents: dict[int, int] = {}
    with contextlib.suppress(OSError):
        for pid in [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]:
            # pathlib is not loaded here
            # the guard starts with every command, so it imports little
            with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123
                parents[pid] = int(stat.read().rpartition(b")")[2].split()[1])
    found = [os.getpid()]
    for pid in found:
        found += (child for child, parent in parents.items() if parent == pid)
    return found[1:]


def _terminate_all() -> None:
    """Send SIGTERM once to each descendant; the group includes this process, which ignores it."""
    for pid in _find_descendants():
        with contextlib.suppress(OSError):
            if os.getpgid(pid) != os.getpgrp():
                os.kill(pid, signal.SIGTERM)
    os.killpg(0, signal.SIGTERM)


def _kill_all() -> None:
    """Kill all descendants until there are none, then the group with this process."""
    end = time.monotonic() + KILL_SECONDS
    while time.monotonic() < end:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            break
        for pid in _find_descendants():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
