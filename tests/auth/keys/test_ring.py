"""Keys: what they look like, how the ring of a running service tells them, and what it knows while
the database is away."""

import asyncio
import contextlib
import hmac
import logging
import re
import secrets
import sqlite3
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import select, text

import ai_agent_service.auth.keys.ring
from ai_agent_service.auth.keys import ring as ring_module
from ai_agent_service.auth.keys.format import generate_key, parse_key
from ai_agent_service.auth.keys.hashing import FINGERPRINT, PEPPER
from ai_agent_service.auth.keys.ring import (
    MIN_REFRESH_SECONDS,
    KeyRing,
    find_key_faults,
    parse_environment_keys,
)
from ai_agent_service.auth.keys.store import KeyStore, KeyStoreError
from ai_agent_service.auth.principal import DEFAULT_SCOPES, SCOPES, UNLIMITED, Key, Limits, Rights
from ai_agent_service.config.settings import Settings
from ai_agent_service.core.errors import AccessUnavailableError, UnauthorizedError
from ai_agent_service.maintenance.reencryption import reencrypt
from ai_agent_service.storage import tables
from ai_agent_service.storage.database import Database
from ai_agent_service.storage.encryption import Cipher
from ai_agent_service.storage.engine import DatabaseEngine, PoolUsage, Work
from ai_agent_service.storage.opening import prepare_tables
from ai_agent_service.storage.postgres import PostgresEngine
from ai_agent_service.storage.sqlite import SqliteEngine
from ai_agent_service.storage.url import DatabaseUrl, parse_database_url
from tests.support.postgres import DatabaseUnderTest, PostgresServer
from tests.support.storage import until_usable

SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
PLAIN = Cipher(())
LIVE_SECONDS = 5.0
"""How long a revoked key may be accepted elsewhere."""
T = TypeVar("T")


class Breakable:
    """An engine that counts what it is asked, and that can be cut off."""

    def __init__(self, url: str) -> None:
        address = parse_database_url(url)
        self._engine: DatabaseEngine = (
            SqliteEngine(address, timeout=5)
            if address.kind == "sqlite"
            else PostgresEngine(address, pool_size=3, timeout=5)
        )
        self.name = self._engine.name
        self.is_away = False
        self.asked = 0
        self.took: asyncio.Event | None = None

    @property
    def pool(self) -> PoolUsage:
        """That of the engine."""
        return self._engine.pool

    def run(self, work: Work[T], *, write: bool, timeout: float | None = None) -> asyncio.Future[T]:
        """Runs `work`, unless it is cut off."""
        return asyncio.create_task(self._run(work, write=write, timeout=timeout))

    async def _run(self, work: Work[T], *, write: bool, timeout: float | None) -> T:
        if self.is_away:
            raise ConnectionRefusedError("cut off")
        self.asked += 1
        if self.took is not None:
            await self.took.wait()
        return await self._engine.run(work, write=write, timeout=timeout)

    async def close(self) -> None:
        """Closes it."""
        await self._engine.close()

    async def forget_connections(self) -> None:
        """As the engine does."""
        await self._engine.forget_connections()


@asynccontextmanager
async def opened(
    url: str, *, timeout: float = 5
) -> AsyncGenerator[tuple[Database, Breakable], None]:
    """A process's database, with the tables, and its engine."""
    engine = Breakable(url)
    found = Database(
        engine, timeout=timeout, prepare=lambda engine: prepare_tables(engine, migrate=True)
    )
    await found.open()
    try:
        yield found, engine
    finally:
        await found.close()


def make_ring(
    database: Database | None,
    *environment: str,
    pepper: str | None = None,
    cipher: Cipher = PLAIN,
    **seconds: float,
) -> KeyRing:
    """A ring, to be opened."""
    return KeyRing(database, environment_keys=environment, pepper=pepper, cipher=cipher, **seconds)


def make_store(database: Database, pepper: str | None = None, cipher: Cipher = PLAIN) -> KeyStore:
    """The keys of a database."""
    return KeyStore(database, pepper=pepper, cipher=cipher)


async def refused(ring: KeyRing, key: str) -> str:
    """What a caller is told whose key is not valid."""
    with pytest.raises(UnauthorizedError) as raised:
        await ring.find(key)
    assert (raised.value.status, raised.value.code) == (401, "invalid_api_key")
    return raised.value.message


async def unknown(ring: KeyRing, key: str) -> None:
    """Has it be told that a key cannot be judged now."""
    with pytest.raises(AccessUnavailableError) as raised:
        await ring.find(key)
    assert raised.value.status == 503
    assert raised.value.retry_after


async def until_refused(ring: KeyRing, key: str) -> float:
    """How many seconds it takes until a key is refused."""
    began = time.monotonic()
    async with asyncio.timeout(20):
        while True:
            try:
                await ring.find(key)
            except UnauthorizedError:
                return time.monotonic() - began
            await asyncio.sleep(0.02)


async def execute(database: Database, statement: str, **values: Any) -> list[tuple[Any, ...]]:
    """What a statement of SQL gives."""

    def work(connection: Any) -> list[tuple[Any, ...]]:
        found = connection.execute(text(statement), values)
        return [tuple(row) for row in found] if found.returns_rows else []

    return await database.write(work)


# What a key looks like


# Keys of the environment


FIRST, SECOND = "sk-first-of-two-keys", "Zweiter/Schlüssel".encode().hex()


async def test_keys_of_the_environment_may_do_everything_and_need_no_database() -> None:
    async with make_ring(None, FIRST, SECOND) as ring:
        assert ring.has_keys is True
        found = await ring.find(FIRST)
        assert (found.name, found.scopes, found.agents, found.tenant) == (
            "API_KEYS",
            SCOPES,
            None,
            found.key_id,
        )
        assert re.fullmatch("env_[0-9a-f]{12}", found.key_id)
        assert (await ring.find(SECOND)).key_id != found.key_id
        for wrong in ("", FIRST[:-1], FIRST + "x", "\ud800", "x" * 100_000, generate_key().text):
            await refused(ring, wrong)
    async with make_ring(None, SECOND, FIRST) as again:
        assert await again.find(FIRST) == found


async def test_without_any_key_there_are_none() -> None:
    async with make_ring(None) as ring:
        assert ring.has_keys is False
        await refused(ring, generate_key().text)


def faults(**values: str) -> list[str]:
    """What is wrong with settings; no value is told."""
    found = [str(fault) for fault in find_key_faults(Settings.model_validate(values))]
    assert not any(
        part in fault
        for value in values.values()
        for part in value.split(",")
        if len(part) > 4
        for fault in found
    )
    return [fault.split(": ", 2)[2].split(". ")[0] for fault in found]


def test_faults_of_the_keys_in_the_environment_are_told_by_their_number() -> None:
    assert faults() == faults(api_keys=f" {FIRST} ,{SECOND},", api_key_pepper="p" * 32) == []
    assert faults(api_keys=f"{FIRST},tooshort") == ["key 2 has fewer than 20 characters"]
    assert faults(api_keys=f"{FIRST},{SECOND},{FIRST}") == ["keys 1 and 3 are the same"]
    assert faults(api_keys=" , ") == ["it is set and has no key"]
    assert "characters other than ASCII" in faults(api_keys="Schlüssel mit Leerzeichen")[0]
    assert faults(api_key_pepper="p" * 31) == ["it has fewer than 32 characters"]
    assert parse_environment_keys(
        Settings.model_validate({"api_keys": f" {FIRST} ,{SECOND},"})
    ) == (FIRST, SECOND)


# Keys of the database


async def test_a_new_key_works_at_once_in_every_process_for_what_it_is_for(
    database: DatabaseUnderTest,
) -> None:
    limits = Limits(requests=60, parallel=2)
    async with (
        opened(database.url) as (mine, _),
        opened(database.url) as (other, _),
        make_ring(other) as ring,
    ):
        assert ring.has_keys is False
        rights = Rights(
            scopes=frozenset({"chat"}),
            agents=frozenset({"a", "b"}),
            client="open_webui",
            limits=limits,
            user_limits=Limits(tokens=9),
        )
        made = await make_store(mine).create("desk", rights, tenant="local")
        plain = await make_store(mine).create("plain")
        began = time.monotonic()
        assert await ring.find(made.text) == Key(
            key_id=made.stored.key.key_id,
            name="desk",
            tenant="local",
            scopes=frozenset({"chat"}),
            agents=frozenset({"a", "b"}),
            client="open_webui",
            limits=limits,
            user_limits=Limits(tokens=9),
        )
        assert time.monotonic() - began < 1.5
        assert ring.has_keys is True
        found = await ring.find(plain.text)
        assert (found.tenant, found.scopes, found.agents, found.limits) == (
            found.key_id,
            DEFAULT_SCOPES,
            None,
            UNLIMITED,
        )


async def test_a_revoked_key_is_refused_by_every_process_within_five_seconds(
    database: DatabaseUnderTest,
) -> None:
    async with opened(database.url) as (mine, _), opened(database.url) as (other, _):
        made = await make_store(mine).create("desk")
        async with make_ring(other) as ring:
            assert await ring.find(made.text) == made.stored.key
            assert (await make_store(mine).revoke("desk")).state == "revoked"
            assert await until_refused(ring, made.text) < LIVE_SECONDS
            assert ring.has_keys is True  # that the last one was revoked lets nobody in


async def test_a_rotated_key_has_two_secrets_until_the_grace_is_over(
    database: DatabaseUnderTest,
) -> None:
    async with (
        opened(database.url) as (mine, _),
        opened(database.url) as (other, _),
        make_ring(other) as ring,
    ):
        store = make_store(mine)
        first = await store.create("desk")
        second = await store.rotate("desk")
        assert second.stored.state == "rotating"
        assert second.stored.previous_until is not None
        assert (
            timedelta(hours=23)
            < second.stored.previous_until - first.stored.created_at
            < timedelta(hours=25)
        )
        assert await ring.find(first.text) == await ring.find(second.text) == first.stored.key
        third = await store.rotate(first.stored.key.key_id)
        assert await ring.find(third.text) == first.stored.key
        assert await ring.find(second.text) == first.stored.key
        await refused(ring, first.text)
        fourth = await store.rotate("desk", grace=timedelta())
        assert fourth.stored.state == "live"
        assert await ring.find(fourth.text) == first.stored.key
        await refused(ring, third.text)


@SQLITE
async def test_the_old_secret_ends_with_its_grace_and_a_key_with_its_time(
    database: DatabaseUnderTest,
) -> None:
    async with opened(database.url) as (found, _), make_ring(found) as ring:
        store = make_store(found)
        rotated = await store.create("rotated")
        await store.rotate("rotated", grace=timedelta(seconds=2.5))
        expiring = await store.create("expiring", expires_in=timedelta(seconds=2.5))
        await ring.find(rotated.text)
        await ring.find(expiring.text)
        assert await until_refused(ring, rotated.text) < 4
        assert await until_refused(ring, expiring.text) < 4


@SQLITE
@pytest.mark.parametrize("hours", [-2, 2])
async def test_keys_end_by_the_clock_of_the_database(
    database: DatabaseUnderTest, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Shifted":
            return super().now(tz) + timedelta(hours=hours)

    monkeypatch.setattr(ring_module, "datetime", Shifted)
    async with opened(database.url) as (found, _), make_ring(found) as ring:
        store = make_store(found)
        expired = await store.create("expired", expires_in=timedelta())
        live = await store.create("live", expires_in=timedelta(hours=1))
        await store.rotate("live", grace=timedelta(hours=1))
        assert (await ring.find(live.text)).name == "live"
        await refused(ring, expired.text)


@SQLITE
async def test_nothing_tells_why_a_key_is_refused(database: DatabaseUnderTest) -> None:
    async with opened(database.url) as (found, _):
        store = make_store(found)
        known = await store.create("known")
        revoked = await store.create("revoked")
        await store.revoke("revoked")
        expired = await store.create("expired", expires_in=timedelta())
        wrong = generate_key(known.stored.key.key_id).text
        async with make_ring(found) as ring:
            given = (
                generate_key().text,
                wrong,
                revoked.text,
                expired.text,
                "' OR 1=1 --",
                "aas_",
                known.text[:-1],
                "",
            )
            assert len({await refused(ring, key) for key in given}) == 1


@SQLITE
async def test_an_unknown_id_is_compared_as_a_known_one_is(
    database: DatabaseUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    real = hmac.compare_digest

    def counted(one: bytes, other: bytes) -> bool:
        compared.append(len(one) + len(other))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    async with opened(database.url) as (found, _):
        known = await make_store(found).create("known")
        async with make_ring(found, FIRST) as ring:
            work: list[list[int]] = []
            for key in (generate_key().text, generate_key(known.stored.key.key_id).text):
                compared.clear()
                await refused(ring, key)
                work.append(compared[:])
    assert (
        work == [[64] * 5] * 2
    )  # with that of the environment; and twice two, before and after the keys were read anew


@SQLITE
async def test_keys_are_found_without_a_query_and_guesses_cost_four_a_second(
    database: DatabaseUnderTest,
) -> None:
    async with opened(database.url) as (found, engine):
        made = await make_store(found).create("desk")
        async with make_ring(found) as ring:
            engine.asked = 0
            for _ in range(500):
                await ring.find(made.text)
                with pytest.raises(UnauthorizedError):
                    await ring.find("aas_malformed")
            assert engine.asked <= 1  # what is asked every two seconds anyway
            began = time.monotonic()
            while time.monotonic() - began < 4 * MIN_REFRESH_SECONDS:
                await asyncio.gather(*(refused(ring, generate_key().text) for _ in range(50)))
            assert 1 <= engine.asked <= (time.monotonic() - began) / MIN_REFRESH_SECONDS + 1


@SQLITE
async def test_a_caller_that_leaves_does_not_take_the_others_answer(
    database: DatabaseUnderTest,
) -> None:
    async with opened(database.url) as (found, engine), make_ring(found) as ring:
        made = await make_store(found).create("desk")
        engine.took = asyncio.Event()
        leaving, staying = (asyncio.create_task(ring.find(made.text)) for _ in range(2))
        await asyncio.sleep(0.05)
        leaving.cancel()
        await asyncio.wait((leaving,))
        engine.took.set()
        assert await staying == made.stored.key


@SQLITE
async def test_a_change_is_never_older_than_the_one_before(database: DatabaseUnderTest) -> None:
    async with opened(database.url) as (mine, _), opened(database.url) as (other, _):
        store = make_store(mine)
        made = await store.create("desk")
        [later] = await mine.read(
            lambda connection: (
                connection.execute(select(tables.api_keys.c.changed_at)).scalars().all()
            )
        )
        later += timedelta(hours=1)  # as if the clock had been set back since
        await mine.write(
            lambda connection: connection.execute(tables.api_keys.update().values(changed_at=later))
        )
        async with make_ring(other) as ring:
            await ring.find(made.text)
            await store.revoke("desk")
            await refused(ring, generate_key().text)
            await refused(ring, made.text)


async def test_of_two_keys_made_at_once_with_one_name_one_is_refused(
    database: DatabaseUnderTest,
) -> None:
    async with opened(database.url) as (mine, _), opened(database.url) as (other, _):
        made = await asyncio.gather(
            make_store(mine).create("desk"),
            make_store(other).create("desk"),
            return_exceptions=True,
        )
        assert sorted(type(each).__name__ for each in made) == ["KeyStoreError", "NewSecret"]
        assert len(await make_store(mine).list()) == 1


@SQLITE
async def test_a_name_is_free_again_once_its_key_is_revoked(database: DatabaseUnderTest) -> None:
    async with opened(database.url) as (found, _):
        store = make_store(found)
        first = await store.create("desk")
        with pytest.raises(KeyStoreError, match="there is a live key with the name 'desk' already"):
            await store.create("desk")
        await store.revoke(first.text)  # as who found it somewhere names it
        for work in (store.revoke, store.rotate):
            with pytest.raises(
                KeyStoreError,
                match=f"no live key has the name 'desk'; .*: {first.stored.key.key_id}",
            ):
                await work("desk")
        with pytest.raises(
            KeyStoreError,
            match=f"is revoked; make a new one, with --tenant {first.stored.key.tenant}",
        ):
            await store.rotate(first.stored.key.key_id)
        second = await store.create("desk", tenant=first.stored.key.key_id)
        assert second.stored.key.tenant == first.stored.key.tenant
        assert [each.state for each in await store.list()] == ["revoked", "live"]
        assert (await store.revoke(first.stored.key.key_id)).revoked_at == (await store.list())[
            0
        ].revoked_at


@SQLITE
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": ""}, "a name has 1 to 100 printable characters"),
        ({"name": " x"}, "no space around them"),
        ({"name": "a\nb"}, "printable"),
        ({"tenant": "\x00"}, "a tenant has"),
        ({"tenant": "env_0123456789ab"}, "those that begin with env_ are of keys in API_KEYS"),
        ({"expires_in": timedelta.max}, "so late a time cannot be"),
    ],
)
async def test_a_key_that_cannot_be_is_refused(
    database: DatabaseUnderTest, fields: dict[str, Any], words: str
) -> None:
    async with opened(database.url) as (found, _):
        with pytest.raises(KeyStoreError, match=words):
            await make_store(found).create(**{"name": "desk", **fields})
        assert await make_store(found).list() == ()


@SQLITE
async def test_a_key_whose_rights_this_version_does_not_know_is_refused_alone(
    database: DatabaseUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(database.url) as (found, _):
        store = make_store(found)
        strange, known = await store.create("strange"), await store.create("known")
        rights = '{"scopes": ["fly"]}'
        await execute(
            found,
            "UPDATE api_keys SET rights = :rights WHERE key_id = :id",
            rights=rights,
            id=strange.stored.key.key_id,
        )
        async with make_ring(found) as ring:
            await refused(ring, strange.text)
            assert await ring.find(known.text) == known.stored.key
    assert [
        record.message
        for record in caplog.records
        if record.name == "ai_agent_service.auth.keys.ring"
    ] == ["keys.unreadable"]


# The database is away


@SQLITE
async def test_while_the_database_is_away_known_keys_work_for_a_time_and_others_are_not_judged(
    database: DatabaseUnderTest,
) -> None:
    async with opened(database.url) as (found, engine):
        store = make_store(found)
        made, revoked = await store.create("desk"), await store.create("revoked")
        await store.revoke("revoked")
        async with make_ring(found, FIRST, stale_seconds=2) as ring:
            engine.is_away = True
            assert await ring.find(made.text) == made.stored.key
            await unknown(ring, generate_key().text)
            await unknown(
                ring, generate_key(made.stored.key.key_id).text
            )  # it may have been rotated meanwhile
            await refused(ring, revoked.text)
            await asyncio.sleep(2)
            await unknown(ring, made.text)
            assert (await ring.find(FIRST)).name == "API_KEYS"
            await refused(ring, "malformed")
            engine.is_away = False
            await until_usable(found)
            await refused(ring, generate_key().text)
            assert await ring.find(made.text) == made.stored.key


@SQLITE
async def test_before_the_database_was_read_nothing_is_known(database: DatabaseUnderTest) -> None:
    async with opened(database.url) as (first, _):
        made = await make_store(first).create("desk")
    engine = Breakable(database.url)
    engine.is_away = True
    found = Database(engine, timeout=5)
    await found.open()
    async with make_ring(found) as ring:
        assert ring.has_keys is None
        await unknown(ring, made.text)
        engine.is_away = False
        await until_usable(found)
        assert await ring.find(made.text) == made.stored.key
        assert ring.has_keys is True
    await unknown(ring, generate_key().text)  # it is closed, and nothing waits
    await found.close()


async def test_keys_are_known_as_soon_as_another_process_has_made_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ai_agent_service.auth.keys.ring, "REFRESH_SECONDS", 600.0)
    file = tmp_path / "new.db"
    found = Database(
        SqliteEngine(DatabaseUrl("sqlite", str(file)), timeout=0.1),
        timeout=5,
        prepare=partial(prepare_tables, migrate=True),
    )
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode=WAL").close()
        other.execute("BEGIN IMMEDIATE").close()
        await found.open()
        async with make_ring(found) as ring:
            assert ring.has_keys is None
            other.execute("ROLLBACK").close()
            async with asyncio.timeout(30):
                while ring.has_keys is None:  # noqa: ASYNC110 - it tells nobody
                    await asyncio.sleep(0.02)
            assert ring.has_keys is False
    await found.close()


async def test_a_server_that_is_killed_and_comes_back_fails_no_known_key(
    own_postgres: PostgresServer,
) -> None:
    async with opened(own_postgres.url(), timeout=1) as (found, _):
        store = make_store(found)
        made = await store.create("desk")
        async with make_ring(found) as ring:
            await asyncio.to_thread(own_postgres.kill)
            await unknown(ring, generate_key().text)
            assert await ring.find(made.text) == made.stored.key
            await asyncio.to_thread(own_postgres.start)
            await until_usable(found)
            await store.revoke("desk")
            await refused(ring, generate_key().text)
            await refused(ring, made.text)


# The pepper


async def test_only_digests_are_stored_and_the_pepper_is_made_once(
    database: DatabaseUnderTest,
) -> None:
    cipher = Cipher((secrets.token_bytes(32),))
    async with opened(database.url) as (mine, _), opened(database.url) as (other, _):
        made = await asyncio.gather(
            *(
                make_store(each, cipher=cipher).create(name)
                for each, name in ((mine, "one"), (other, "two"))
            )
        )
        rows = await execute(mine, "SELECT * FROM api_keys")
        for each in made:
            given = parse_key(each.text)
            assert given is not None
            assert given.secret not in repr((rows, each))
        kept = dict(await execute(mine, "SELECT name, value FROM secrets"))
        assert kept.keys() == {PEPPER, FINGERPRINT}
        assert all(value.startswith("aesgcm:") for value in kept.values())
        async with make_ring(other, cipher=cipher) as ring:
            assert [await ring.find(each.text) for each in made] == [
                each.stored.key for each in made
            ]
        newer = Cipher((secrets.token_bytes(32),))
        assert (await reencrypt(mine, cipher, Cipher(()), lambda _: None)).changed == 2
        assert (await reencrypt(mine, newer, newer, lambda _: None)).changed == 2
        async with make_ring(other, cipher=newer) as ring:
            assert await ring.find(made[0].text) == made[0].stored.key


@SQLITE
async def test_a_pepper_that_was_changed_is_told_and_no_key_accepted(
    database: DatabaseUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(database.url) as (found, _):
        store = make_store(found, "p" * 32)
        made = await store.create("desk")
        assert await store.find_problem() is None
        for pepper in ("q" * 32, None):
            caplog.clear()
            async with make_ring(found, pepper=pepper) as ring:
                await refused(ring, made.text)
                assert ring.has_keys is True
            told = [
                record
                for record in caplog.records
                if record.name == "ai_agent_service.auth.keys.ring"
            ]
            assert [record.message for record in told] == ["keys.other_pepper"]
            assert "set API_KEY_PEPPER as it was then" in str(vars(told[0])["reason"])
            other = make_store(found, pepper)
            assert await other.find_problem() is not None
            for work in (other.create("new"), other.rotate("desk")):
                with pytest.raises(KeyStoreError, match="the pepper is not the one"):
                    await work
        async with make_ring(found, pepper="p" * 32) as ring:
            assert await ring.find(made.text) == made.stored.key
        await make_store(found).revoke("desk")
        again = await make_store(found, "q" * 32).create("desk")
        async with make_ring(found, pepper="q" * 32) as ring:
            assert await ring.find(again.text) == again.stored.key


@SQLITE
async def test_a_pepper_that_cannot_be_decrypted_is_no_reason_to_refuse(
    database: DatabaseUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(database.url) as (found, _):
        made = await make_store(found, cipher=Cipher((secrets.token_bytes(32),))).create("desk")
        async with make_ring(found) as ring:
            await unknown(ring, made.text)
            await unknown(ring, made.text)
            assert ring.has_keys is None
    assert [
        record.message
        for record in caplog.records
        if record.name == "ai_agent_service.auth.keys.ring"
    ] == ["keys.pepper_unreadable"]


# What is noted


async def used(database: Database) -> list[Any]:
    """When keys were used last."""
    return [each.last_used_at for each in await make_store(database).list()]


async def test_the_last_use_is_noted_in_a_batch_and_at_the_end(database: DatabaseUnderTest) -> None:
    async with opened(database.url) as (found, _):
        store = make_store(found)
        one, two = await store.create("one"), await store.create("two")
        async with make_ring(found, FIRST, last_use_seconds=1) as ring:
            await ring.find(one.text)
            await ring.find(FIRST)
            assert await used(found) == [None, None]
            async with asyncio.timeout(10):
                while (await used(found))[0] is None:  # noqa: ASYNC110 - it has no event for others
                    await asyncio.sleep(0.02)
        async with make_ring(found) as ring:
            await ring.find(one.text)
            await ring.find(two.text)
            before = await used(found)
        after = await used(found)
        assert before[1] is None
        assert before[0] < after[0] <= after[1]


@SQLITE
async def test_a_use_that_cannot_be_noted_now_is_noted_later_and_hurts_nobody(
    database: DatabaseUnderTest,
) -> None:
    async with opened(database.url) as (found, engine):
        made = await make_store(found).create("desk")
        async with make_ring(found, last_use_seconds=0.1) as ring:
            engine.is_away = True
            await ring.find(made.text)
            await asyncio.sleep(0.3)
            engine.is_away = False
            async with asyncio.timeout(10):
                await until_usable(found)
                while (await used(found))[0] is None:  # noqa: ASYNC110 - it has no event for others
                    await asyncio.sleep(0.02)


@SQLITE
async def test_changes_are_audited_and_no_secret_is_logged(
    database: DatabaseUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with opened(database.url) as (found, _), make_ring(found, FIRST) as ring:
        store = make_store(found)
        made = [await store.create("desk"), await store.rotate("desk")]
        await ring.find(made[0].text)
        await refused(ring, made[0].text[:-1] + ("y" if made[0].text.endswith("x") else "x"))
        await store.revoke("desk")
    key_id = made[0].stored.key.key_id
    audited = [
        (record.message, vars(record)["key_id"], vars(record)["key_name"])
        for record in caplog.records
        if record.name == "audit"
    ]
    assert audited == [
        (f"key.{what}", key_id, "desk") for what in ("created", "rotated", "revoked")
    ]
    logged = "\n".join(str(vars(record)) for record in caplog.records)
    for secret in (FIRST, *(each.text[17:] for each in made)):
        assert secret not in logged
        assert secret not in repr((ring, made, vars(ring)["_held"]))
