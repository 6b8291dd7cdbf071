"""Every statement on what users said says whose rows are meant."""

import re
import sqlite3
import sys
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from sqlalchemy import (
    Connection,
    Dialect,
    Engine,
    and_,
    delete,
    event,
    insert,
    or_,
    select,
    true,
    update,
)

from ai_agent_service.storage import migrate, tables
from tests.support.clients import read_completion
from tests.support.fake_provider import Script, says
from tests.support.memory import HELPER, SESSION, Serve

OWNED = {table.name for table in tables.USER_TABLES}
OWNER = ("tenant", "user_id")
MAINTENANCE = "ai_agent_service/memory/housekeeping.py"
"""Where statements are made that look after the rows of all users: ended processes, and
conversations that are too old."""

Use = tuple[str, str]
"""A verb of SQL and the table that it is used on."""

_INSERT = re.compile(r"INSERT INTO (\w+) \(([^()]*)\)")
_WORKS_ON = re.compile(
    r"\b(?:(SELECT)\b.*? FROM|(UPDATE)|(DELETE) FROM) (.*?)(?: (?:SET|WHERE|GROUP BY|ORDER"
    r" BY|LIMIT|RETURNING|FOR)\b|$)"
)
_WHERE = re.compile(r"\bWHERE (.*?)(?: (?:GROUP BY|ORDER BY|LIMIT|RETURNING|FOR UPDATE)\b|$)")
_EQUALS = re.compile(r"(\w+)\.(\w+) = (?:\?|\$\d+(?:::\w+)?|:\w+)")
"""A condition on a column that compares it with what is given beside the statement."""


class Statements:
    """What was sent to a database: what each statement does to which table, and those that name no
    owner."""

    def __init__(self) -> None:
        self.uses: set[Use] = set()
        self.maintenance: set[Use] = set()
        self.faults: list[str] = []

    def sent(self, statement: str) -> None:
        """Takes a statement that is about to be executed."""
        files = list(_files())
        if migrate.__file__ in files:
            return
        uses = {(verb, table) for verb, table, _ in _parts(statement)}
        if any(file.endswith(MAINTENANCE) for file in files):
            self.maintenance |= uses
            return
        self.uses |= uses
        self.faults += [f"{fault}: {statement}" for fault in faults(statement)]


def _files() -> Iterator[str]:
    """The files of the functions that are being executed, the innermost first."""
    frame = sys._getframe(1)
    while frame is not None:
        yield frame.f_code.co_filename
        frame = frame.f_back  # type: ignore[assignment]


def _blocks(statement: str) -> Iterator[str]:
    """The statement and each part of it in parentheses, what stands in parentheses within them left
    out."""
    open_blocks = [""]
    for character in " ".join(statement.split()):
        if character == "(":
            open_blocks[-1] += "("
            open_blocks.append("")
        elif character == ")":
            yield open_blocks.pop()
            open_blocks[-1] += ")"
        else:
            open_blocks[-1] += character
    yield open_blocks.pop()


def _parts(statement: str) -> Iterator[tuple[str, str, set[str]]]:
    """Verb and table of each part of a statement that works on users' rows, and the columns that it
    sets or asks for."""
    for table, columns in _INSERT.findall(" ".join(statement.split())):
        if table in OWNED:
            yield "INSERT", table, set(columns.replace('"', "").split(", "))
    for block in _blocks(statement):
        for part in re.split(r"\bUNION(?: ALL)?\b", block):
            if (found := _WORKS_ON.search(part)) is None:
                continue
            where = _WHERE.search(part)
            # Of conditions of which one is enough, none has to hold.
            conditions = (
                where[1].split(" AND ") if where and not re.search(r"\bOR\b", where[1]) else []
            )
            asked = {
                match.groups()
                for condition in conditions
                if (match := _EQUALS.fullmatch(condition.strip()))
            }
            for table in set(re.findall(r"\w+", found[4])) & OWNED:
                yield (
                    found[1] or found[2] or found[3],
                    table,
                    {column for of, column in asked if of == table},
                )


def faults(statement: str) -> list[str]:
    """What is wrong with a statement, in words; nothing if each of its parts names tenant and
    user."""
    return [
        f"{verb} on {table} names no {name}"
        for verb, table, named in _parts(statement)
        for name in OWNER
        if name not in named
    ]


@pytest.fixture
def statements() -> Generator[Statements, None, None]:
    """All statements that are sent to any database while the test runs, by SQLAlchemy or by
    SQLite's driver itself."""
    found = Statements()

    class Seen(sqlite3.Connection):
        def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
            found.sent(statement)
            return super().execute(statement, *parameters)

        def executemany(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
            found.sent(statement)
            return super().executemany(statement, *parameters)

    def sent(
        connection: Connection,
        cursor: object,
        statement: str,
        parameters: object,
        context: object,
        many: bool,
    ) -> None:
        found.sent(statement)

    def connecting(dialect: Dialect, _: object, arguments: object, options: dict[str, Any]) -> None:
        if dialect.name == "sqlite":
            options["factory"] = Seen

    event.listen(Engine, "before_cursor_execute", sent)
    event.listen(Engine, "do_connect", connecting)
    yield found
    event.remove(Engine, "before_cursor_execute", sent)
    event.remove(Engine, "do_connect", connecting)


async def test_every_statement_names_its_owner(serve: Serve, statements: Statements) -> None:
    compression = {"threshold_tokens": 100, "recent_messages_to_keep": 1}
    agent = {**HELPER, "resource_config": {"memory": {"compression": compression}}}
    long_text = "many words " * 60
    conversations = "/agents/helper/conversations"
    async with serve(Script(says(long_text)), agents=[agent], memory_retention_days=5) as talking:
        again = {"x-stainless-retry-count": "1"}
        for headers in ({"X-AAS-Message": "m1"}, {"X-AAS-Message": "m1"}, again):
            read_completion(await talking.complete("1", headers={**SESSION, **headers}))
        read_completion(await talking.complete("1", long_text, "2"))
        read_completion(await talking.complete(*(str(number) for number in range(41))))
        for message in ("3", "3", "4"):
            await talking.settled()
            assert (
                await talking.chat(message, headers={"X-AAS-Message": message})
            ).status_code == 200
        await talking.settled()
        assert (await talking.chat("5")).status_code == 200
        assert (await talking.chat("5", headers=again)).status_code == 200
        read_completion(await talking.complete("1", headers={"X-Session-Id": "another"}))
        for path in (f"{conversations}/s", f"{conversations}/s?branches=true", "/memory"):
            assert (await talking.client.get(path)).status_code == 200
        page = (await talking.client.get(conversations, params={"limit": 1})).json()
        assert (
            await talking.client.get(conversations, params={"after": page["next"]})
        ).status_code == 200
        assert (await talking.client.delete(f"{conversations}/s")).json()["summaries"] > 0
        assert (await talking.client.delete("/memory")).json()["sessions"] == 1
        await talking.memories.housekeeping.send_heartbeat()
        await talking.memories.housekeeping.clean_up()
    assert statements.faults == []
    everything = {(verb, name) for verb in ("SELECT", "INSERT", "DELETE") for name in OWNED} | {
        ("UPDATE", "sessions"),
        ("UPDATE", "runs"),
    }
    assert everything <= statements.uses
    assert {("UPDATE", "runs"), ("SELECT", "sessions")} <= statements.maintenance


SESSIONS, NODES = tables.sessions, tables.nodes
MINE = and_(NODES.c.tenant == "t", NODES.c.user_id == "u")


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (select(NODES).where(MINE), 0),
        (select(NODES).where(MINE).order_by(NODES.c.depth).limit(5), 0),
        (select(NODES).where(MINE).with_for_update(), 0),
        (select(NODES), 2),
        (select(NODES).where(NODES.c.user_id == "u"), 1),
        (select(NODES).where(or_(MINE, true(), NODES.c.depth == 1)), 2),
        (select(NODES).where(or_(NODES.c.tenant == "t", NODES.c.user_id == "u")), 2),
        (select(NODES).where(NODES.c.tenant != "t", NODES.c.user_id == "u"), 1),
        (select(NODES).where(NODES.c.tenant == NODES.c.role, NODES.c.user_id == "u"), 1),
        (select(NODES).where(MINE, NODES.c.session_key.in_(select(SESSIONS.c.key))), 2),
        (select(NODES).join(SESSIONS).where(MINE), 2),
        (select(select(NODES).cte("everything")), 2),
        (
            select(
                select(NODES.c.path).where(MINE).union_all(select(NODES.c.path)).cte("everything")
            ),
            2,
        ),
        (update(NODES).where(MINE).values(body="x"), 0),
        (update(NODES).values(body="x"), 2),
        (delete(NODES).where(NODES.c.path == b"x"), 2),
        (insert(NODES).values(tenant="t", user_id="u", path=b"x"), 0),
        (insert(NODES).values(tenant="t", path=b"x"), 1),
        (select(tables.processes), 0),
    ],
    ids=range(19),
)
def test_a_statement_without_an_owner_is_found(statement: Any, expected: int) -> None:
    assert len(faults(str(statement))) == expected
