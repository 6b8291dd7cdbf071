"""PostgreSQL with an empty database, and one with many stored messages that no turn of ours has to
do with."""

import asyncio

from benchmarks import load, servers
from benchmarks.load import Conversation
from benchmarks.plans import Plan, logging_plans, plans_in
from benchmarks.servers import Program
from tests.support.postgres import PostgresServer, binaries_18

MESSAGES = 50
"""How many messages a stored session has."""

TURNS_EXPLAINED = 8
"""From the sixth time on PostgreSQL may carry a prepared statement out otherwise, without regard to
its values."""

# Foreign keys are not checked for each row here: all is there. A user in two is the one that
# callers are who name none.
_FILL = (
    "SET session_replication_role = replica",
    """INSERT INTO sessions (key, tenant, user_id, agent_id, session_id, created_at, updated_at,
    head, summaries) SELECT decode(md5('s' || s), 'hex'), 'local', CASE s % 2 WHEN 0 THEN
    'anonymous' ELSE 'user-' || s % 1000 END, 'remembering',
        'stored-' || s, now() - s * interval '1 minute', now() - s * interval '1 minute',
        decode(md5(s || '-{messages}'), 'hex'), 1 FROM generate_series(1, {sessions}) s""",
    """INSERT INTO nodes (path, session_key, tenant, user_id, parent, depth, role, origin, status,
    body, run_id, created_at) SELECT decode(md5(s || '-' || d), 'hex'), decode(md5('s' || s),
    'hex'), 'local',
        CASE s % 2 WHEN 0 THEN 'anonymous' ELSE 'user-' || s % 1000 END, decode(CASE d WHEN 1 THEN
        md5('s' || s) ELSE md5(s || '-' || d - 1) END, 'hex'), d, CASE d % 2 WHEN 1 THEN 'user' ELSE
        'assistant' END, CASE d % 2 WHEN 1 THEN 'client' ELSE 'ours' END, 'complete',
        to_json(repeat(md5(s || '-' || d), 8))::text, 'run-' || s || '-' || (d + 1) / 2, now() - s *
        interval '1 minute' FROM generate_series(1, {sessions}) s, generate_series(1, {messages})
        d""",
    """INSERT INTO runs (run_id, session_key, tenant, user_id, question, answer, status, process_id,
    finish_reason, started_at, ended_at) SELECT 'run-' || s || '-' || d, decode(md5('s' || s),
    'hex'), 'local',
        CASE s % 2 WHEN 0 THEN 'anonymous' ELSE 'user-' || s % 1000 END, decode(md5(s || '-' || 2 *
        d - 1), 'hex'), decode(md5(s || '-' || 2 * d), 'hex'), 'done', 'process', 'stop', now() - s
        * interval '1 minute', now() - s * interval '1 minute' FROM generate_series(1, {sessions})
        s, generate_series(1, {messages} / 2) d""",
    """INSERT INTO summaries (session_key, covers, settings, tenant, user_id, depth, body,
    created_at) SELECT decode(md5('s' || s), 'hex'), decode(md5(s || '-20'), 'hex'),
    decode(md5('settings'), 'hex'), 'local',
        CASE s % 2 WHEN 0 THEN 'anonymous' ELSE 'user-' || s % 1000 END, 20, '"a summary"', now()
    FROM generate_series(1, {sessions}) s""",
)


def fill(server: PostgresServer, database: str, *, sessions: int) -> None:
    """Stores `sessions` sessions of 50 messages each in a database that has its tables, and has the
    server take notice of them."""
    server.sql(";".join(_FILL).format(sessions=sessions, messages=MESSAGES), database)
    server.sql("VACUUM ANALYZE", database)


class Databases:
    """A server of PostgreSQL that is started when it is first needed."""

    def __init__(self) -> None:
        self._server: PostgresServer | None = None
        self._full: dict[int, str] = {}

    async def close(self) -> None:
        """Ends the server."""
        if self._server is not None:
            await asyncio.to_thread(self._server.remove)

    def cpu_ns(self) -> int:
        """Nanoseconds of CPU time that the server's processes have used."""
        assert self._server is not None
        return sum(servers.cpu_ns(pid) for pid in self._server.pids)

    async def program(self, service: Program, *, sessions: int) -> Program:
        """`service` with a database that has `sessions` sessions of 50 messages; a new, empty one
        for 0."""
        server = await self._started()
        if sessions == 0:
            return service.told(
                DATABASE_URL=server.url(await asyncio.to_thread(server.new_database))
            )
        if sessions not in self._full:
            name = self._full[sessions] = await asyncio.to_thread(server.new_database)
            async with service.told(DATABASE_URL=server.url(name)).running():
                pass  # it has made its tables
            await asyncio.to_thread(fill, server, name, sessions=sessions)
        return service.told(DATABASE_URL=server.url(self._full[sessions]))

    async def plans(self, service: Program, *, sessions: int) -> list[Plan]:
        """How the server carries out the statements of turns with the client's history and with the
        server's, and those that show a conversation and list them."""
        program = await self.program(service, sessions=sessions)
        server, name = await self._started(), self._full[sessions]
        await asyncio.to_thread(server.sql, logging_plans(name))
        log = server.folder / "log"
        before = log.stat().st_size
        async with program.running() as running, load.connections(running.port, 1) as (connection,):
            session = Conversation(MESSAGES)
            for is_whole in (True, False):
                for _ in range(TURNS_EXPLAINED):
                    await session.turn(connection, is_whole=is_whole)
            for path in ("", f"/{session.session}", f"/{session.session}?branches=true"):
                assert await load.get(running.port, f"/agents/remembering/conversations{path}")
        await asyncio.to_thread(server.sql, f"ALTER DATABASE {name} RESET ALL")
        with log.open("rb") as file:
            file.seek(before)
            return plans_in(file.read().decode())

    async def _started(self) -> PostgresServer:
        if self._server is None:
            # A process that looks after the tables would be counted with some turns and not with
            # others.
            server = PostgresServer(
                binaries_18(), shared_buffers="128MB", max_wal_size="2GB", autovacuum="off"
            )
            self._server = await asyncio.to_thread(lambda: server.make().start())
        return self._server
