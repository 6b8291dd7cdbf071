"""Encrypting anew what is stored: all of it, beside a service that runs, and without losing what
cannot be read."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import msgspec
import pytest
from sqlalchemy import Connection

from ai_agent_service.config.settings import load_settings
from ai_agent_service.core.messages import Message, ToolCall, ToolResult
from ai_agent_service.maintenance.reencryption import (
    check_hash_key,
    count_rows,
    list_live_processes,
    read_hash_key,
    reencrypt,
)
from ai_agent_service.memory.base import Step, TurnAnswer
from ai_agent_service.memory.conversations import SqlConversations
from ai_agent_service.memory.housekeeping import Housekeeping
from ai_agent_service.memory.store import Store, Summary, TurnKey
from ai_agent_service.storage.database import Database
from ai_agent_service.storage.encryption import Cipher, DecryptionError
from ai_agent_service.storage.migrate import upgrade
from ai_agent_service.storage.opening import build_engine
from ai_agent_service.storage.url import parse_database_url
from tests.support.events import wait_until
from tests.support.memory import Database as Stored
from tests.support.postgres import DatabaseUnderTest, PostgresServer

OLD, NEW, LOST = (secrets.token_bytes(32) for _ in range(3))
SETTINGS = b"settings-of-16-b"
QUESTION, RESULT, ANSWER, SUMMARY = (
    "what is secret?",
    "secret of a tool",
    "the secret is out",
    "all about secrets",
)
VALUES = 5
"""Values of one turn: a question, an answer and its steps, a summary; and the key of the
addresses."""


@asynccontextmanager
async def opened(url: str, *keys: bytes) -> AsyncGenerator[Store, None]:
    """A store with `keys` in the database, which gets its tables."""
    store: Store

    async def prepare(engine: object) -> None:
        await upgrade(database.primary)
        await store.prepare(database.primary)

    database = Database(
        build_engine(parse_database_url(url), load_settings(database_timeout=30)),
        timeout=30,
        prepare=prepare,
    )
    store = Store(database, Cipher(keys), "a process")
    await database.open()
    assert database.problem is None
    try:
        yield store
    finally:
        await database.close()


async def tell(store: Store, session_id: str, question: str = QUESTION) -> None:
    """A turn with a tool call, and a summary of it."""
    session = store.build_session("local", "ann", "helper", session_id)
    [entry] = store.hasher.build_entries([Message(role="user", content=question)], session.key)
    step = Step(
        calls=(ToolCall("c1", "look", "{}"),),
        results=(ToolResult(call_id="c1", name="look", content=RESULT),),
    )
    run_id = f"run_{session_id}"

    def work(connection: Connection) -> None:
        turn = TurnKey(session, run_id)
        store.begin(connection, turn, [entry])
        store.finish(connection, turn, entry, TurnAnswer(text=ANSWER, steps=(step,), last=ANSWER))
        store.store_summary(connection, session, Summary(entry.path, 1, SUMMARY), SETTINGS)

    await store.database.write(work)


async def told(store: Store, session_id: str) -> tuple[list[object], list[str], str]:
    """What is found of a session: what was said, what tools gave, and the summary."""
    found = await SqlConversations(store).get("local", "ann", "helper", session_id)
    session = store.build_session("local", "ann", "helper", session_id)
    paths = [bytes.fromhex(message.id) for message in found.messages]
    summary = await store.database.read(
        lambda connection: store.find_summary(connection, session, paths, SETTINGS)
    )
    results = [
        result.content
        for message in found.messages
        for step in message.steps
        for result in step.results
    ]
    assert summary is not None
    return [message.content for message in found.messages], results, summary.text


WHOLE = ([QUESTION, ANSWER], [RESULT], SUMMARY)


async def again(
    store: Store, new: Cipher, progress: Callable[[int], object] = lambda _: None, **limits: int
) -> tuple[int, int, dict[str, int]]:
    """Encrypts anew; how many values were changed, how many not, and what kept how many from being
    read."""
    found = await reencrypt(store.database, store.cipher, new, progress, **limits)
    return found.changed, found.unchanged, dict(found.unreadable)


async def test_after_a_rotation_the_new_key_is_all_that_is_needed(
    database: DatabaseUnderTest,
) -> None:
    async with opened(database.url, OLD) as store:
        await tell(store, "first")
    async with opened(database.url, NEW, OLD) as store:
        await tell(store, "second")
        assert await told(store, "first") == await told(store, "second") == WHOLE
        assert await again(store, store.cipher) == (VALUES, VALUES - 1, {})
        assert await again(store, store.cipher) == (0, 2 * VALUES - 1, {})
    async with opened(database.url, NEW) as store:
        assert await told(store, "first") == await told(store, "second") == WHOLE
        key = await store.database.read(read_hash_key)
        check_hash_key(key, store.cipher)
        with pytest.raises(DecryptionError):
            check_hash_key(key, Cipher([OLD]))


async def test_what_was_stored_in_the_clear_is_encrypted(
    database: DatabaseUnderTest, stored: Stored
) -> None:
    async with opened(database.url) as store:
        await tell(store, "first")
    async with opened(database.url, NEW) as store:
        assert await again(store, store.cipher) == (VALUES, 0, {})
        assert await told(store, "first") == WHOLE
    for statement in (
        "SELECT body FROM nodes",
        "SELECT steps FROM nodes WHERE steps IS NOT NULL",
        "SELECT body FROM summaries",
    ):
        assert all(value.startswith("aesgcm:") for (value,) in await stored.rows(statement))
    assert (await stored.value("SELECT value FROM secrets")).startswith("aesgcm:")


async def test_no_clear_text_stays_in_an_sqlite_file(tmp_path: Path) -> None:
    url, long = f"sqlite:///{tmp_path}/conversations.db", f"{QUESTION} {'x' * 20_000}"
    async with opened(url) as store:
        for number in range(20):
            await tell(store, f"session {number}", long)
    assert QUESTION.encode() in (tmp_path / "conversations.db").read_bytes()
    async with opened(url, NEW) as store:
        await again(store, store.cipher)
    written = (tmp_path / "conversations.db").read_bytes()
    assert [text for text in (QUESTION, RESULT, ANSWER, SUMMARY) if text.encode() in written] == []


async def test_what_was_decrypted_for_good_needs_no_key(
    database: DatabaseUnderTest, stored: Stored
) -> None:
    async with opened(database.url, OLD) as store:
        await tell(store, "first")
        assert await again(store, Cipher(())) == (VALUES, 0, {})
    async with opened(database.url) as store:
        assert await told(store, "first") == WHOLE
    assert (
        await stored.value(
            f"SELECT count(*) FROM nodes WHERE body = '{msgspec.json.encode(QUESTION).decode()}'"
        )
        == 1
    )


async def test_what_cannot_be_read_stays_as_it_is_and_the_rest_is_done(
    database: DatabaseUnderTest, stored: Stored
) -> None:
    async with opened(database.url, OLD) as store:
        await tell(store, "first")
    async with opened(database.url, LOST, OLD) as store:
        await tell(store, "second")
    lost = await stored.value(
        "SELECT body FROM summaries WHERE covers NOT IN (SELECT question FROM runs WHERE run_id ="
        " 'run_first')"
    )
    key_id = lost.split(":")[1]
    async with opened(database.url, NEW, OLD) as store:
        changed, unchanged, unreadable = await again(store, store.cipher)
        assert await told(store, "first") == WHOLE
    reason = (
        f"An encrypted value needs the key with the id {key_id}, which MEMORY_ENCRYPTION_KEYS"
        " lacks."
    )
    assert (changed, unchanged, unreadable) == (VALUES, 0, {reason: VALUES - 1})
    async with opened(database.url, NEW, LOST) as store:
        assert await told(store, "second") == WHOLE


async def test_a_value_that_was_moved_to_another_row_is_told_and_left(
    database: DatabaseUnderTest, stored: Stored
) -> None:
    async with opened(database.url, OLD) as store:
        await tell(store, "first")
    await stored.rows(
        "UPDATE nodes SET body = (SELECT body FROM nodes WHERE role = 'user') WHERE role ="
        " 'assistant'"
    )
    async with opened(database.url, NEW, OLD) as store:
        changed, unchanged, unreadable = await again(store, store.cipher)
    assert (changed, unchanged, list(unreadable.values())) == (VALUES - 1, 0, [1])
    assert "belongs to another row" in next(iter(unreadable))


@pytest.mark.parametrize(
    ("limits", "batches"), [({"rows": 4}, [4, 4, 2, 4, 1, 1]), ({"characters": 1}, [1] * 16)]
)
async def test_rows_are_taken_in_batches_that_are_bounded(
    database: DatabaseUnderTest, limits: dict[str, int], batches: list[int]
) -> None:
    done: list[int] = []
    async with opened(database.url) as store:
        for number in range(5):
            await tell(store, f"session {number}")
        changed, unchanged, _ = await again(store, Cipher([NEW]), done.append, **limits)
        assert await store.database.read(count_rows) == sum(batches)
    assert (changed, unchanged) == (5 * (VALUES - 1) + 1, 0)
    assert done == batches


async def test_what_was_stopped_goes_on_where_it_was(database: DatabaseUnderTest) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    async with opened(database.url, OLD) as store:
        for number in range(5):
            await tell(store, f"session {number}")
    async with opened(database.url, NEW, OLD) as store:
        with pytest.raises(KeyboardInterrupt):
            await again(store, store.cipher, stop, rows=3)
        changed, unchanged, _ = await again(store, store.cipher)
        assert unchanged > 0
        assert changed + unchanged == 5 * (VALUES - 1) + 1
    async with opened(database.url, NEW) as store:
        assert [await told(store, f"session {number}") for number in range(5)] == [WHOLE] * 5


async def test_turns_that_are_taken_meanwhile_are_kept(database: DatabaseUnderTest) -> None:
    names = [f"{when} {number}" for when in ("before", "meanwhile") for number in range(10)]
    async with opened(database.url, OLD) as store:
        for name in names[:10]:
            await tell(store, name)
    async with opened(database.url, NEW, OLD) as store, opened(database.url, NEW, OLD) as service:
        begun = asyncio.Event()
        rotation = asyncio.create_task(again(store, store.cipher, lambda _: begun.set(), rows=2))
        async with asyncio.timeout(40):
            await begun.wait()
            for name in names[10:]:
                await tell(service, name)
            changed, _, unreadable = await rotation
    assert (changed, unreadable) == (10 * (VALUES - 1) + 1, {})
    async with opened(database.url, NEW) as store:
        assert [await told(store, name) for name in names] == [WHOLE] * 20


async def test_what_another_process_writes_between_reading_and_writing_stays(
    postgres_18: PostgresServer,
) -> None:
    name = postgres_18.new_database()
    async with opened(postgres_18.url(name)) as store:
        await tell(store, "first")
        other = await asyncpg.connect(postgres_18.url(name))
        writing = other.transaction()
        await writing.start()
        await other.execute("UPDATE nodes SET steps = '{\"steps\":[]}' WHERE steps IS NOT NULL")
        rotation = asyncio.create_task(again(store, Cipher([NEW])))
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        await asyncio.to_thread(wait_until, lambda: postgres_18.sql(waits, name) == "1")
        await writing.commit()
        await asyncio.wait_for(rotation, 20)
        await other.close()
        assert (
            postgres_18.sql("SELECT steps FROM nodes WHERE steps IS NOT NULL", name)
            == '{"steps":[]}'
        )


async def test_a_process_lives_until_it_leaves_or_was_not_seen_for_a_while(
    database: DatabaseUnderTest, stored: Stored
) -> None:
    async with opened(database.url) as store:
        keeper = Housekeeping(
            store, retention_days=None, agent_retention_days={}, interval_hours=24, run_seconds=60
        )

        async def living() -> list[str]:
            return list(await store.database.read(list_live_processes))

        assert await living() == ["a process"]
        earlier = (
            "datetime(seen_at, '-21 seconds')"
            if database.kind == "sqlite"
            else "seen_at - interval '21 seconds'"
        )
        await stored.rows(f"UPDATE processes SET seen_at = {earlier}")
        assert await living() == []
        await keeper.send_heartbeat()
        await keeper.unregister_process()
        assert await living() == []
