"""What looks after the database: old conversations go, and the runs of processes that are gone are
ended."""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest
from sqlalchemy import Connection, func, insert, select, update

from ai_agent_service.config.settings import Settings
from ai_agent_service.core.errors import SessionBusyError
from ai_agent_service.core.messages import Message
from ai_agent_service.memory.base import ErasureCounts, TurnAnswer
from ai_agent_service.memory.housekeeping import BATCH, CLEANUP_LOCK, Housekeeping
from ai_agent_service.memory.store import (
    PROCESS_STALE_SECONDS,
    Session,
    Store,
    Summary,
    TurnKey,
    TurnStart,
)
from ai_agent_service.server.application import create_app
from ai_agent_service.storage.database import Database
from ai_agent_service.storage.encryption import Cipher
from ai_agent_service.storage.migrate import upgrade
from ai_agent_service.storage.opening import build_engine
from ai_agent_service.storage.tables import nodes, processes, runs, sessions, summaries
from ai_agent_service.storage.url import parse_database_url
from tests.support.events import until
from tests.support.fake_provider import Script, says
from tests.support.postgres import PostgresServer
from tests.support.service import AGENT, configuration, open_client

REMEMBERING: dict[str, Any] = {**AGENT, "resources": ["memory"]}
RUN_SECONDS = 600.0
LONG_AGO = timedelta(days=100)
QUESTION = (Message(role="user", content="Hello"),)
NEXT_QUESTION = (
    *QUESTION,
    Message(role="assistant", content="Hello Ada"),
    Message(role="user", content="Do you know me?"),
)


class Replica:
    """One process of the service, as far as its database is concerned."""

    def __init__(self, database: Database, process_id: str) -> None:
        self.database = database
        self.store = Store(database, Cipher(()), process_id)

    def keeper(
        self, days: float | None = None, of_agents: Mapping[str, float] | None = None
    ) -> Housekeeping:
        """What looks after the database in this process."""
        return Housekeeping(
            self.store,
            retention_days=days,
            agent_retention_days=of_agents or {},
            interval_hours=24,
            run_seconds=RUN_SECONDS,
        )

    def session(self, session_id: str, agent_id: str = "helper") -> Session:
        return self.store.build_session("local", "ada", agent_id, session_id)

    async def begin(
        self,
        session_id: str,
        agent_id: str = "helper",
        *,
        conversation: Sequence[Message] = QUESTION,
        run_id: str,
        is_retry: bool = False,
    ) -> TurnStart:
        """What is found when a turn begins."""
        session = self.session(session_id, agent_id)
        entries = self.store.hasher.build_entries(conversation, session.key)

        def work(connection: Connection) -> TurnStart:
            return self.store.begin(connection, TurnKey(session, run_id, is_retry), entries)

        return await self.database.write(work)

    async def ask(
        self,
        session_id: str,
        agent_id: str = "helper",
        *,
        conversation: Sequence[Message] = QUESTION,
    ) -> str:
        """Begins a turn; gives its run id."""
        run_id = f"run {len(conversation)} of {session_id}"
        await self.begin(session_id, agent_id, conversation=conversation, run_id=run_id)
        return run_id

    async def talk(
        self, session_id: str, agent_id: str = "helper", *, age: timedelta = timedelta()
    ) -> None:
        """Takes a whole turn, with a summary, `age` ago."""
        session = self.session(session_id, agent_id)
        run_id = await self.ask(session_id, agent_id)
        [question] = self.store.hasher.build_entries(QUESTION, session.key)

        def work(connection: Connection) -> None:
            answer = TurnAnswer(text="Hello Ada")
            self.store.finish(connection, TurnKey(session, run_id), question, answer)
            self.store.store_summary(
                connection, session, Summary(question.path, 1, "Greetings"), b"settings"
            )
            connection.execute(
                update(sessions)
                .where(sessions.c.key == session.key)
                .values(updated_at=datetime.now(UTC) - age)
            )

        await self.database.write(work)

    async def lease(self, session_id: str) -> bool:
        """Takes the session for itself, if no other process has it."""
        until = datetime.now(UTC) + timedelta(seconds=300)
        session = self.session(session_id)
        return (
            await self.database.write(
                lambda connection: self.store.lease(connection, session, until)
            )
            is not None
        )

    async def rows(self) -> dict[str, int]:
        """How many rows each table has."""

        def work(connection: Connection) -> dict[str, int]:
            tables = (sessions, nodes, runs, summaries)
            return {
                table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
                for table in tables
            }

        return await self.database.read(work)

    async def sessions(self) -> list[str]:
        """The ids of all sessions."""
        return await self.database.read(
            lambda connection: sorted(connection.execute(select(sessions.c.session_id)).scalars())
        )

    async def runs(self) -> dict[str, tuple[str, str | None]]:
        """Status and error of every run."""
        wanted = select(runs.c.run_id, runs.c.status, runs.c.error)
        return await self.database.read(
            lambda connection: {
                row.run_id: (row.status, row.error) for row in connection.execute(wanted)
            }
        )

    async def processes(self) -> list[str]:
        """The processes that are known."""
        return await self.database.read(
            lambda connection: sorted(connection.execute(select(processes.c.process_id)).scalars())
        )

    async def unseen_for(self, seconds: float) -> None:
        """As if this process had not told for so long that it lives."""
        mine = update(processes).where(processes.c.process_id == self.store.process_id)
        await self.database.write(
            lambda connection: connection.execute(
                mine.values(seen_at=datetime.now(UTC) - timedelta(seconds=seconds))
            )
        )


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[tuple[Replica, Replica], None]:
    settings = Settings.model_validate({"database_url": url, "database_timeout": 20})
    database = Database(build_engine(parse_database_url(url), settings), timeout=20)
    await database.open()
    assert database.problem is None
    try:
        await upgrade(database.primary)
        replicas = Replica(database, "one"), Replica(database, "two")
        for replica in replicas:
            await replica.store.prepare(database.primary)
        yield replicas
    finally:
        await database.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/conversations.db"
    server: PostgresServer = request.getfixturevalue("postgres_18")
    return server.url(server.new_database())


@pytest.fixture
async def replicas(url: str) -> AsyncGenerator[tuple[Replica, Replica], None]:
    """Two processes at an empty database."""
    async with opened(url) as replicas:
        yield replicas


@pytest.fixture
def one(replicas: tuple[Replica, Replica]) -> Replica:
    return replicas[0]


@pytest.fixture
def two(replicas: tuple[Replica, Replica]) -> Replica:
    return replicas[1]


# Old conversations


async def test_a_conversation_that_is_too_old_goes_with_all_its_rows_and_a_younger_one_stays(
    one: Replica,
) -> None:
    await one.talk("old", age=timedelta(days=30, minutes=1))
    await one.talk("young", age=timedelta(days=29, hours=23))
    keeper = one.keeper(30)
    assert await keeper.clean_up() == ErasureCounts(sessions=1, messages=2, runs=1, summaries=1)
    assert await one.sessions() == ["young"]
    assert await one.rows() == {"sessions": 1, "nodes": 2, "runs": 1, "summaries": 1}
    assert await keeper.clean_up() == ErasureCounts()
    assert keeper.erased == ErasureCounts(sessions=1, messages=2, runs=1, summaries=1)


async def test_use_keeps_a_conversation(one: Replica) -> None:
    await one.talk("monday", age=LONG_AGO)
    await one.ask("monday")
    assert await one.keeper(30).clean_up() == ErasureCounts()


async def test_without_a_limit_all_are_kept(one: Replica) -> None:
    await one.talk("old", age=LONG_AGO)
    assert await one.keeper(None).clean_up() == ErasureCounts()
    assert await one.sessions() == ["old"]


@pytest.mark.parametrize(
    ("days", "left"), [(30, ["patient"]), (None, ["former", "helper", "patient"])]
)
async def test_an_agents_own_days_win_and_all_others_follow_the_default(
    one: Replica, days: float | None, left: list[str]
) -> None:
    for agent_id in ("helper", "forgetful", "patient", "former"):
        age = timedelta(days=2) if agent_id == "forgetful" else LONG_AGO
        await one.talk(agent_id, agent_id, age=age)
    await one.keeper(days, {"forgetful": 1, "patient": 1000}).clean_up()
    assert await one.sessions() == left


async def test_more_than_a_batch_goes_in_several_transactions(one: Replica) -> None:
    long_ago = datetime.now(UTC) - LONG_AGO
    many = [
        {
            **{
                "key": number.to_bytes(16, "big"),
                "tenant": "local",
                "user_id": "ada",
                "agent_id": "helper",
                "session_id": f"{number}",
            },
            **{"created_at": long_ago, "updated_at": long_ago},
        }
        for number in range(2 * BATCH + 1)
    ]
    await one.database.write(lambda connection: connection.execute(insert(sessions), many))
    await one.talk("young")
    assert (await one.keeper(30).clean_up()).sessions == 2 * BATCH + 1
    assert await one.sessions() == ["young"]


async def test_one_replica_at_a_time_deletes(postgres_18: PostgresServer) -> None:
    url = postgres_18.url(postgres_18.new_database())
    async with opened(url) as (one, _):
        await one.talk("old", age=LONG_AGO)
        other = await asyncpg.connect(url)
        await other.execute(f"SELECT pg_advisory_lock({CLEANUP_LOCK})")
        assert await one.keeper(30).clean_up() == ErasureCounts()
        assert await one.sessions() == ["old"]
        await other.close()

        async def deleted() -> bool:
            return (await one.keeper(30).clean_up()).sessions == 1

        await until(deleted)  # the server ends the other's connection in its own time
        assert await one.sessions() == []


async def test_a_turn_that_begins_while_its_old_conversation_is_deleted_is_not_lost(
    postgres_18: PostgresServer,
) -> None:
    url = postgres_18.url(postgres_18.new_database())
    async with opened(url) as (one, two):
        await one.talk("old", age=LONG_AGO)
        other = await asyncpg.connect(url)
        holding = other.transaction()
        await holding.start()
        await other.execute(
            "SELECT * FROM nodes FOR UPDATE"
        )  # so that the deletion stops in its middle
        deleting = asyncio.create_task(one.keeper(30).clean_up())
        await _waiting(url, 1)
        asking = asyncio.create_task(two.ask("old", conversation=NEXT_QUESTION))
        await _waiting(url, 2, unless=asking)
        await holding.rollback()
        await other.close()
        async with asyncio.timeout(20):
            await deleting
            run_id = await asking
        assert (await one.runs()).get(run_id) == ("running", None)
        assert await one.sessions() == ["old"]


async def _waiting(url: str, transactions: int, *, unless: asyncio.Task[Any] | None = None) -> None:
    """Returns once so many transactions wait for a lock, or a task is done that might wait for
    one."""
    watching = await asyncpg.connect(url)
    wanted = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND"
        " wait_event_type = 'Lock'"
    )

    async def met() -> bool:
        return bool(unless and unless.done()) or await watching.fetchval(wanted) >= transactions

    try:
        await until(met)
    finally:
        await watching.close()


# Processes


async def test_the_runs_of_a_process_that_is_gone_become_incomplete_and_its_sessions_are_free(
    one: Replica, two: Replica
) -> None:
    await two.keeper().send_heartbeat()
    await two.lease("monday")
    run_id = await two.ask("monday")
    await two.unseen_for(PROCESS_STALE_SECONDS + 2)
    keeper = one.keeper()
    assert not await one.lease("monday")
    await keeper.send_heartbeat()
    assert await one.runs() == {run_id: ("incomplete", "process_gone")}
    assert await one.lease("monday")
    assert keeper.ended_runs == 1
    await keeper.send_heartbeat()
    assert keeper.ended_runs == 1


async def test_a_session_that_a_process_took_before_it_was_gone_is_free_though_it_began_no_run(
    one: Replica, two: Replica
) -> None:
    await two.keeper().send_heartbeat()
    await two.lease("monday")
    await two.unseen_for(PROCESS_STALE_SECONDS + 2)
    await one.keeper().send_heartbeat()
    assert await one.lease("monday")


async def test_the_runs_and_the_sessions_of_a_living_process_stay_its_own(
    one: Replica, two: Replica
) -> None:
    await two.keeper().send_heartbeat()
    await two.unseen_for(PROCESS_STALE_SECONDS - 10)
    await two.lease("monday")
    run_id = await two.ask("monday")
    await two.ask("tuesday")
    gone = Replica(one.database, "gone")
    await gone.store.prepare(one.database.primary)
    await gone.keeper().send_heartbeat()
    await gone.ask("wednesday")
    await gone.unseen_for(PROCESS_STALE_SECONDS + 2)
    await one.keeper().send_heartbeat()
    assert await one.runs() == {
        run_id: ("running", None),
        "run 1 of tuesday": ("running", None),
        "run 1 of wednesday": ("incomplete", "process_gone"),
    }
    assert not await one.lease("monday")


async def test_a_process_keeps_its_own_runs_by_its_beats(one: Replica, two: Replica) -> None:
    await two.keeper().send_heartbeat()
    run_id = await two.ask("monday")
    await two.unseen_for(PROCESS_STALE_SECONDS + 2)
    await two.keeper().send_heartbeat()
    await one.keeper().send_heartbeat()
    assert await one.runs() == {run_id: ("running", None)}


async def test_runs_that_were_ended_stay_as_they_are(one: Replica) -> None:
    await one.talk("monday", age=LONG_AGO)
    await one.keeper().send_heartbeat()
    assert await one.runs() == {"run 1 of monday": ("done", None)}


async def test_a_run_that_takes_longer_than_any_may_is_ended_though_its_process_lives(
    one: Replica,
) -> None:
    keeper = one.keeper()
    await keeper.send_heartbeat()
    run_id = await one.ask("monday")
    await one.ask("tuesday")
    late = (
        update(runs)
        .where(runs.c.run_id == run_id)
        .values(started_at=datetime.now(UTC) - timedelta(seconds=RUN_SECONDS + 5))
    )
    await one.database.write(lambda connection: connection.execute(late))
    await keeper.send_heartbeat()
    found = await one.runs()
    assert (found[run_id][0], found["run 1 of tuesday"][0]) == ("incomplete", "running")


async def test_a_process_that_leaves_is_gone_at_once(one: Replica, two: Replica) -> None:
    await one.keeper().send_heartbeat()
    await two.keeper().send_heartbeat()
    run_id = await two.ask("monday")
    assert await one.processes() == ["one", "two"]
    await two.keeper().unregister_process()
    assert await one.processes() == ["one"]
    await one.keeper().send_heartbeat()
    assert (await one.runs())[run_id][0] == "incomplete"


async def test_a_process_that_was_not_seen_for_days_is_forgotten(
    one: Replica, two: Replica
) -> None:
    await two.keeper().send_heartbeat()
    await two.unseen_for(3 * 24 * 3600)
    await one.keeper().send_heartbeat()
    assert await one.processes() == ["one"]


async def test_a_turn_is_repeated_once_the_process_that_took_it_is_gone(
    one: Replica, two: Replica
) -> None:
    await two.keeper().send_heartbeat()
    await two.ask("monday")
    with pytest.raises(SessionBusyError):
        await one.begin("monday", run_id="again", is_retry=True)
    await two.unseen_for(PROCESS_STALE_SECONDS + 2)
    begun = await one.begin("monday", run_id="again", is_retry=True)
    assert (begun.answer, begun.in_progress) == (None, None)
    assert (await one.runs())["again"] == ("running", None)


# The service


async def talk(client: httpx2.AsyncClient, agent_id: str, session_id: str) -> None:
    response = await client.post(
        f"/agents/{agent_id}/chat", json={"message": "Hello", "session_id": session_id}
    )
    assert response.status_code == 200, response.text


async def counted(client: httpx2.AsyncClient, name: str, number: int) -> bool:
    """Whether health says so of the database."""
    database: dict[str, Any] = (await client.get("/health", params={"detailed": "true"})).json()[
        "database"
    ]
    return bool(database[name] == number)


def aged(folder: Path, **days: float) -> None:
    """As if the sessions of these agents were used last so many days ago."""
    with closing(sqlite3.connect(folder / "data" / "ai-agent-service.db")) as database:
        for agent_id, age in days.items():
            moment = (datetime.now(UTC) - timedelta(days=age)).strftime("%Y-%m-%d %H:%M:%S.%f")
            assert database.execute(
                "UPDATE sessions SET updated_at = ? WHERE agent_id = ?", (moment, agent_id)
            ).rowcount
        database.commit()


async def test_the_service_deletes_by_itself_what_is_too_old_and_health_counts_it(
    tmp_path: Path,
) -> None:
    brief = {
        **REMEMBERING,
        "agent_id": "brief",
        "resource_config": {"memory": {"retention_days": 1}},
    }
    former = {**REMEMBERING, "agent_id": "former"}
    async with open_client(
        create_app(configuration(tmp_path, Script(says("Hi")), agents=[REMEMBERING, brief, former]))
    ) as client:
        for agent_id in ("helper", "brief", "former"):
            await talk(client, agent_id, "monday")
        assert await counted(client, "cleaned_up_sessions", 0)
    aged(tmp_path, helper=2, brief=2, former=31)
    settings: dict[str, Any] = {"memory_retention_days": 30, "memory_cleanup_interval_hours": 1e-9}
    app = create_app(
        configuration(tmp_path, Script(says("Hi")), agents=[REMEMBERING, brief], **settings)
    )
    async with open_client(app) as client:
        await until(lambda: counted(client, "cleaned_up_sessions", 2))
        assert await counted(client, "cleaned_up_messages", 4)
        kept = [
            await client.get(f"/agents/{agent_id}/conversations/monday")
            for agent_id in ("helper", "brief")
        ]
        assert [response.status_code for response in kept] == [200, 404]
    with closing(sqlite3.connect(tmp_path / "data" / "ai-agent-service.db")) as database:
        assert database.execute("SELECT agent_id FROM sessions").fetchall() == [("helper",)]


async def test_the_service_ends_the_runs_of_processes_that_are_gone_and_health_counts_them(
    tmp_path: Path,
) -> None:
    app = create_app(configuration(tmp_path, Script(says("Hi")), agents=[REMEMBERING]))
    async with open_client(app) as client:
        await talk(client, "helper", "monday")
    with closing(sqlite3.connect(tmp_path / "data" / "ai-agent-service.db")) as database:
        assert database.execute("SELECT count(*) FROM processes").fetchone() == (0,)
        database.execute(
            "UPDATE runs SET status = 'running', ended_at = NULL, answer = NULL, process_id ="
            " 'gone'"
        )
        database.commit()
    app = create_app(configuration(tmp_path, Script(says("Hi")), agents=[REMEMBERING]))
    async with open_client(app) as client:
        await until(lambda: counted(client, "ended_runs", 1))
