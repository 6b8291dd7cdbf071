"""The servers that other tests use are what they are taken for."""

import asyncio

import asyncpg
import pytest

from tests.support.postgres import DatabaseUnderTest, PostgresServer, binaries_18


async def test_a_server_that_was_killed_has_its_data_when_it_is_started_again() -> None:
    server = PostgresServer(binaries_18()).make().start()
    try:
        server.sql("CREATE TABLE kept AS SELECT 1 AS one")
        server.kill()
        assert not server.answers()
        server.start()
        assert server.sql("SELECT one FROM kept") == "1"
    finally:
        server.remove()


async def test_a_frozen_server_answers_once_it_is_thawed(postgres_18: PostgresServer) -> None:
    connection = await asyncpg.connect(postgres_18.url())
    postgres_18.freeze()
    try:
        asking = asyncio.create_task(connection.fetchval("SELECT 1"))
        _, waiting = await asyncio.wait((asking,), timeout=0.3)
        assert waiting
    finally:
        postgres_18.thaw()
    assert await asyncio.wait_for(asking, 10) == 1
    await connection.close()


async def test_a_replica_follows_its_primary_and_takes_no_writes(
    postgres_pair: tuple[PostgresServer, PostgresServer],
) -> None:
    primary, replica = postgres_pair
    name = primary.new_database()
    primary.sql("CREATE TABLE told AS SELECT 2 AS two", name)
    replica.caught_up_with(primary)
    assert replica.sql("SELECT two FROM told", name) == "2"
    with pytest.raises(AssertionError, match="read-only"):
        replica.sql("DROP TABLE told", name)


async def test_each_test_has_an_empty_database(database: DatabaseUnderTest) -> None:
    if database.server is not None:
        connection = await asyncpg.connect(database.url)
        assert (
            await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
            == 0
        )
        await connection.close()
