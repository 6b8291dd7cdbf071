"""Make the data of test_upgrade.py with the version before: see README.md."""

import contextlib
import gzip
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ENCRYPTION_KEY = "YSBrZXkgb2YgYSB0ZXN0LCB3aGljaCBndWFyZHMgbm8="
READ = (
    "/agents/tutor/conversations?user_id=ada",
    *(
        f"/agents/tutor/conversations/{session}?user_id=ada&branches={branches}"
        for session in ("lesson", "edited", "imported", "once", "left")
        for branches in ("false", "true")
    ),
    "/agents/guide/conversations?user_id=ada",
    "/agents/guide/conversations/tour?user_id=ada",
    "/agents/tutor/conversations?user_id=bob",
    "/memory?user_id=ada",
    "/memory?user_id=bob",
)


def make(program: str, variant: str, **variables: str) -> None:
    """Write the database of `variant` and what the old version answers about it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(HERE / "config", folder, dirs_exist_ok=True)
        (folder / "settings.env").rename(folder / ".env")
        environment = {"PATH": os.environ["PATH"], "HOME": name, "LOG_FORMAT": "text", **variables}

        def run(*arguments: str) -> str:
            command = [program, *arguments]
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, check=True
            )
            return done.stdout + done.stderr

        keys = {
            each: re.findall(r"aas_\w+", run("keys", "create", "--name", each, *more))[0]
            for each, more in (
                ("school", ["--rpm", "600"]),
                ("lost", []),
                ("guests", ["--agents", "guide"]),
            )
        }
        run("keys", "revoke", keys["lost"].split("_")[1])
        command = [program, "serve", "--port", "0"]
        with subprocess.Popen(
            command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
        ) as server:
            assert server.stderr is not None
            url = next(line for line in server.stderr if "is ready: " in line)
            client = Client(url.split("is ready: ")[1].strip(), keys["school"])
            hold_conversations(client)
            time.sleep(1)  # a summary is made after the answer
            expected = {
                "keys": keys,
                "asked": client.asked,
                "read": {path: client.send(path).decode() for path in READ},
            }
            client.leave("killed", "Hello!")
            server.kill()
        target = HERE / variant
        target.mkdir(exist_ok=True)
        with contextlib.closing(sqlite3.connect(folder / "data/ai-agent-service.db")) as database:
            # The clock of the machine that runs the test does not matter then.
            database.execute("UPDATE processes SET seen_at = '2020-01-01 00:00:00.000000'")
            database.commit()
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        content = (folder / "data/ai-agent-service.db").read_bytes()
        (target / "ai-agent-service.db.gz").write_bytes(gzip.compress(content, mtime=0))
        text = json.dumps(expected, indent=1, ensure_ascii=False)
        (target / "expected.json").write_text(text + "\n", encoding="utf-8")


class Client:
    """Asks the service, and keeps what was answered under a name."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._key = key
        self.asked: dict[str, dict[str, Any]] = {}

    def open(self, path: str, body: object = None, **headers: str) -> Any:
        """Send a request and return the open response."""
        request = urllib.request.Request(self._url + path, method="GET" if body is None else "POST")
        request.add_header("Authorization", f"Bearer {self._key}")
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        return urllib.request.urlopen(request, timeout=30)

    def send(self, path: str, body: object = None, **headers: str) -> bytes:
        """Return the whole response."""
        with self.open(path, body, **headers) as response:
            content: bytes = response.read()
            return content

    def chat(
        self, session: str, *messages: str, name: str = "", user: str = "ada", **headers: str
    ) -> str:
        """Ask with a whole conversation, the user's and the agent's messages in turns."""
        roles = ("user", "assistant")
        body = {
            "model": "tutor",
            "user": user,
            "messages": [
                {"role": roles[number % 2], "content": text} for number, text in enumerate(messages)
            ],
        }
        answer = json.loads(
            self.send("/v1/chat/completions", body, X_Session_Id=session, **headers)
        )
        text = str(answer["choices"][0]["message"]["content"])
        if name:
            sent = {each.replace("_", "-"): value for each, value in headers.items()}
            headers = {"X-Session-Id": session, **sent}
            self.asked[name] = {"headers": headers, "body": body, "text": text}
        return text

    def say(self, agent: str, session: str, message: str, user: str = "ada") -> None:
        """Ask with one message, which goes on from the server's history."""
        body = {"message": message, "session_id": session, "user_id": user}
        self.send(f"/agents/{agent}/chat", body)

    def leave(self, session: str, message: str) -> None:
        """Ask, and leave once the answer has begun."""
        body = {"model": "tutor", "user": "ada", "stream": True}
        asked = {**body, "messages": [{"role": "user", "content": message}]}
        with self.open("/v1/chat/completions", asked, X_Session_Id=session) as response:
            response.read(400)
            if session == "killed":
                return
        time.sleep(1)


def hold_conversations(client: Client) -> None:
    """Hold one conversation of each kind."""
    client.say("tutor", "lesson", "My name is Ada.")
    client.say("tutor", "lesson", "What is (17 + 4) * 2?")
    first = client.chat("edited", "My name is Ada.", name="first", X_AAS_Message="turn-1")
    client.chat("edited", "My name is Ada.", first, "What is 2480 * 17 / 100?", name="tool")
    second = client.chat("edited", "My name is Grace.")
    client.chat("edited", "My name is Grace.", second, "Who am I?")
    client.chat("imported", "Who wrote the notes?", "Ada Lovelace did.", "My name is Ada.")
    client.chat("once", "What is 3 * 4?", name="once", Idempotency_Key="order-1")
    client.leave("left", "Hello!")
    for message in ("Hello!", "My name is Ada.", "Hello!", "Hello!"):
        client.say("guide", "tour", message)
    client.chat("lesson", "My name is Bob.", user="bob")


if __name__ == "__main__":
    make(sys.argv[1], "plain")
    make(sys.argv[1], "encrypted", MEMORY_ENCRYPTION_KEYS=ENCRYPTION_KEY)
