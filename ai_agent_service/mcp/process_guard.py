"""Run a command and leave nothing of it behind: `python guard.py COMMAND [ARGUMENT ...]`.

The guard leads a process group, which the command belongs to. When its parent closes the standard
input, or dies, the command has some time to end by itself before the group is ended. The group also
ends with the command. The last line on standard error says how the command ended. The guard imports
little, and only from Python's standard library.
"""

import contextlib
import os
import select
import signal
import sys
import time

GRACE_SECONDS = 2.0
"""From the end of standard input to SIGTERM, and again to SIGKILL."""

EXITED = "\x00guard: "
"""The prefix of the line that says how the command ended."""


def main(command: list[str]) -> None:
    """Run `command` with this process's standard input and output, until both have ended."""
    ended, ending = os.pipe()
    for end in (ended, ending):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(ending, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # These are meant for the command, whose end this process awaits.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)
    child = os.fork()
    if child == 0:
        _exec_command(command)
    watched = select.poll()
    watched.register(ended, select.POLLIN)
    # Without events it reports only that the other side has closed, and reads nothing.
    watched.register(0, 0)
    deadline: float | None = None
    signals = [signal.SIGTERM, signal.SIGKILL]
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
                deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() >= deadline and signals:
            _signal_all(signals.pop(0))
            deadline = time.monotonic() + GRACE_SECONDS
    _signal_all(signal.SIGKILL)


def _exec_command(command: list[str]) -> None:
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    try:
        # a command line from the operator's configuration, without a shell
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        _report(f"cannot be run ({error.strerror})")
        os._exit(127)


def _has_exited(child: int) -> bool:
    """Return whether the command has ended, and report it then."""
    try:
        pid, status = os.waitpid(child, os.WNOHANG)
    except ChildProcessError:
        return True
    if pid == 0:
        return False
    code = os.waitstatus_to_exitcode(status)
    how = f"exited with code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
    _report(how)
    return True


def _report(how: str) -> None:
    with contextlib.suppress(OSError):  # its reader may be gone
        os.write(2, f"{EXITED}{how}\n".encode())


def _signal_all(number: int) -> None:
    """Signal the whole group, including this process."""
    os.killpg(0, number)


if __name__ == "__main__":
    main(sys.argv[1:])
