"""PostgreSQL looks up what a turn needs by an index, however much is stored."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from fastapi import FastAPI

from ai_agent_service.server.application import create_app
from ai_agent_service.storage.migrate import upgrade
from ai_agent_service.storage.postgres import PostgresEngine
from ai_agent_service.storage.url import parse_database_url
from benchmarks.databases import fill
from benchmarks.plans import Plan, logging_plans, plans_in
from tests.support.fake_provider import Script, says
from tests.support.postgres import PostgresServer
from tests.support.service import AGENT, configuration, open_client

pytestmark = pytest.mark.xdist_group("plans")  # the database is filled once

SESSIONS = 2000
TIMES = 7
"""From the sixth time on PostgreSQL may carry a prepared statement out otherwise, without regard to
its values."""

LONG = (
    "A long question, asked at length, so that it will soon be time to summarise what was said"
    " before it. " * 3
)
REMEMBERING = {
    **AGENT,
    "agent_id": "remembering",
    "resources": ["memory"],
    "resource_config": {
        "memory": {"compression": {"threshold_tokens": 400, "recent_messages_to_keep": 2}}
    },
}


class Explained(msgspec.Struct, frozen=True):
    """A database of a hundred thousand messages whose server logs how it carries out each
    statement."""

    server: PostgresServer
    name: str
    url: str

    @property
    def position(self) -> int:
        """Where the log ends."""
        return (self.server.folder / "log").stat().st_size

    def plans_since(self, position: int) -> list[Plan]:
        """How the statements since then were carried out."""
        return plans_in((self.server.folder / "log").read_bytes()[position:].decode())


@pytest.fixture(scope="module")
def explained(postgres_18: PostgresServer) -> Generator[Explained, None, None]:
    """A filled database."""
    name = postgres_18.new_database()

    async def migrate() -> None:
        engine = PostgresEngine(parse_database_url(postgres_18.url(name)), pool_size=1, timeout=30)
        await upgrade(engine)
        await engine.close()

    asyncio.run(migrate())
    fill(postgres_18, name, sessions=SESSIONS)
    postgres_18.sql(logging_plans(name))
    yield Explained(postgres_18, name, postgres_18.url(name))
    postgres_18.sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def app(tmp_path: Path, explained: Explained) -> FastAPI:
    """The service on that database."""
    return create_app(
        configuration(
            tmp_path, Script(says("An answer.")), agents=[REMEMBERING], database_url=explained.url
        )
    )


@pytest.fixture
async def client(app: FastAPI) -> AsyncGenerator[httpx2.AsyncClient, None]:
    """A client of it."""
    async with open_client(app) as client:
        yield client


async def turns(
    client: httpx2.AsyncClient, session: str, *, history: str = "client", **headers: str
) -> None:
    """A conversation that grows."""
    said: list[dict[str, Any]] = []
    for number in range(TIMES):
        said.append({"role": "user", "content": f"{LONG} {number}"})
        sent = said if history == "client" else said[-1:]
        response = await client.post(
            "/v1/chat/completions",
            json={"model": "remembering", "messages": sent},
            headers={"X-Session-Id": session, "X-Session-History": history, **headers},
        )
        assert response.status_code == 200, response.text
        said.append(
            {"role": "assistant", "content": response.json()["choices"][0]["message"]["content"]}
        )


def read_through(plans: list[Plan]) -> list[Plan]:
    return [plan for plan in plans if plan.read_through]


def kinds(plans: list[Plan]) -> set[str]:
    """What is done to which table: `SELECT nodes`."""
    words = {
        "INSERT": "INTO",
        "UPDATE": "UPDATE",
        "SELECT": "FROM",
        "WITH": "FROM",
        "DELETE": "FROM",
    }
    found = set()
    for plan in plans:
        parts = plan.statement.split()
        place = parts.index(words[parts[0]])
        found.add(f"{parts[0]} {parts[place + 1]}")
    return found


async def test_no_statement_of_a_turn_reads_a_table_through(
    client: httpx2.AsyncClient, explained: Explained
) -> None:
    position = explained.position
    await turns(client, "sent")
    await turns(client, "kept", history="server")
    # The same again, as a client asks it that did not get the answers.
    for again in (
        {"x-stainless-retry-count": "1"},
        {"x-aas-message": "one"},
        {"x-aas-message": "one"},
    ):
        await turns(client, "sent", **again)
    plans = explained.plans_since(position)
    assert read_through(plans) == []
    assert kinds(plans) >= {
        *(
            "INSERT sessions",
            "UPDATE sessions",
            "INSERT nodes",
            "SELECT nodes",
            "INSERT runs",
            "SELECT runs",
            "UPDATE runs",
        ),
        *(
            "INSERT summaries",
            "SELECT summaries",
            "WITH summaries",
        ),  # the last message that a summary covers, and those after it
    }


async def test_no_statement_that_shows_or_deletes_a_conversation_reads_a_table_through(
    client: httpx2.AsyncClient, explained: Explained
) -> None:
    await turns(client, "shown")
    position = explained.position
    for _ in range(TIMES):
        page = (await client.get("/agents/remembering/conversations?limit=2")).json()
        for path in (f"?limit=2&after={page['next']}", "/shown", "/shown?branches=true"):
            assert (await client.get(f"/agents/remembering/conversations{path}")).status_code == 200
    assert (await client.delete("/agents/remembering/conversations/shown")).status_code == 200
    plans = explained.plans_since(position)
    assert read_through(plans) == []
    assert kinds(plans) >= {
        "SELECT sessions",
        "SELECT nodes",
        "WITH nodes",
        "DELETE nodes",
        "DELETE runs",
        "DELETE sessions",
    }


@pytest.mark.usefixtures("client")
async def test_what_looks_after_the_database_every_few_seconds_reads_no_table_through(
    app: FastAPI, explained: Explained
) -> None:
    position = explained.position
    await app.state.service.memories.housekeeping.send_heartbeat()
    plans = explained.plans_since(position)
    assert read_through(plans) == []
    assert "UPDATE runs" in kinds(plans)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT count(*) FROM nodes WHERE body = 'x'",
        "SELECT run_id FROM runs ORDER BY run_id",
        "UPDATE sessions SET head = NULL WHERE head = ''",
    ],
)
def test_a_statement_that_reads_a_table_through_is_found(
    explained: Explained, statement: str
) -> None:
    position = explained.position
    explained.server.sql(statement, explained.name)
    [plan] = explained.plans_since(position)
    assert len(plan.read_through) == 1
