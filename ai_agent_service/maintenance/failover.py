"""Makes a replica of PostgreSQL the primary, when the primary is lost."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Literal

import asyncpg
import msgspec

from ai_agent_service.storage.url import DatabaseUrl

PROMOTE_SECONDS = 60


class PromotionError(Exception):
    """No server was promoted; the text says why, for the operator."""


class ServerState(msgspec.Struct, frozen=True):
    """What one server of PostgreSQL is now."""

    address: DatabaseUrl
    role: Literal["primary", "replica", "unknown", "away"]
    """`unknown` answers, and does not say what it is; `away` does not answer."""

    position: int = 0
    """How much of what was written a replica has, in bytes since the beginning."""

    problem: str = ""

    @property
    def name(self) -> str:
        """Its host and port, or the folder of its socket."""
        return self.address.hosts


class PromotionResult(msgspec.Struct, frozen=True):
    """The server that is the primary now, and those that did not answer."""

    server: ServerState
    away: tuple[ServerState, ...]
    waits_for: str
    """The replicas that each commit waits for (synchronous_standby_names), though none follows;
    empty if it waits for none."""


_STATE = """SELECT pg_is_in_recovery(), coalesce(pg_wal_lsn_diff(
    greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()), '0/0'), 0)::bigint"""
_SYNCHRONOUS_STANDBYS = """SELECT CASE WHEN EXISTS (SELECT FROM pg_stat_replication) THEN ''
ELSE current_setting('synchronous_standby_names') END"""


async def promote(
    addresses: Iterable[DatabaseUrl], *, timeout: float, force: bool = False
) -> PromotionResult:
    """Promotes the replica that has most of what was written, and waits until it takes writes.

    Raises PromotionError, also while one of the servers takes writes, or may, unless `force`. A
    server has `timeout` seconds to answer.
    """
    servers = await probe_servers(addresses, timeout=timeout)
    living = [server for server in servers if server.role in ("primary", "unknown")]
    if living and not force:
        states = "; ".join(
            f"{each.name}"
            f" {'takes writes' if each.role == 'primary' else f'answers: {each.problem}'}"
            for each in living
        )
        raise PromotionError(
            f"{states}. With two servers that take writes conversations part for good: stop it"
            " first, or promote all the same with --force"
        )
    replicas = [server for server in servers if server.role == "replica"]
    if not replicas:
        states = "; ".join(f"{each.name}: {each.problem or each.role}" for each in servers)
        raise PromotionError(
            f"there is no replica to promote ({states}); DATABASE_REPLICA_URL names one, or"
            " DATABASE_URL with its others"
        )
    chosen = max(replicas, key=lambda server: server.position)
    try:
        async with _connect(chosen.address, timeout) as connection:
            seconds = PROMOTE_SECONDS + timeout
            if not await connection.fetchval(
                "SELECT pg_promote(true, $1)", PROMOTE_SECONDS, timeout=seconds
            ):
                raise PromotionError(
                    f"{chosen.name} did not become the primary within {PROMOTE_SECONDS} seconds;"
                    " its log says why"
                )
            waits_for = await connection.fetchval(_SYNCHRONOUS_STANDBYS, timeout=timeout)
    except asyncpg.InsufficientPrivilegeError as error:
        raise PromotionError(
            f"{chosen.name}: {error}. Name in DATABASE_URL a user that may, or run on that machine:"
            " pg_ctl promote -D FOLDER"
        ) from error
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise PromotionError(
            f"{chosen.name} was not promoted: {error or type(error).__name__}"
        ) from error
    return PromotionResult(
        chosen, tuple(server for server in servers if server.role == "away"), waits_for
    )


async def probe_servers(addresses: Iterable[DatabaseUrl], *, timeout: float) -> list[ServerState]:
    """What each server is now, all asked at once; each is named once."""
    named = {server.hosts: server for address in addresses for server in address.servers}
    return list(
        await asyncio.gather(*(_probe_server(address, timeout) for address in named.values()))
    )


async def _probe_server(address: DatabaseUrl, timeout: float) -> ServerState:
    try:
        async with _connect(address, timeout) as connection:
            is_replica, position = await connection.fetchrow(_STATE, timeout=timeout)
    except OSError as error:
        if isinstance(error, ssl.SSLError) or "SSL" in str(error):
            # Its certificate does not do, or it has none: those who do not look at that may write
            # to it.
            return ServerState(address, "unknown", problem=str(error))
        return ServerState(
            address, "away", problem=str(error) or f"it did not answer within {timeout:g} seconds"
        )
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return ServerState(address, "unknown", problem=str(error))
    return ServerState(address, "replica" if is_replica else "primary", position)


@asynccontextmanager
async def _connect(address: DatabaseUrl, timeout: float) -> AsyncGenerator[Any, None]:
    connection = await asyncpg.connect(
        address.location,
        timeout=timeout,
        statement_cache_size=0,
        server_settings={"application_name": "ai-agent-service db"},
        target_session_attrs="any",
    )
    try:
        yield connection
    finally:
        connection.terminate()
