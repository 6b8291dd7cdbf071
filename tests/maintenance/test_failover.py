"""A replica is promoted only while nobody else takes writes, and it is the one that has most."""

import asyncio
import ssl
from pathlib import Path

import pytest

from ai_agent_service.maintenance.failover import PromotionError, probe_servers, promote
from ai_agent_service.storage.url import parse_database_url
from tests.support.certificates import certified
from tests.support.postgres import QUOTED, USER, PostgresServer, binaries_18


async def test_the_replica_that_has_most_is_promoted_once_the_primary_is_gone() -> None:
    primary = PostgresServer(binaries_18()).make().start()
    servers = [primary]
    try:
        first, second = (primary.replica(synchronous_standby_names="*") for _ in range(2))
        servers += [first, second]
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
        every = parse_database_url(f"postgresql://{USER}:{QUOTED}@{hosts}/postgres")
        primary.sql("CREATE ROLE plain LOGIN PASSWORD 'plain'")
        first.caught_up_with(primary)
        first.sql("ALTER SYSTEM SET primary_conninfo = ''")
        first.sql("SELECT pg_reload_conf()")
        primary.sql("CREATE TABLE written AS SELECT 1")
        second.caught_up_with(primary)

        with pytest.raises(
            PromotionError, match=rf"^127\.0\.0\.1:{primary.port} takes writes\. With two servers"
        ):
            await promote([every], timeout=5)
        with pytest.raises(PromotionError, match="there is no replica to promote"):
            await promote([parse_database_url(primary.url())], timeout=5, force=True)
        options = [
            f"postgresql://{USER}:{QUOTED}@/postgres?host=127.0.0.1&port={server.port}"
            for server in (primary, second)
        ]
        with pytest.raises(PromotionError, match=rf"^127\.0\.0\.1:{primary.port} takes writes\."):
            await promote(map(parse_database_url, options), timeout=5)
        primary.kill()
        with pytest.raises(
            PromotionError, match=r"permission denied for function pg_promote.* pg_ctl promote"
        ):
            await promote(
                [parse_database_url(second.url().replace(f"{USER}:{QUOTED}", "plain:plain"))],
                timeout=5,
            )
        with pytest.raises(
            PromotionError, match=r"answers: database .absent. does not exist\. With two servers"
        ):
            await promote(
                [every, parse_database_url(second.url("absent").replace("127.0.0.1", "localhost"))],
                timeout=5,
            )

        done = await promote([every, parse_database_url(second.url())], timeout=5)
        assert done.server.name == f"127.0.0.1:{second.port}"
        assert [server.name for server in done.away] == [f"127.0.0.1:{primary.port}"]
        assert done.waits_for == "*", "it would wait for a replica of its own"
        assert second.sql("SELECT pg_is_in_recovery()") == "f"
    finally:
        for server in servers:
            server.remove()


async def test_a_server_whose_certificate_does_not_do_is_not_taken_for_away(
    postgres_18: PostgresServer, tmp_path: Path
) -> None:
    own, other = certified(tmp_path), certified(tmp_path, "other")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*own)
    async with await asyncio.start_server(
        lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context
    ) as with_tls:
        port = with_tls.sockets[0].getsockname()[1]
        options = f"sslmode=verify-full&sslnegotiation=direct&sslrootcert={other[0]}"
        urls = (
            f"postgresql://{USER}@127.0.0.1:{port}/postgres?{options}",
            f"{postgres_18.url()}?sslmode=require",
        )
        found = await probe_servers(map(parse_database_url, urls), timeout=10)
    assert [server.role for server in found] == ["unknown", "unknown"]
    assert "certificate verify failed" in found[0].problem
    assert "rejected SSL upgrade" in found[1].problem
