"""Several replicas, or several workers, on one PostgreSQL are as one: order, limits, counts, and a
rolling restart under load."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ai_agent_service.auth.keys.store import KeyStore
from ai_agent_service.auth.principal import DEFAULT_SCOPES, UNLIMITED, Limits, Rights
from ai_agent_service.config.settings import read_settings
from ai_agent_service.storage.encryption import Cipher
from ai_agent_service.storage.opening import open_database
from tests.support.events import until
from tests.support.ledger import PROVIDER, Ledger, Sent, ServiceProcess, answer_to
from tests.support.metrics import Scrape
from tests.support.postgres import PostgresServer
from tests.support.processes import list_workers, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

CHAT = "/v1/chat/completions"
ADMIN = "the-operators-own-key-0123456789"
CLIENTS = 6
MEMORY = {"system_prompt": "You help.", "provider": "steady", "resources": ["memory"]}

HOLDING = """
import asyncio
from pathlib import Path
from ai_agent_service.core.events import TextDelta
from ai_agent_service.providers.base import ModelFinished
from ai_agent_service.providers.demo import Demo

class Holding(Demo):
    name = "holding"

    async def stream(self, request):
        while not Path("GO").exists():
            await asyncio.sleep(0.02)
        yield TextDelta("Done.")
        yield ModelFinished("stop")
"""
"""Answers once the file `go` is there."""


class Replica(ServiceProcess):
    """One of several processes on a database, at a port of its own, with an agent `holder`
    besides."""

    def __init__(
        self, folder: Path, number: int, *, pause: float = 0.004, **environment: str
    ) -> None:
        own = folder / f"replica-{number}"
        own.mkdir()
        super().__init__(own, API_KEYS=ADMIN, **environment)
        agents = json.loads((own / "agent_config.json").read_text(encoding="utf-8"))
        agents.append({"agent_id": "holder", "system_prompt": "x", "provider": "holding"})
        (own / "agent_config.json").write_text(json.dumps(agents), encoding="utf-8")
        (own / "plugins" / "steady.py").write_text(
            PROVIDER.replace("0.004", str(pause)), encoding="utf-8"
        )
        (own / "plugins" / "holding.py").write_text(
            HOLDING.replace("GO", str(folder / "go")), encoding="utf-8"
        )
        self.client.headers["authorization"] = f"Bearer {ADMIN}"


@asynccontextmanager
async def replicas(folder: Path, url: str) -> AsyncGenerator[list[Replica], None]:
    """Two, that were started together on an empty database."""
    found = [Replica(folder, number, DATABASE_URL=url) for number in range(2)]
    async with AsyncExitStack() as opened:
        for each in found:
            opened.push_async_exit(each.__aexit__)
        await asyncio.gather(*(each.start() for each in found))
        yield found


async def new_key(
    url: str, name: str, limits: Limits = UNLIMITED, user_limits: Limits = UNLIMITED
) -> dict[str, str]:
    """The headers of a caller with a new, limited key."""
    async with open_database(read_settings(database_url=url)[0]) as database:
        made = await KeyStore(database, pepper=None, cipher=Cipher(())).create(
            name, Rights(scopes=DEFAULT_SCOPES, limits=limits, user_limits=user_limits)
        )
    return {"authorization": f"Bearer {made.text}"}


def question(text: str, **fields: Any) -> dict[str, Any]:
    """A chat completion that asks one thing of an agent without memory."""
    return {"model": "plain", "messages": [{"role": "user", "content": text}], **fields}


async def burst(
    targets: list[httpx2.AsyncClient], headers: dict[str, str], bodies: list[dict[str, Any]]
) -> list[httpx2.Response]:
    """The answers to all of `bodies`, asked at once of the targets in turn."""
    return list(
        await asyncio.gather(
            *(
                each.post(CHAT, json=body, headers=headers)
                for each, body in zip(itertools.cycle(targets), bodies, strict=False)
            )
        )
    )


def admitted(answers: list[httpx2.Response]) -> int:
    """How many were; the others have to be refused for a limit."""
    assert {answer.status_code for answer in answers} <= {200, 429}
    assert all(
        answer.json()["error"]["code"] == "rate_limit_exceeded"
        for answer in answers
        if answer.status_code == 429
    )
    return sum(answer.status_code == 200 for answer in answers)


async def test_turns_of_a_session_on_two_replicas_keep_their_order_and_are_taken_once(
    tmp_path: Path, postgres_18: PostgresServer
) -> None:
    name = postgres_18.new_database()
    async with replicas(tmp_path, postgres_18.url(name)) as (one, other):
        # In turn, the client having the history
        ledger, history = Ledger(0), tuple[str, ...]()
        for number in range(6):
            sent = await ledger.turn((one, other)[number % 2].client, "in turn", history)
            assert sent.acknowledged
            history = (*history, sent.question, sent.seen)
        assert await ledger.verify(one.client) == []
        for each in (one, other):
            assert [message["content"] for message in await conversation(each, "in turn")] == list(
                history
            )

        # At the same time, the service having the history
        texts = [f"at once {number}." for number in range(8)]

        async def asked(service: Replica, text: str) -> str:
            async with asyncio.timeout(90):
                answer = await chat(service, text, "at once")
                while answer.status_code == 409:
                    await asyncio.sleep(0.05)
                    answer = await chat(service, text, "at once")
            assert answer.status_code == 200, answer.text
            return str(answer.json()["response"])

        answers = await asyncio.gather(
            *(asked((one, other)[number % 2], text) for number, text in enumerate(texts))
        )
        assert answers == [answer_to(text) for text in texts]
        stored = await conversation(one, "at once")
        questions = [message["content"] for message in stored[::2]]
        assert sorted(questions) == texts
        assert [message["content"] for message in stored[1::2]] == [
            answer_to(text) for text in questions
        ]
        assert [message["parent"] for message in stored[1:]] == [
            message["id"] for message in stored[:-1]
        ]
        assert await conversation(other, "at once", branches="true") == stored

        # The same turn at the same time
        once = {"Idempotency-Key": "k"}

        async def told(service: Replica) -> str:
            async with asyncio.timeout(60):
                # another process
                while (  # noqa: ASYNC110
                    answer := await chat(service, "only once.", "once", **once)
                ).status_code == 409:
                    await asyncio.sleep(0.05)
            assert answer.status_code == 200, answer.text
            return str(answer.json()["response"])

        assert set(
            await asyncio.gather(*(told(service) for service in (one, other) for _ in range(3)))
        ) == {answer_to("only once.")}
        assert len(await conversation(one, "once", branches="true")) == 2
    counted = postgres_18.sql(
        "SELECT count(*), count(DISTINCT run_id), count(*) FILTER (WHERE status = 'done') FROM"
        " runs",
        name,
    )
    assert counted == "15|15|15"


async def test_attempts_of_one_turn_that_reach_three_replicas_at_once_are_one_turn(
    tmp_path: Path, postgres_18: PostgresServer
) -> None:
    """As a client library sends them: without an id, the first without a mark."""
    turns, attempts = 8, 6
    name = postgres_18.new_database()
    url = postgres_18.url(name)
    async with AsyncExitStack() as opened:
        members = [Replica(tmp_path, number, pause=0.05, DATABASE_URL=url) for number in range(3)]
        for each in members:
            opened.push_async_exit(each.__aexit__)
        await asyncio.gather(*(each.start() for each in members))

        async def attempt(number: int, text: str) -> str:
            service = members[number % 3]
            marks = {"x-stainless-retry-count": str(number)} if number else {}
            async with asyncio.timeout(90):
                # another process
                while (  # noqa: ASYNC110
                    answer := await chat(service, text, "once", **marks)
                ).status_code == 409:
                    await asyncio.sleep(0.05)
            assert answer.status_code == 200, answer.text
            return str(answer.json()["response"])

        texts = [f"attempted {turn}." for turn in range(turns)]
        for text in texts:
            # Those with a mark come first, so that one of them begins the turn.
            order = [*range(1, attempts), 0]
            answers = await asyncio.gather(*(attempt(number, text) for number in order))
            assert set(answers) == {answer_to(text)}
        stored = await conversation(members[0], "once", branches="true")
        assert [message["content"] for message in stored[::2]] == texts
        assert len(stored) == 2 * turns


async def conversation(service: Replica, session: str, **params: str) -> list[dict[str, Any]]:
    """The messages of a session, as a replica tells them."""
    response = await service.client.get(f"/agents/helper/conversations/{session}", params=params)
    assert response.status_code == 200, response.text
    return list(response.json()["messages"])


async def chat(service: Replica, text: str, session: str, **headers: str) -> httpx2.Response:
    """A turn with the server's history."""
    return await service.client.post(
        "/agents/helper/chat", json={"message": text, "session_id": session}, headers=headers
    )


async def test_limits_are_those_of_all_replicas_together(
    tmp_path: Path, postgres_18: PostgresServer
) -> None:
    url = postgres_18.url(postgres_18.new_database())
    async with replicas(tmp_path, url) as both:
        clients = [each.client for each in both]
        by_requests = await new_key(url, "requests", Limits(requests=10))
        by_user = await new_key(url, "users", user_limits=Limits(requests=4))
        by_tokens = await new_key(url, "tokens", Limits(tokens=1000))
        by_runs = await new_key(url, "runs", Limits(parallel=3))

        began = time.monotonic()
        count = admitted(await burst(clients, by_requests, [question("x")] * 30))
        assert 10 <= count <= 10 + (time.monotonic() - began) / 6

        began = time.monotonic()
        answers = await burst(
            clients,
            by_user,
            [question("x", user=user) for user in ("ann", "bob", "cem") for _ in range(12)],
        )
        for of_user in (answers[:12], answers[12:24], answers[24:]):
            assert 4 <= admitted(of_user) <= 4 + (time.monotonic() - began) / 15

        # The model does not say how many tokens it used, so those that were reserved stay charged.
        began = time.monotonic()
        [first] = await burst(clients, by_tokens, [question("x", max_tokens=90)])
        reserved = 1000 - int(first.headers["x-ratelimit-remaining-tokens"])
        assert 90 < reserved < 200
        count = 1 + admitted(await burst(clients, by_tokens, [question("x", max_tokens=90)] * 30))
        assert (
            1000 // reserved
            <= count
            <= (1000 + 1000 / 60 * (time.monotonic() - began)) / reserved + 1
        )

        held = {**question("x"), "model": "holder"}
        asking = [
            asyncio.create_task(client.post(CHAT, json=held, headers=by_runs))
            for client in clients * 5
        ]

        async def all_others_are_refused() -> bool:
            return sum(task.done() for task in asking) == 7

        await until(all_others_are_refused, seconds=60)
        assert not admitted([task.result() for task in asking if task.done()])
        (tmp_path / "go").touch()
        assert admitted(await asyncio.gather(*asking)) == 3
        assert (
            admitted(await burst(clients, by_runs, [held] * 2)) == 2
        )  # what has ended takes no place


class Balancer:
    """Sends requests to the replicas in turn that say that they are ready, as load balancers do."""

    def __init__(self, *members: Replica) -> None:
        self.members = list(members)
        self._ready = set(members)
        self._turn = itertools.count()

    def next(self) -> Replica:
        """Who is asked next."""
        ready = [each for each in self.members if each in self._ready]
        return ready[next(self._turn) % len(ready)]

    async def watch(self) -> None:
        """Looks who is ready, until it is cancelled."""
        while True:
            for each in list(self.members):
                is_ready = await each.status("/health/ready") == 200
                (self._ready.add if is_ready else self._ready.discard)(each)
            await asyncio.sleep(0.05)


class Client:
    """Holds a conversation; asks again only where HTTP allows: what was not connected, or was
    refused to be tried later."""

    def __init__(self, balancer: Balancer, ledger: Ledger, session: str) -> None:
        self._balancer = balancer
        self._ledger = ledger
        self._session = session
        self.again = 0
        self.failed: list[str] = []

    async def talk(self, stop: asyncio.Event) -> None:
        """Takes one turn after the other until `stop`."""
        history: tuple[str, ...] = ()
        for number in itertools.count(1):
            if stop.is_set():
                return
            sent = Sent(self._session, history, f"{self._session} question {number}")
            self._ledger.turns.append(sent)
            while not await self._is_answered(sent):
                self.again += 1
                await asyncio.sleep(0.05)
            history = (*history, sent.question, sent.seen)

    async def _is_answered(self, sent: Sent) -> bool:
        said = (*sent.history, sent.question)
        messages = [
            {"role": "assistant" if place % 2 else "user", "content": text}
            for place, text in enumerate(said)
        ]
        headers = {
            "X-Session-Id": sent.session,
            "Idempotency-Key": sent.question.replace(" ", "-"),
            "connection": "close",
        }
        client = self._balancer.next().client
        body = {"model": "helper", "messages": messages, "stream": True}
        try:
            async with client.stream("POST", CHAT, json=body, headers=headers) as response:
                sent.status = response.status_code
                if response.status_code == 503 and "retry-after" in response.headers:
                    return False
                text = "".join([piece async for piece in response.aiter_text()])
        except httpx2.ConnectError:
            return False
        except httpx2.TransportError as error:
            text = f"{type(error).__name__}: {error}"
        chunks = [
            line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: {")
        ]
        sent.seen = "".join(
            choice["delta"].get("content") or ""
            for chunk in map(json.loads, chunks)
            for choice in chunk.get("choices", ())
        )
        sent.acknowledged = (
            sent.status == 200
            and '"finish_reason":"stop"' in text
            and text.endswith("data: [DONE]\n\n")
        )
        if not sent.acknowledged:
            self.failed.append(f"{sent.status}: {text[-300:]}")
        return True


async def test_a_rolling_restart_under_load_fails_loses_and_doubles_nothing(
    tmp_path: Path, postgres_18: PostgresServer
) -> None:
    name = postgres_18.new_database()
    environment = {
        "DATABASE_URL": postgres_18.url(name),
        "DRAIN_SECONDS": "1",
        "SHUTDOWN_TIMEOUT": "60",
    }
    members = [Replica(tmp_path, number, pause=0.05, **environment) for number in range(4)]
    ledger, stop = Ledger(0), asyncio.Event()
    async with AsyncExitStack() as opened:
        for each in members:
            opened.push_async_exit(each.__aexit__)
        await asyncio.gather(*(each.start() for each in members[:2]))
        balancer = Balancer(*members[:2])
        clients = [Client(balancer, ledger, f"s{number}") for number in range(CLIENTS)]
        tasks = [asyncio.create_task(each.talk(stop)) for each in clients]
        watching = asyncio.create_task(balancer.watch())
        try:
            for old, new in ((members[0], members[2]), (members[1], members[3])):
                await new.start()
                balancer.members.append(new)
                begun = len(ledger.turns)
                assert await old.kill(signal.SIGTERM) == 0
                balancer.members.remove(old)
                assert len(ledger.turns) > begun  # others went on being answered

            async def all_goes_on() -> bool:
                return len(ledger.turns) > begun + 2 * CLIENTS

            await until(all_goes_on, seconds=60)
        finally:
            stop.set()
            await asyncio.gather(*tasks)
            watching.cancel()
        assert [failure for each in clients for failure in each.failed] == []
        assert all(sent.acknowledged for sent in ledger.turns)
        assert await ledger.verify(members[3].client) == []
    questions, runs = (
        len(ledger.turns),
        postgres_18.sql("SELECT count(*), count(*) FILTER (WHERE status = 'done') FROM runs", name),
    )
    assert runs == f"{questions}|{questions}"
    messages = postgres_18.sql(
        "SELECT role, count(*) FROM nodes WHERE status = 'complete' GROUP BY role ORDER BY role",
        name,
    )
    assert messages.split() == [f"assistant|{questions}", f"user|{questions}"]


async def test_workers_keep_one_limit_and_their_counts_outlive_them(
    tmp_path: Path, postgres_18: PostgresServer
) -> None:
    url = postgres_18.url(postgres_18.new_database())
    limited = await new_key(url, "limited", Limits(requests=10))
    with serving(
        tmp_path, "--workers", "2", DATABASE_URL=url, API_KEYS=ADMIN, TMPDIR=str(tmp_path)
    ) as (address, process):
        limits = httpx2.Limits(
            max_connections=None, max_keepalive_connections=0
        )  # a connection for each request, so that both are asked
        async with httpx2.AsyncClient(base_url=address, timeout=60, limits=limits) as client:
            seen: list[float] = []

            async def runs(*, of: float, workers: int = 2) -> bool:
                with contextlib.suppress(httpx2.TransportError):
                    found = Scrape(
                        (
                            await client.get(
                                "/metrics", headers={"authorization": f"Bearer {ADMIN}"}
                            )
                        ).text
                    )
                    seen.append(found.value("aas_runs_total", outcome="answered"))
                    return seen[-1] == of and found.value("aas_workers") == workers
                return False

            await until(lambda: runs(of=0), seconds=90)
            body = {**question("x"), "model": "research_agent"}
            began, count = time.monotonic(), 0
            for frozen in list_workers(process):  # so that each is asked as often
                os.kill(frozen, signal.SIGSTOP)
                try:
                    count += admitted(await burst([client], limited, [body] * 15))
                finally:
                    os.kill(frozen, signal.SIGCONT)
            assert 10 <= count <= 10 + (time.monotonic() - began) / 6
            await until(lambda: runs(of=count), seconds=60)
            killed = list_workers(process)[0]
            os.kill(killed, signal.SIGKILL)
            await until(lambda: runs(of=count), seconds=90)
            assert killed not in list_workers(process)
            assert (
                admitted(await burst([client], {"authorization": f"Bearer {ADMIN}"}, [body] * 8))
                == 8
            )
            await until(lambda: runs(of=count + 8), seconds=60)
            assert seen == sorted(seen)
