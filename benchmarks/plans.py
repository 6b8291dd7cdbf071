"""How PostgreSQL carried out the statements that it was given: which tables it read through, and
which by an index."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

TABLES = frozenset({"sessions", "nodes", "runs", "summaries"})
"""The tables that grow."""

PARTIAL_INDEXES = frozenset({"ix_runs_running", "ix_sessions_leased"})
"""They have the runs in progress and the leased sessions alone, so that they may be read from their
beginning to their end."""

_PLAN = re.compile(r"LOG:  duration: [\d.]+ ms  plan:\n")


class Plan(NamedTuple):
    """A statement, the tables that were read through for it, and the indexes that were looked
    up."""

    statement: str
    read_through: frozenset[str]
    indexes: frozenset[str]


def logging_plans(database: str) -> str:
    """The SQL that has the server log, as JSON, the plan of each statement of new connections to
    `database`."""
    settings = {
        "session_preload_libraries": "'auto_explain'",
        "auto_explain.log_min_duration": "0",
        "auto_explain.log_format": "json",
        "auto_explain.log_nested_statements": "on",  # those that check foreign keys
    }
    return ";".join(
        f"ALTER DATABASE {database} SET {name} = {value}" for name, value in settings.items()
    )


def plans_in(log: str) -> list[Plan]:
    """The plans that a server logged of statements on the tables that grow, one for each statement;
    if it had several, what any of them reads through."""
    found: dict[str, Plan] = {}
    decoder = json.JSONDecoder()
    for match in _PLAN.finditer(log):
        start = log.index("{", match.end())
        plan, _ = decoder.raw_decode(log, start)
        statement = " ".join(plan["Query Text"].split())
        nodes = list(_nodes(plan["Plan"]))
        if not any(node.get("Relation Name") in TABLES for node in nodes):
            continue
        read_through = frozenset(node["Relation Name"] for node in nodes if _is_read_through(node))
        indexes = frozenset(node["Index Name"] for node in nodes if "Index Name" in node)
        indexes |= {index for node in nodes for index in node.get("Conflict Arbiter Indexes", ())}
        before = found.get(statement, Plan(statement, frozenset(), frozenset()))
        found[statement] = Plan(
            statement, before.read_through | read_through, before.indexes | indexes
        )
    return list(found.values())


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for below in node.get("Plans", ()):
        yield from _nodes(below)


def _is_read_through(node: dict[str, Any]) -> bool:
    if node.get("Relation Name") not in TABLES:
        return False
    if node["Node Type"].startswith("Index"):
        return "Index Cond" not in node and node["Index Name"] not in PARTIAL_INDEXES
    return bool(node["Node Type"] == "Seq Scan")
