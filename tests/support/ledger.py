"""The service in its own process, clients that put it under load, and the ledger of what they were
sent."""

import asyncio
import json
import math
import os
import random
import signal
import socket
import sys
import time
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
import msgspec

from tests.support.events import until

ROOT = Path(__file__).parents[2]
READY_SECONDS = 60.0
PIECES = 6

PROVIDER = '''
import asyncio
from ai_agent_service.core.events import TextDelta
from ai_agent_service.core.messages import ToolCall
from ai_agent_service.providers.base import ModelFinished


class Steady:
    """Says of each question the same, in pieces; of each fifth one after a call of a tool."""

    name = "steady"
    missing = ()
    model_list = ()

    @classmethod
    def from_setup(cls, setup):
        return cls()

    async def default_model(self):
        return "steady"

    async def stream(self, request):
        roles = [message.role for message in request.messages]
        last = max(place for place, role in enumerate(roles) if role == "user")
        question = request.messages[last].text
        if question.endswith("5") and last == len(request.messages) - 1:
            call_id = "call_" + question.replace(" ", "")[-20:].rjust(20, "0")
            call = ToolCall(call_id, "calculate", '{"expression": "1+1"}')
            yield ModelFinished("tool_calls", (call,))
            return
        for number in range(PIECES):
            await asyncio.sleep(0.004)
            yield TextDelta(f"{question}, piece {number}. ")
        yield ModelFinished("stop")
'''.replace("PIECES", str(PIECES))


def answer_to(question: str) -> str:
    """Return the answer of the service's provider to a question."""
    return "".join(f"{question}, piece {number}. " for number in range(PIECES))


class ServiceProcess:
    """The service as `python -m app.main` runs it, with an agent `helper` that has a memory and one
    `plain` that has none."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self._folder = folder
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self._port = taken.getsockname()[1]
        own = {
            "system_prompt": "You help.",
            "provider": "steady",
            "allowed_regular_tools": ["calculate"],
        }
        agents = [
            {**own, "agent_id": "helper", "resources": ["memory"]},
            {
                **own,
                "agent_id": "lenient",
                "resources": ["memory"],
                "resource_config": {"memory": {"required": False}},
            },
            {**own, "agent_id": "plain"},
        ]
        if not (folder / "agent_config.json").exists():  # unless it was restored from a backup
            (folder / "agent_config.json").write_text(json.dumps(agents), encoding="utf-8")
            (folder / "plugins").mkdir()
            (folder / "plugins" / "steady.py").write_text(PROVIDER, encoding="utf-8")
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self._environment = {
            **kept,
            "PYTHONPATH": str(ROOT),
            "PLUGINS_DIR": "plugins",
            "DEFAULT_PROVIDER": "demo",
            **environment,
        }
        self.process: asyncio.subprocess.Process | None = None
        self.client = httpx2.AsyncClient(base_url=f"http://127.0.0.1:{self._port}", timeout=30)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.client.aclose()
        await self.kill()

    async def start(self, *, path: str = "/health/ready") -> None:
        """Start it and wait until it answers 200 at `path`."""
        with (self._folder / "service.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "app.main", "--port", str(self._port)),
                cwd=self._folder,
                env=self._environment,
                stderr=log,
            )
        await self.until(path, lambda status: status == 200)

    async def command(self, *arguments: str) -> tuple[int, str]:
        """Run `python -m app.main` with `arguments` in the service's folder and environment; return
        the exit code and the output."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "app.main", *arguments),
            cwd=self._folder,
            env=self._environment,
            stdout=PIPE,
            stderr=STDOUT,
        )
        said, _ = await process.communicate()
        return process.returncode or 0, said.decode().strip()

    async def until(
        self, path: str, met: Callable[[int], bool], *, timeout: float = READY_SECONDS
    ) -> None:
        """Wait until `met` accepts the status of `path`; 0 means no answer."""
        await until(lambda: self._meets(path, met), seconds=timeout)

    async def _meets(self, path: str, met: Callable[[int], bool]) -> bool:
        return met(await self.status(path))

    async def status(self, path: str) -> int:
        """Return the status of GET `path`; 0 if there is no answer."""
        try:
            return (await self.client.get(path)).status_code
        except httpx2.TransportError:
            return 0

    async def kill(self, how: signal.Signals = signal.SIGKILL) -> int:
        """End it by a signal and return its exit code."""
        if self.process is None:
            return 0
        if self.process.returncode is None:
            self.process.send_signal(how)
        return await self.process.wait()


class Sent(msgspec.Struct):
    """A turn that a client requested, with its outcome; `history` holds questions and answers in
    turn."""

    session: str
    history: tuple[str, ...]
    question: str
    seen: str = ""
    acknowledged: bool = False
    status: int = 0
    user: str = ""
    at: float = math.inf
    """When it was acknowledged, in seconds since 1970."""


class Ledger:
    """What clients sent and received; `verify` compares it with what is stored."""

    def __init__(self, seed: int) -> None:
        self.turns: list[Sent] = []
        self._random = random.Random(seed)
        self._number = 0

    async def turn(
        self,
        client: httpx2.AsyncClient,
        session: str,
        history: tuple[str, ...],
        *,
        again: Sent | None = None,
        user: str = "",
    ) -> Sent:
        """Send the next question of a user's conversation, or repeat `again` as a client library
        does."""
        self._number += 1
        sent = Sent(
            session,
            history,
            again.question if again else f"{session} question {self._number}",
            user=user,
        )
        self.turns.append(sent)
        messages = [
            {"role": "user" if place % 2 == 0 else "assistant", "content": text}
            for place, text in enumerate((*history, sent.question))
        ]
        headers = {"X-Session-Id": session, **({"x-stainless-retry-count": "1"} if again else {})}
        body = {
            "model": "helper",
            "messages": messages,
            "stream": True,
            **({"user": user} if user else {}),
        }
        finished = failed = False
        try:
            async with client.stream(
                "POST", "/v1/chat/completions", json=body, headers=headers
            ) as response:
                sent.status = response.status_code
                async for line in response.aiter_lines():
                    if line == "data: [DONE]":
                        sent.acknowledged = finished and not failed
                        sent.at = time.time()
                    elif line.startswith("data: "):
                        chunk = json.loads(line.removeprefix("data: "))
                        failed = failed or "error" in chunk
                        for choice in chunk.get("choices", ()):
                            sent.seen += choice["delta"].get("content") or ""
                            finished = finished or choice["finish_reason"] is not None
        except httpx2.TransportError:
            pass
        return sent

    async def talk(
        self,
        client: httpx2.AsyncClient,
        session: str,
        stop: asyncio.Event,
        *,
        pause: float = 0.02,
        think: float = 0.0,
        user: str = "",
    ) -> None:
        """Hold a conversation until `stop` is set.

        A failed turn is repeated after `pause` seconds or given up; the next question comes `think`
        seconds after an answer.
        """
        history: tuple[str, ...] = ()
        failed: Sent | None = None
        while not stop.is_set():
            again = failed if failed is not None and self._random.random() < 0.7 else None
            sent = await self.turn(client, session, history, again=again, user=user)
            if sent.acknowledged:
                history = (*history, sent.question, sent.seen)
                failed = None
                await asyncio.sleep(think)
            else:
                failed = sent
                await asyncio.sleep(pause)

    async def verify(
        self, client: httpx2.AsyncClient, may_be_lost: Callable[[Sent], bool] = lambda _: False
    ) -> list[str]:
        """Return the faults of what is stored, as sentences."""
        problems = []
        for user, session in sorted({(sent.user, sent.session) for sent in self.turns}):
            asked = {"branches": "true", **({"user_id": user} if user else {})}
            response = await client.get(f"/agents/helper/conversations/{session}", params=asked)
            turns = [sent for sent in self.turns if sent.session == session]
            kept = [sent for sent in turns if not may_be_lost(sent)]
            if response.status_code == 404:
                problems += [
                    f"{sent.question!r}: lost, with its session" for sent in kept if sent.seen
                ]
                continue
            response.raise_for_status()
            problems += self._compared(turns, kept, response.json()["messages"])
        return problems

    @staticmethod
    def _compared(
        turns: list[Sent], kept_turns: list[Sent], messages: list[dict[str, Any]]
    ) -> list[str]:
        problems = []
        paths: dict[str, tuple[str, ...]] = {}
        stored: dict[tuple[str, ...], dict[str, Any]] = {}
        for message in messages:
            before = paths.get(message["parent"], ()) if message["parent"] else ()
            path = (*before, message["content"])
            if message["parent"] and message["parent"] not in paths:
                problems.append(f"{message['content']!r}: stored without what was said before it")
            if path in stored:
                problems.append(f"{message['content']!r}: stored twice")
            paths[message["id"]] = path
            stored[path] = message
        asked = {(*sent.history, sent.question): sent for sent in turns}
        for path, message in stored.items():
            if message["role"] == "user":
                if path not in asked:
                    problems.append(f"{path[-1]!r}: never asked in this place")
            elif message["status"] == "complete" and path[-1] != answer_to(path[-2]):
                problems.append(f"{path[-1]!r}: shown as complete")
            elif not answer_to(path[-2]).startswith(path[-1]):
                problems.append(f"{path[-1]!r}: never said")
            elif (
                message["status"] == "complete"
                and path[-2].endswith("5")
                and len(message.get("tool_calls", ())) != 1
            ):
                problems.append(f"{path[-1]!r}: its tool call is lost")
        for sent in {(*sent.history, sent.question): sent for sent in kept_turns}.values():
            if sent.seen and (*sent.history, sent.question) not in stored:
                problems.append(f"{sent.question!r}: the answer began, and the question is lost")
        for sent in kept_turns:
            path = (*sent.history, sent.question, sent.seen)
            if sent.acknowledged and sent.seen != answer_to(sent.question):
                problems.append(f"{sent.question!r}: acknowledged with {sent.seen!r}")
            kept = stored.get(path, {"status": "absent", "origin": "none"})
            # What is lost and brought back by the client, whose later requests have it, is marked
            # as the client's.
            if sent.acknowledged and (kept["status"], kept["origin"]) != ("complete", "ours"):
                problems.append(f"{sent.question!r}: acknowledged and lost")
        return problems


async def under_load(
    ledger: Ledger,
    client: httpx2.AsyncClient,
    sessions: list[str],
    faults: Callable[[], Awaitable[None]],
) -> None:
    """Keep a client talking in each session while `faults` runs."""
    stop = asyncio.Event()
    talks = [asyncio.create_task(ledger.talk(client, session, stop)) for session in sessions]
    try:
        await faults()
    finally:
        stop.set()
        await asyncio.gather(*talks)
