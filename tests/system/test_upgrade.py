"""A database and a configuration that the version before made work unchanged."""

import contextlib
import gzip
import json
import shutil
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import httpx2
import pytest

from ai_agent_service.cli.check import check
from ai_agent_service.cli.db import db
from ai_agent_service.config.settings import Settings, load_settings
from ai_agent_service.providers.base import ModelEvent, ModelRequest, ProviderSetup
from ai_agent_service.providers.demo import Demo
from ai_agent_service.runtime.configuration import load, load_configuration
from ai_agent_service.runtime.plugin_loader import load_plugins
from ai_agent_service.server.application import create_app
from tests.support.commands import command, logging_restored
from tests.support.events import until
from tests.support.keys import bearer
from tests.support.service import open_client
from tests.system.upgrade.make import ENCRYPTION_KEY

HERE = Path(__file__).parent / "upgrade"
VARIABLES = {"plain": {}, "encrypted": {"MEMORY_ENCRYPTION_KEYS": ENCRYPTION_KEY}}


class RecordingDemo(Demo):
    """The provider `demo`, which keeps what it is asked."""

    def __init__(self) -> None:
        super().__init__(pause=0)
        self.requests: list[ModelRequest] = []

    # An instance is its own provider.
    def from_setup(self, setup: ProviderSetup) -> Self:  # type: ignore[override]
        return self

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        self.requests.append(request)
        async for event in super().stream(request):
            yield event


class Old:
    """A folder as the version before left it, and what that version answered about it."""

    def __init__(self, folder: Path, variant: str) -> None:
        self.folder = folder
        self.database = folder / "data" / "ai-agent-service.db"
        expected = json.loads((HERE / variant / "expected.json").read_text(encoding="utf-8"))
        self.keys: dict[str, str] = expected["keys"]
        self.asked: dict[str, dict[str, Any]] = expected["asked"]
        self.read: dict[str, str] = expected["read"]
        self.model = RecordingDemo()

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[httpx2.AsyncClient, None]:
        """Open the folder with today's service; the client has the old key."""
        plugins, faults = load_plugins()
        assert faults == []
        plugins.providers["demo"] = self.model
        async with open_client(create_app(load_configuration(load_settings(), plugins))) as client:
            client.headers.update(bearer(self.keys["school"]))
            yield client

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.database)) as database:
            return database.execute(statement).fetchall()


@pytest.fixture(params=VARIABLES)
def old(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Old:
    """What the version before left, in the folder that the service is started in."""
    shutil.copytree(HERE / "config", tmp_path, dirs_exist_ok=True)
    (tmp_path / "settings.env").rename(tmp_path / ".env")
    found = Old(tmp_path, request.param)
    found.database.parent.mkdir()
    packed = (HERE / request.param / "ai-agent-service.db.gz").read_bytes()
    found.database.write_bytes(gzip.decompress(packed))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(Settings.model_config, "env_file", ".env")
    for name, value in VARIABLES[request.param].items():
        monkeypatch.setenv(name, value)
    return found


async def test_the_old_configuration_is_valid(old: Old) -> None:
    found = load()
    assert (found.settings.service_name, found.settings.request_timeout) == ("school", 60)
    assert [agent.agent_id for agent in found.agents] == ["tutor", "guide", "clerk"]
    assert found.agents[0].system_prompt.startswith("You teach with patience")
    assert (found.agents[2].provider, found.agents[2].model) == ("azure_openai", "gpt-4.1")
    assert {each.server_label: each.off_reason for each in found.servers.definitions} == {
        "deepwiki": "DEEPWIKI_API_KEY is not set.",
        "clock": "It is disabled in the MCP configuration.",
    }
    with logging_restored():
        done = await command(check, old.folder)
    assert done.code == 0, done.stderr


async def test_old_conversations_are_listed_and_read_as_before(old: Old) -> None:
    async with old.serving() as client:
        for path, body in old.read.items():
            answer = await client.get(path)
            assert answer.status_code == 200
            if "/tour" in path or "branches=" in path:
                assert answer.text == body
                continue
            # The lists and exports of then lack the turn that the kill interrupted.
            now = [each for each in entries(answer.text) if each["session_id"] != "killed"]
            assert now == entries(body), path
    assert old.model.requests == []


async def test_a_retry_of_an_old_turn_is_answered_from_memory(old: Old) -> None:
    retry = {"first": {}, "tool": {"x-stainless-retry-count": "1"}, "once": {}}
    async with old.serving() as client:
        for name, headers in retry.items():
            turn = old.asked[name]
            answer = await client.post(
                "/v1/chat/completions", json=turn["body"], headers={**turn["headers"], **headers}
            )
            assert answer.json()["choices"][0]["message"]["content"] == turn["text"]
        other = {**old.asked["once"]["body"], "messages": [{"role": "user", "content": "More?"}]}
        refused = await client.post(
            "/v1/chat/completions",
            json=other,
            headers={**old.asked["once"]["headers"], "X-Session-Id": "once"},
        )
        assert refused.status_code == 422
        assert await count_messages(client, "edited") == 8
    assert old.model.requests == []


async def test_an_old_session_goes_on_with_the_servers_history(old: Old) -> None:
    async with old.serving() as client:
        asked = {"message": "What is my name?", "session_id": "lesson", "user_id": "ada"}
        answer = (await client.post("/agents/tutor/chat", json=asked)).json()
        assert answer["response"] == "Your name is Ada."
        assert await count_messages(client, "lesson") == 6
    [request] = old.model.requests
    assert [each.role for each in request.messages] == [
        *("system", "user", "assistant"),
        *("user", "assistant", "tool", "assistant", "user"),
    ]


async def test_an_old_session_goes_on_with_the_clients_history(old: Old) -> None:
    turn = old.asked["tool"]
    history = [*turn["body"]["messages"], {"role": "assistant", "content": turn["text"]}]
    body = {**turn["body"], "messages": [*history, {"role": "user", "content": "Who am I?"}]}
    async with old.serving() as client:
        answer = await client.post("/v1/chat/completions", json=body, headers=turn["headers"])
        assert answer.json()["choices"][0]["message"]["content"] == "Your name is Ada."
        assert await count_messages(client, "edited") == 10
    [request] = old.model.requests
    assert [each.text for each in request.messages if each.role == "tool"] == ["421.6"]


async def test_an_old_summary_is_used(old: Old) -> None:
    async with old.serving() as client:
        asked = {"message": "Go on.", "session_id": "tour", "user_id": "ada"}
        assert (await client.post("/agents/guide/chat", json=asked)).status_code == 200
    told = old.model.requests[0].messages
    assert len(told) == 4
    assert "You are the guide of the Museum of Clocks." in told[0].text
    assert "Your name is Ada." in told[0].text


async def test_old_keys_have_their_old_rights(old: Old) -> None:
    async with old.serving() as client:
        models = {
            name: await client.get("/v1/models", headers=bearer(key))
            for name, key in old.keys.items()
        }
        seen = {name: answer.status_code for name, answer in models.items()}
        assert seen == {"school": 200, "lost": 401, "guests": 200}
        assert [each["id"] for each in models["guests"].json()["data"]] == ["guide"]
        asked = await client.post("/v1/chat/completions", json=old.asked["first"]["body"])
        assert asked.headers["x-ratelimit-limit-requests"] == "600"


async def test_a_turn_that_was_cut_off_is_run_again(old: Old) -> None:
    running = "SELECT status, error FROM runs WHERE status = 'running' OR error IS NOT NULL"
    assert old.query(running) == [("running", None)]
    async with old.serving() as client:
        await until(lambda: old.query(running) == [("incomplete", "process_gone")])
        answer = await client.post(
            "/v1/chat/completions",
            json={
                "model": "tutor",
                "user": "ada",
                "messages": [{"role": "user", "content": "Hello!"}],
            },
            headers={"X-Session-Id": "killed", "x-stainless-retry-count": "1"},
        )
        assert answer.status_code == 200
        assert await count_messages(client, "killed") == 2
    assert len(old.model.requests) == 1


async def test_the_schema_is_left_as_it_is(old: Old) -> None:
    schema = "SELECT type, name, sql FROM sqlite_master ORDER BY name"
    before, revision = old.query(schema), old.query("SELECT version_num FROM alembic_version")
    with logging_restored():
        found = await command(db, old.folder, "check")
    assert found.code == 0, found.stderr
    async with old.serving() as client:
        body = old.asked["first"]["body"]
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    assert old.query(schema) == before
    assert old.query("SELECT version_num FROM alembic_version") == revision == [("0002",)]


async def count_messages(client: httpx2.AsyncClient, session: str) -> int:
    """Return how many messages of Ada's session with the tutor are stored, on all branches."""
    path = f"/agents/tutor/conversations/{session}?user_id=ada&branches=true"
    return len((await client.get(path)).json()["messages"])


def entries(body: str) -> list[dict[str, Any]]:
    """Return the sessions of a list, or those of an export as JSON Lines."""
    found = [json.loads(line) for line in body.splitlines()]
    return list(found[0]["data"]) if found and "data" in found[0] else found
