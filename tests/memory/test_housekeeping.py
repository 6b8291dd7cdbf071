"""What looks after the database: old conversations go, and the runs of processes that are gone are
ended."""

import asyncio
import sqlite3
import subprocess
import sys
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
from ai_agent_service.memory import housekeeping
from ai_agent_service.memory.base import ErasureCounts, TurnAnswer
from ai_agent_service.memory.housekeeping import BATCH, CLEANUP_LOCK, Housekeeping
from ai_agent_service.memory.processes import (
    HEARTBEAT_SECONDS,
    PROCESS_STALE_SECONDS,
    generate_process_id,
)
from ai_agent_service.memory.store import (
    Session,
    Store,
    Summary,
    TurnKey,
    TurnStart,
)
from ai_agent_service.server.application import create_app
from ai_agent_service.storage.clock import SETTLE_SECONDS, read_database_time
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
        self.uptime = 1000.0
        self.heart = self.keeper()

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
            clock=lambda: self.uptime,
        )

    async def beat_for(self, seconds: float, *others: "Replica") -> None:
        """Sends the heartbeats of so many seconds, and those of `others` that live too."""
        for _ in range(int(seconds // HEARTBEAT_SECONDS) + 1):
            for each in (*others, self):
                await each.heart.send_heartbeat()
            self.uptime += HEARTBEAT_SECONDS

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
        session = self.session(session_id)
        work = self.store.lease
        return await self.database.write(lambda connection: work(connection, session)) is not None

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
    await two.lease("monday")
    run_id = await two.ask("monday")
    await one.beat_for(PROCESS_STALE_SECONDS - HEARTBEAT_SECONDS)
    assert await one.runs() == {run_id: ("running", None)}
    assert not await one.lease("monday")
    await one.beat_for(HEARTBEAT_SECONDS)
    assert await one.runs() == {run_id: ("incomplete", "process_gone")}
    assert await one.lease("monday")
    assert await one.processes() == ["one"]
    await one.beat_for(HEARTBEAT_SECONDS)
    assert one.heart.ended_runs == 1


async def test_a_session_that_a_process_took_before_it_was_gone_is_free_though_it_began_no_run(
    one: Replica, two: Replica
) -> None:
    await two.lease("monday")
    await one.beat_for(PROCESS_STALE_SECONDS)
    assert await one.lease("monday")


async def test_the_runs_and_the_sessions_of_a_living_process_stay_its_own(
    one: Replica, two: Replica
) -> None:
    await two.lease("monday")
    run_id = await two.ask("monday")
    gone = Replica(one.database, "gone")
    await gone.store.prepare(one.database.primary)
    await gone.ask("wednesday")
    await one.beat_for(PROCESS_STALE_SECONDS, two)
    assert await one.runs() == {
        run_id: ("running", None),
        "run 1 of wednesday": ("incomplete", "process_gone"),
    }
    assert not await one.lease("monday")


async def test_a_process_whose_clock_stood_still_with_the_database_loses_nothing(
    one: Replica, two: Replica
) -> None:
    run_id = await two.ask("monday")
    await one.beat_for(0, two)
    one.uptime += 600  # nothing could be written for so long, by any process
    await one.heart.send_heartbeat()
    assert await one.runs() == {run_id: ("running", None)}
    await one.beat_for(PROCESS_STALE_SECONDS, two)
    assert await one.runs() == {run_id: ("running", None)}


async def test_a_process_of_this_host_that_exited_is_gone_at_once(one: Replica) -> None:
    dead = await _begin_in_dead_process(one, "monday")
    assert await one.lease("monday")
    begun = await one.begin("monday", run_id="again", is_retry=True)
    assert (begun.answer, begun.in_progress) == (None, None)
    await one.heart.send_heartbeat()
    assert (await one.runs())[dead] == ("incomplete", "process_gone")
    assert await one.processes() == ["one", "two"]


@pytest.mark.parametrize("other", ["host", "start"])
async def test_a_process_is_judged_by_the_own_process_table_only_if_it_is_in_it(
    one: Replica, two: Replica, other: str
) -> None:
    """`host`: its number means nothing here. `start`: another process has its number now."""
    host, pid, start, rest = generate_process_id().split(":")
    if other == "host":
        pid = str(_find_free_pid())
    else:
        start = str(int(start) + 1)
    foreign = Replica(one.database, f"{host}:{pid}:{start}:{rest}")
    foreign.store.host = "elsewhere pid:[1]" if other == "host" else one.store.host
    await foreign.store.prepare(one.database.primary)
    assert await foreign.lease("monday")
    assert await one.lease("monday") is (other == "start")


def _find_free_pid() -> int:
    """The number of a process that has exited."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


async def _begin_in_dead_process(one: Replica, session_id: str) -> str:
    """Takes a session and begins a run as a process that has exited since; gives the run's id."""
    dead = Replica(one.database, f"host:{_find_free_pid()}:1:abcdefgh")
    await dead.store.prepare(one.database.primary)
    assert await dead.lease(session_id)
    return await dead.ask(session_id)


async def test_a_session_that_no_turn_of_its_process_has_any_more_is_released(
    one: Replica, two: Replica
) -> None:
    held = one.session("held").key
    one.store.is_held = held.__eq__
    assert await one.lease("held")
    assert await one.lease("left")
    await one.heart.send_heartbeat()
    assert not await two.lease("held")
    assert await two.lease("left")


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
    await one.ask("wednesday")
    one.store.is_live = "run 1 of wednesday".__eq__
    late = (
        update(runs)
        .where(runs.c.run_id.in_((run_id, "run 1 of wednesday")))
        .values(started_at=datetime.now(UTC) - timedelta(seconds=RUN_SECONDS + 5))
    )
    await one.database.write(lambda connection: connection.execute(late))
    await keeper.send_heartbeat()
    found = await one.runs()
    assert {name: status for name, (status, _) in found.items()} == {
        run_id: "incomplete",
        "run 1 of tuesday": "running",
        "run 1 of wednesday": "running",
    }


async def test_a_process_that_leaves_is_gone_at_once(one: Replica, two: Replica) -> None:
    await one.keeper().send_heartbeat()
    await two.keeper().send_heartbeat()
    run_id = await two.ask("monday")
    assert await one.processes() == ["one", "two"]
    await two.keeper().unregister_process()
    assert await one.processes() == ["one"]
    await one.keeper().send_heartbeat()
    assert (await one.runs())[run_id][0] == "incomplete"


async def test_a_turn_is_repeated_once_the_process_that_took_it_is_gone(
    one: Replica, two: Replica
) -> None:
    await two.ask("monday")
    with pytest.raises(SessionBusyError):
        await one.begin("monday", run_id="again", is_retry=True)
    await one.beat_for(PROCESS_STALE_SECONDS)
    begun = await one.begin("monday", run_id="again", is_retry=True)
    assert (begun.answer, begun.in_progress) == (None, None)
    assert (await one.runs())["again"] == ("running", None)


# A clock that jumps


@pytest.mark.parametrize("days", [-40, 40])
async def test_nothing_is_deleted_by_a_clock_that_has_jumped_until_it_has_stayed_so(
    one: Replica, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, days: float
) -> None:
    await one.talk("old", age=timedelta(days=31))
    await one.talk("young")
    keeper = one.keeper(30)
    shift = timedelta()
    monkeypatch.setattr(
        housekeeping, "read_database_time", lambda found: read_database_time(found) + shift
    )
    await keeper.send_heartbeat()
    shift = timedelta(days=days)
    one.uptime += HEARTBEAT_SECONDS
    assert await keeper.clean_up() == ErasureCounts()
    assert "database.clock_jumped" in caplog.text
    one.uptime += SETTLE_SECONDS - 1
    shift += timedelta(seconds=SETTLE_SECONDS - 1)
    assert await keeper.clean_up() == ErasureCounts()
    one.uptime += HEARTBEAT_SECONDS
    shift += timedelta(seconds=HEARTBEAT_SECONDS)
    assert (await keeper.clean_up()).sessions == (2 if days > 0 else 0)


async def test_a_jump_that_is_taken_back_deletes_nothing(
    one: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one.talk("young")
    keeper = one.keeper(30)
    shift = timedelta(days=400)
    monkeypatch.setattr(
        housekeeping, "read_database_time", lambda found: read_database_time(found) + shift
    )
    assert await keeper.clean_up() == ErasureCounts()  # it differs from the process's own
    shift = timedelta()
    one.uptime += SETTLE_SECONDS + 1
    assert await keeper.clean_up() == ErasureCounts()
    shift = timedelta(seconds=SETTLE_SECONDS)
    one.uptime += SETTLE_SECONDS
    assert await keeper.clean_up() == ErasureCounts()
    assert await one.sessions() == ["young"]


async def test_what_was_used_while_the_clock_was_ahead_is_not_kept_for_years(one: Replica) -> None:
    await one.talk("ahead", age=timedelta(days=-4000))
    await one.keeper(30).clean_up()
    newest = await one.database.read(
        lambda connection: connection.execute(select(sessions.c.updated_at)).scalar_one()
    )
    assert abs(newest - datetime.now(UTC)) < timedelta(minutes=5)


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
