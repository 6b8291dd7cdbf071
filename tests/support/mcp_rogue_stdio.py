"""MCP server over standard input and output that misbehaves as its first argument says; needs only
Python.

`python mcp_rogue_stdio.py BEHAVIOUR [FOLDER]`. In FOLDER it leaves a file `pid-N` for itself and
each of its children, and a line in `calls` for each call that it carries out. A file `answers.json`
there gives the whole answer to a method as text, with ID for the id of the request.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

BEHAVIOUR = sys.argv[1]
FOLDER = Path(sys.argv[2]) if len(sys.argv) > 2 else None
ANSWERS: dict[str, str] = {}
if FOLDER is not None and (FOLDER / "answers.json").exists():
    ANSWERS = json.loads((FOLDER / "answers.json").read_text(encoding="utf-8"))
NAMES = ["echo", "die", "hang", "later", "pid", "half", "ask", "write"]
if BEHAVIOUR == "offers-much":
    NAMES += [f"tool_{number}" for number in range(200)]
SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}}
TOOLS = [{"name": name, "description": name, "inputSchema": SCHEMA} for name in NAMES]
QUESTIONS: dict[str, dict[str, Any]] = {
    "elicitation/create": {
        "message": "Who?",
        "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}},
    },
    "sampling/createMessage": {
        "messages": [{"role": "user", "content": {"type": "text", "text": "Who?"}}],
        "maxTokens": 5,
    },
    "roots/list": {},
}
asked_by: list[dict[str, Any]] = []
"""Calls that wait for the host's answer to a question."""

lock = threading.Lock()


def send(message: dict[str, Any]) -> None:
    """Write one message."""
    with lock:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        sys.stdout.flush()


def note(name: str, line: str) -> None:
    """Append a line to a file of FOLDER."""
    if FOLDER is not None:
        with (FOLDER / name).open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def answer(request: dict[str, Any], text: str) -> None:
    """Answer a call with `text`."""
    send({"id": request["id"], "result": {"content": [{"type": "text", "text": text}]}})


def call(request: dict[str, Any]) -> None:
    """Carry a call out."""
    name, text = request["params"]["name"], request["params"].get("arguments", {}).get("text", "")
    note("calls", f"{name} {text}")
    match name:
        case "echo":
            if BEHAVIOUR == "prints-a-line-at-every-call":
                sys.stdout.write("Called.\n")
            answer(request, text)
        case "pid":
            answer(request, str(os.getpid()))
        case "half":
            answer(request, "a\ud800b")
        case "ask":
            send({"id": "question", "method": text, "params": QUESTIONS[text]})
            asked_by.append(request)
        case "write":
            # The bytes of a Python expression, and without an end if it is an iterator.
            written = eval(text)
            for piece in [written] if isinstance(written, bytes) else written:
                os.write(1, piece)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "later":
            # Later calls wait shorter, so that answers come in another order than calls.
            threading.Timer(max(0.0, 0.2 - 0.01 * int(text)), answer, (request, text)).start()
        case _:
            pass  # hang: no answer ever


def serve() -> None:
    """Answer until standard input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        if (text := ANSWERS.get(request.get("method", ""))) is not None:
            sys.stdout.write(text.replace("ID", json.dumps(request.get("id"))) + "\n")
            sys.stdout.flush()
            continue
        if request.get("id") == "question":
            answer(asked_by.pop(), line)
            continue
        match request.get("method"):
            case "initialize":
                if BEHAVIOUR == "hangs-in-initialize":
                    time.sleep(600)
                info = {"name": "rogue", "version": "1"}
                result = {
                    "protocolVersion": "2025-06-18",
                    "capabilities": {"tools": {"listChanged": True}},
                    "serverInfo": info,
                }
                send({"id": request["id"], "result": result})
            case "tools/list":
                send({"id": request["id"], "result": {"tools": TOOLS}})
            case "tools/call":
                call(request)
            case "ping":
                send({"id": request["id"], "result": {}})
            case "notifications/cancelled":
                note("cancelled", str(request["params"]["requestId"]))
            case str() if "id" in request:
                send(
                    {"id": request["id"], "error": {"code": -32601, "message": "Method not found"}}
                )
            case _:
                pass


def chatter(write: Any, text: str, pause: float = 0.0) -> None:
    """Write `text` forever in a thread."""

    def run() -> None:
        while True:
            write(text)
            time.sleep(pause)

    threading.Thread(target=run, daemon=True).start()


def spy() -> None:
    """Leave in FOLDER what this process has of the one that started it: its descriptors, those
    that take connections, and the environments of its ancestors that it can read."""
    assert FOLDER is not None
    inherited = {}
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # the one that listed them is closed
            inherited[int(entry.name)] = str(entry.readlink())
    accepting = []
    for number in inherited:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as listening:
            if listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                accepting.append(number)
    environments, pid = "", os.getppid()
    while pid > 1:
        with contextlib.suppress(OSError):
            environments += Path(f"/proc/{pid}/environ").read_text(
                encoding="utf-8", errors="replace"
            )
        pid = int(
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1]
        )
    result = {"descriptors": inherited, "accepting": accepting, "environments": environments}
    temporary = FOLDER / "spying"
    temporary.write_text(json.dumps(result), encoding="utf-8")
    temporary.rename(FOLDER / f"spied-{os.getpid()}")


def leave_daemon() -> None:
    """Start a process that no longer belongs to this one, its session or its group."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for number in range(3):
            os.close(number)
        note(f"pid-{os.getpid()}", "")
        time.sleep(600)
    os.wait()


def main() -> None:
    """Serve, and misbehave."""
    note(f"pid-{os.getpid()}", "")
    match BEHAVIOUR:
        case "exits":
            sys.stderr.write(f"first words\nno licence for {os.environ['ROGUE_SECRET']}\n")
            sys.exit(3)
        case "floods-stderr":
            chatter(lambda text: os.write(2, text.encode()), "noise " * 100 + "\n")
        case "floods-stderr-without-newlines":
            chatter(lambda text: os.write(2, text.encode()), "x" * 100_000)
        case "talks-on-stderr":
            sys.stderr.write(f"hello, {os.environ['ROGUE_SECRET']}\n")
            sys.stderr.flush()
        case "prints-some-junk":
            sys.stdout.write("Starting up...\n\n{not json}\n\x00\xff[]\n")
            sys.stdout.flush()
        case "prints-junk":
            chatter(lambda text: os.write(1, text.encode()), "junk\n", 0.0001)
        case "spies":
            spy()
        case "leaves-a-daemon":
            leave_daemon()
        case "clings":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case "has-children":
            child = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)",
                ]
            )
            note(f"pid-{child.pid}", "")
        case _:
            pass
    serve()
    if BEHAVIOUR in ("clings", "has-children"):
        time.sleep(600)
    if BEHAVIOUR == "has-children-and-leaves":
        note(f"pid-{subprocess.Popen(['sleep', '600']).pid}", "")


if __name__ == "__main__":
    main()
