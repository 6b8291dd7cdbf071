"""Encryption at rest: what can be read of the database's file, with which keys the service reads
it, and what it does without."""

import asyncio
import base64
import hashlib
import json
import logging
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from ai_agent_service.core.errors import ConfigError
from ai_agent_service.server.application import create_app
from tests.support.clients import CHAT, read_completion, read_error
from tests.support.fake_provider import Action, Script, calls, says
from tests.support.memory import in_turn
from tests.support.service import AGENT, configuration, open_client

OLD = bytes(range(32))
NEW = bytes(range(100, 132))
PICTURE = base64.b64encode(b"a picture of a red fox").decode()
QUESTION: dict[str, Any] = {
    "role": "user",
    "content": [
        {"type": "text", "text": "My fox is called Reynard."},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}},
    ],
}
COMPRESSION = {"threshold_tokens": 100, "recent_messages_to_keep": 2}
REMEMBERING: dict[str, Any] = {
    **AGENT,
    "resources": ["memory"],
    "resource_config": {"memory": {"compression": COMPRESSION}},
}
LENIENT: dict[str, Any] = {
    **AGENT,
    "agent_id": "lenient",
    "resources": ["memory"],
    "resource_config": {"memory": {"required": False}},
}
PLAIN: dict[str, Any] = {**AGENT, "agent_id": "plain"}

SAID = (
    b"Reynard",
    PICTURE.encode(),
    b"den is at",
    b"40001*3",
    b"120003",
    b"vixen",
    b"nightingale",
    b"Summarised",
)
"""Something of all that is said in `conversation`: in questions, answers, calls, results and the
summary."""


def script(animal: str = "vixen", sum_of: str = "40001*3", total: str = "120003") -> Script:
    first: list[Action] = calls(("calculate", {"expression": sum_of}), text="The den is at ")
    return Script(
        first,
        says(f"{total}, I think."),
        says(f"The {animal} agrees."),
        says(f"Summarised: the user has a {animal}."),
    )


def written(*keys: bytes) -> str:
    """MEMORY_ENCRYPTION_KEYS."""
    return ",".join(base64.b64encode(key).decode() for key in keys)


def key_id(key: bytes) -> str:
    return hashlib.sha256(b"key id" + key).hexdigest()[:8]


class Client:
    """A client of the service, in the session `monday`."""

    def __init__(self, app: FastAPI, http: httpx2.AsyncClient) -> None:
        self._app = app
        self.http = http

    async def settled(self) -> None:
        """Waits until no summary is being made."""
        async with asyncio.timeout(30):
            while len(self._app.state.service.memories.tasks):  # noqa: ASYNC110 - tasks come and go
                await asyncio.sleep(0.005)

    async def ask(self, *messages: Any, user: str = "ada") -> str:
        """The answer to a conversation; texts are the user's and the assistant's in turn."""
        response = await self.http.post(
            CHAT,
            json={"model": "helper", "messages": in_turn(messages), "user": user},
            headers={"X-Session-Id": "monday"},
        )
        await self.settled()
        answer: str = read_completion(response)["choices"][0]["message"]["content"]
        return answer

    async def converse(
        self, user: str = "ada", question: Any = QUESTION, bird: str = "nightingale"
    ) -> None:
        """Two turns, with a picture, a call of a tool and a summary."""
        first = await self.ask(question, user=user)
        await self.ask(
            question, first, f"Sing as the {bird} " + "does again and again " * 40, user=user
        )

    async def stored(self, user: str = "ada") -> list[Any]:
        """What is told of each stored message."""
        response = await self.http.get(
            "/agents/helper/conversations/monday", params={"user_id": user}
        )
        assert response.status_code == 200, response.text
        messages: list[Any] = response.json()["messages"]
        return messages


@asynccontextmanager
async def service(
    folder: Path, *keys: bytes, provider: Script | None = None
) -> AsyncGenerator[Client, None]:
    """A client of the service with these keys."""
    settings: dict[str, Any] = {
        "database_timeout": 30,
        "allow_unauthenticated": True,
        **({"memory_encryption_keys": written(*keys)} if keys else {}),
    }
    app = create_app(
        configuration(
            folder,
            provider or Script(says("Well.")),
            agents=[REMEMBERING, LENIENT, PLAIN],
            **settings,
        )
    )
    async with open_client(app) as http:
        yield Client(app, http)


def find_file(folder: Path) -> Path:
    return folder / "data" / "ai-agent-service.db"


def bodies(folder: Path) -> list[str]:
    with closing(sqlite3.connect(find_file(folder))) as database:
        return [
            body
            for (body,) in database.execute("SELECT body FROM nodes ORDER BY created_at, depth")
        ]


def found_in(folder: Path) -> list[bytes]:
    """What of `SAID` stands in the database's files."""
    content = b"".join(path.read_bytes() for path in sorted((folder / "data").iterdir()))
    return [words for words in SAID if words in content]


def read_values(folder: Path, user: str) -> set[tuple[str, str, Any]]:
    """All values in the rows of a user, with their table and column."""
    found = set()
    with closing(sqlite3.connect(find_file(folder))) as database:
        database.row_factory = sqlite3.Row
        for table in ("sessions", "nodes", "runs", "summaries"):
            for row in database.execute(f"SELECT * FROM {table} WHERE user_id = ?", (user,)):
                # a row is not a dict
                found |= {(table, column, row[column]) for column in row.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize(("keys", "found"), [((), SAID), ((NEW,), ())])
async def test_with_a_key_nothing_that_was_said_stands_in_the_databases_files(
    tmp_path: Path, keys: tuple[bytes, ...], found: tuple[bytes, ...]
) -> None:
    async with service(tmp_path, *keys, provider=script()) as client:
        await client.converse()
        assert find_file(tmp_path).with_name("ai-agent-service.db-wal").stat().st_size > 0
        assert found_in(tmp_path) == list(found)
        with closing(sqlite3.connect(find_file(tmp_path))) as database:
            assert database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
            assert database.execute("SELECT count(*) FROM summaries").fetchone() == (1,)
        assert found_in(tmp_path) == list(found)


@pytest.mark.parametrize(
    ("keys", "equal"),
    [((), {("nodes", "body"), ("summaries", "body")}), ((NEW,), set[tuple[str, str]]())],
)
async def test_equal_words_of_two_users_show_no_equal_values(
    tmp_path: Path, keys: tuple[bytes, ...], equal: set[tuple[str, str]]
) -> None:
    provider = Script(*script().answers, *script().answers, *script("badger", "1+1", "2").answers)
    async with service(tmp_path, *keys, provider=provider) as client:
        await client.converse("ada")
        await client.converse("eve")
        await client.converse("bob", "My badger has no name.", "robin")
    ada, eve, bob = (read_values(tmp_path, user) for user in ("ada", "eve", "bob"))
    assert {table for table, _, _ in bob} == {"sessions", "nodes", "runs", "summaries"}
    assert {(table, column) for table, column, _ in (ada & eve) - bob} == equal


async def test_what_was_said_reads_back_in_the_history_and_the_export(tmp_path: Path) -> None:
    async with service(tmp_path, NEW, provider=script()) as client:
        await client.converse()
    async with service(tmp_path, NEW) as client:
        question, answer, longer, last = await client.stored()
        assert "My fox is called Reynard." in json.dumps(question["content"])
        assert PICTURE in json.dumps(question["content"])
        assert answer["content"] == "The den is at 120003, I think."
        assert [(call["arguments"], call["result"]) for call in answer["tool_calls"]] == [
            ('{"expression":"40001*3"}', "120003")
        ]
        assert longer["content"].startswith("Sing as the nightingale")
        assert last["content"] == "The vixen agrees."
        lines = (await client.http.get("/memory", params={"user_id": "ada"})).text.splitlines()
        assert [json.loads(line)["messages"] for line in lines] == [
            [question, answer, longer, last]
        ]


async def test_the_model_is_shown_what_is_encrypted(tmp_path: Path) -> None:
    async with service(tmp_path, NEW, provider=script()) as client:
        await client.converse()
    provider = Script(says("Well."))
    async with service(tmp_path, NEW, provider=provider) as client:
        asked = {"message": "And?", "session_id": "monday", "user_id": "ada"}
        assert (await client.http.post("/agents/helper/chat", json=asked)).status_code == 200
        told = provider.requests[0].messages
    assert "Summarised: the user has a vixen." in told[0].text
    assert [message.text for message in told[2:]] == ["The vixen agrees.", "And?"]


async def test_with_a_new_first_key_old_rows_stay_readable_and_new_rows_use_it(
    tmp_path: Path,
) -> None:
    async with service(tmp_path, OLD) as client:
        await client.ask("Before")
    async with service(tmp_path, NEW, OLD) as client:
        await client.ask("Before", "Well.", "After")
        assert [message["content"] for message in await client.stored()] == [
            "Before",
            "Well.",
            "After",
            "Well.",
        ]
    assert [body.split(":")[1] for body in bodies(tmp_path)] == [key_id(OLD)] * 2 + [
        key_id(NEW)
    ] * 2


async def test_what_was_stored_before_there_were_keys_stays_readable(tmp_path: Path) -> None:
    async with service(tmp_path, provider=script()) as client:
        await client.converse()
        before = await client.stored()
    async with service(tmp_path, NEW) as client:
        assert await client.stored() == before
        await client.ask("After")
    assert [body.startswith("aesgcm:") for body in bodies(tmp_path)] == [False] * 4 + [True] * 2


@pytest.mark.parametrize("keys", [(), (NEW,)])
async def test_without_its_key_the_memory_cannot_be_used_and_all_else_can(
    tmp_path: Path, keys: tuple[bytes, ...], caplog: pytest.LogCaptureFixture
) -> None:
    async with service(tmp_path, OLD) as client:
        await client.ask("Before")
    caplog.set_level(logging.DEBUG)
    async with service(tmp_path, *keys) as client:
        asked = {"message": "And?", "session_id": "monday", "user_id": "ada"}
        refused = [
            await client.http.post("/agents/helper/chat", json=asked),
            await client.http.post(
                CHAT,
                json={"model": "helper", "messages": [QUESTION], "stream": True},
                headers={"X-Session-Id": "monday"},
            ),
            await client.http.get("/agents/helper/conversations/monday", params={"user_id": "ada"}),
            await client.http.get("/agents/helper/conversations", params={"user_id": "ada"}),
            await client.http.get("/memory", params={"user_id": "ada"}),
            await client.http.delete("/memory", params={"user_id": "ada"}),
        ]
        for response in refused:
            error = read_error(response, 503)
            assert error["code"] == "memory_unavailable"
            assert not any(
                words in response.text for words in (key_id(OLD), "key", "KEY", "decrypt")
            )
            assert int(response.headers["retry-after"]) >= 1
        health = (await client.http.get("/health", params={"detailed": "true"})).json()
        assert (health["status"], health["database"]["state"]) == ("degraded", "down")
        assert key_id(OLD) in health["database"]["error"]
        assert "MEMORY_ENCRYPTION_KEYS" in health["database"]["error"]
        assert (await client.http.get("/health/ready")).status_code == 200
        assert (await client.http.post("/agents/plain/chat", json=asked)).status_code == 200
        lenient = await client.http.post("/agents/lenient/chat", json=asked)
        assert (lenient.status_code, lenient.headers["x-memory"]) == (200, "unavailable")
    assert [record.message for record in caplog.records if record.exc_info] == []
    lost = [record for record in caplog.records if record.message == "database.lost"]
    assert [key_id(OLD) in str(record.__dict__["reason"]) for record in lost] == [True]
    async with service(tmp_path, OLD) as client:
        assert [message["content"] for message in await client.stored()] == ["Before", "Well."]


async def test_rows_whose_key_is_missing_are_refused_without_a_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with service(tmp_path) as client:
        await client.ask("In the clear", user="eve")
    async with service(tmp_path, OLD) as client:
        await client.ask("Encrypted")
    async with service(tmp_path, NEW) as client:
        asked = {"message": "And?", "session_id": "monday", "user_id": "ada"}
        for response in (
            await client.http.post("/agents/helper/chat", json=asked),
            await client.http.get("/agents/helper/conversations/monday", params={"user_id": "ada"}),
            await client.http.get("/memory", params={"user_id": "ada"}),
        ):
            assert read_error(response, 503)["code"] == "memory_unavailable"
            assert key_id(OLD) not in response.text
        assert [message["content"] for message in await client.stored("eve")] == [
            "In the clear",
            "Well.",
        ]
        lenient = await client.http.post("/agents/lenient/chat", json={**asked, "user_id": "eve"})
        assert (lenient.status_code, "x-memory" in lenient.headers) == (200, False)
    assert [record.message for record in caplog.records if record.exc_info] == []
    reasons = [
        str(record.__dict__["reason"])
        for record in caplog.records
        if record.message == "memory.undecryptable"
    ]
    assert reasons
    assert all(key_id(OLD) in reason for reason in reasons)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [("secret", "Key 1 is not a key"), (written(NEW, NEW), "Keys 1 and 2 are the same")],
)
def test_keys_that_cannot_be_used_stop_the_start_and_are_not_repeated(
    tmp_path: Path, keys: str, problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        configuration(tmp_path, agents=[REMEMBERING], memory_encryption_keys=keys)
    [fault] = caught.value.faults
    assert (fault.file, fault.field) == ("environment", "MEMORY_ENCRYPTION_KEYS")
    assert problem in fault.problem
    assert keys not in str(fault)
