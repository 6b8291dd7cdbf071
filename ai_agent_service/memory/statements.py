"""Build the statements of a turn once, since building one takes longer than running it."""

from typing import Any

from sqlalchemy import (
    Dialect,
    Select,
    and_,
    bindparam,
    case,
    exists,
    literal,
    not_,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.sql.elements import ClauseElement

from ai_agent_service.storage.clock import DatabaseNow
from ai_agent_service.storage.prepared import PreparedStatement
from ai_agent_service.storage.tables import nodes, runs, sessions, summaries

TAIL_MESSAGES = 16
"""The last messages of a conversation whose steps are restored."""

MAX_TAIL_ANSWERS = TAIL_MESSAGES // 2
"""The most answers among them, since no two follow each other."""

LAST_TURN_MESSAGES = 2
"""The messages of the last turn, which are read even if a summary covers them: a repeated turn
needs what was before it."""

NODE_COLUMNS = ("path", "parent", "depth", "role", "body", "steps", "run_id")
"""The columns of a stored message."""

UNCONFIRMED = "memory_unavailable"
"""The error of a run whose caller does not know whether it was stored."""

_NEW_SESSION_COLUMNS = (
    "key",
    "tenant",
    "user_id",
    "agent_id",
    "session_id",
)
_NEW_RUN_COLUMNS = (
    "run_id",
    "session_key",
    "tenant",
    "user_id",
    "question",
    "status",
    "process_id",
    "message_id",
)


class Statements:
    """Each statement names tenant and user; those that read or change rows take them as `of_tenant`
    and `of_user`."""

    def __init__(self, kind: str) -> None:
        self.insert: Any = sqlite.insert if kind == "sqlite" else postgresql.insert
        self._dialect: Dialect = make_url(
            "sqlite://" if kind == "sqlite" else "postgresql+asyncpg://"
        ).get_dialect()()
        self._build_session_statements()
        self._build_node_statements()
        self._build_run_statements()
        self._build_summary_statements()

    def _build_session_statements(self) -> None:
        this_session = and_(sessions.c.key == bindparam("key_"), _match_owner(sessions))
        self.session = select(sessions.c.key).where(this_session)
        now = DatabaseNow()
        upsert = self.insert(sessions).values(created_at=now, updated_at=now)
        self.upsert_session = self._prepare(
            upsert.on_conflict_do_update(
                index_elements=["key"],
                set_={"updated_at": upsert.excluded.updated_at, "head": upsert.excluded.head},
            ).returning(sessions.c.summaries),
            *_NEW_SESSION_COLUMNS,
            "head",
        )
        leased = upsert.excluded.lease_process
        lease = upsert.on_conflict_do_update(
            index_elements=["key"],
            set_={"updated_at": upsert.excluded.updated_at, "lease_process": leased},
            where=or_(sessions.c.lease_process.is_(None), sessions.c.lease_process == leased),
        ).returning(sessions.c.head, sessions.c.summaries)
        self.lease = self._prepare(lease, *_NEW_SESSION_COLUMNS, "lease_process")
        self.lease_holder = select(sessions.c.lease_process).where(this_session).with_for_update()
        has_lease = and_(this_session, sessions.c.lease_process == bindparam("process"))
        self.release = update(sessions).where(has_lease).values(lease_process=None)
        moved = {"head": bindparam("head_"), "updated_at": now}
        self.close = self._prepare(update(sessions).where(this_session).values(moved))
        # A session that was deleted and made again meanwhile has no lease any more.
        ours = or_(
            sessions.c.lease_process.is_(None), sessions.c.lease_process == bindparam("process")
        )
        given_back = {**moved, "lease_process": null()}
        self.close_leased = self._prepare(
            update(sessions).where(this_session, ours).values(given_back)
        )
        self.count_summary = (
            update(sessions).where(this_session).values(summaries=sessions.c.summaries + 1)
        )

    def _build_node_statements(self) -> None:
        columns = [nodes.c[name] for name in NODE_COLUMNS]
        # Rows without content are not selected: each costs SQLite two changes of threads.
        path = nodes.c.path
        answers = [
            bindparam(f"answer_{place}", type_=path.type) for place in range(MAX_TAIL_ANSWERS)
        ]
        last = [bindparam(name, type_=path.type) for name in ("parent", "question")]
        self.known = self._prepare(
            select(path, nodes.c.steps, nodes.c.run_id).where(
                path.in_([*answers, *last]),
                or_(nodes.c.steps.is_not(None), path.in_(last)),
                _match_owner(nodes),
            )
        )
        self.paths_in = select(nodes.c.path).where(
            nodes.c.path.in_(bindparam("paths", expanding=True)), _match_owner(nodes)
        )
        self.node = select(*columns, nodes.c.status, nodes.c.usage).where(
            nodes.c.path == bindparam("path_"), _match_owner(nodes)
        )
        insert = self.insert(nodes).values(created_at=DatabaseNow())
        all_columns = [each.name for each in nodes.columns if each.name != "created_at"]
        self.insert_node = self._prepare(
            insert.on_conflict_do_nothing(index_elements=["path"]), *all_columns
        )
        self.insert_question = self._prepare(
            insert.on_conflict_do_update(
                index_elements=["path"], set_={"run_id": insert.excluded.run_id}
            ),
            *all_columns,
        )
        self.insert_answer = self._prepare(
            insert.on_conflict_do_update(
                index_elements=["path"],
                set_={
                    name: insert.excluded[name]
                    for name in ("status", "origin", "body", "steps", "run_id", "usage")
                },
                where=and_(
                    insert.excluded.status == "complete",
                    or_(nodes.c.status == "incomplete", nodes.c.origin == "client"),
                ),
            ),
            *all_columns,
        )
        self.window = self._prepare(self._build_window())

    @staticmethod
    def _build_window() -> Select[Any]:
        """Select the message `head` and those before it, the newest first, and whether each is the
        last that a summary covers.

        It selects `limit` at most, and none before one that a summary covers, unless that belongs
        to the last turn.
        """
        summarised = exists().where(
            summaries.c.session_key == bindparam("key_"),
            summaries.c.settings == bindparam("settings_"),
            summaries.c.covers == nodes.c.path,
            _match_owner(summaries),
        )
        columns = [*(nodes.c[name] for name in NODE_COLUMNS), summarised.label("is_summarised")]
        first = select(*columns, literal(1).label("place")).where(
            nodes.c.path == bindparam("head"), _match_owner(nodes)
        )
        newest = first.cte("newest", recursive=True)
        goes_on = and_(
            newest.c.place < bindparam("limit"),
            or_(newest.c.place <= LAST_TURN_MESSAGES, not_(newest.c.is_summarised)),
        )
        before = select(*columns, newest.c.place + 1).where(
            nodes.c.path == newest.c.parent, _match_owner(nodes), goes_on
        )
        newest = newest.union_all(before)
        return select(*(newest.c[name] for name in (*NODE_COLUMNS, "is_summarised"))).order_by(
            newest.c.place
        )

    def _build_run_statements(self) -> None:
        self.insert_run = self._prepare(
            self.insert(runs)
            .values(started_at=DatabaseNow())
            .on_conflict_do_nothing(index_elements=["run_id"]),
            *_NEW_RUN_COLUMNS,
        )
        this_run = and_(runs.c.run_id == bindparam("run_id_"), _match_owner(runs))
        ended: dict[str, Any] = {
            name: bindparam(f"{name}_") for name in ("status", "answer", "error", "finish_reason")
        }
        self.end_run = self._prepare(
            update(runs).where(this_run).values({**ended, "ended_at": DatabaseNow()})
        )
        of_run = (
            runs.c.run_id,
            runs.c.question,
            runs.c.answer,
            runs.c.status,
            runs.c.process_id,
            runs.c.finish_reason,
            runs.c.message_id,
            runs.c.error,
            runs.c.ended_at,
        )
        is_running = runs.c.status == "running"
        self.mark_unconfirmed = (
            update(runs)
            .where(this_run)
            .values(error=UNCONFIRMED, status=case((is_running, "incomplete"), else_=runs.c.status))
        )
        in_session = and_(runs.c.session_key == bindparam("key_"), _match_owner(runs))
        self.run_by_id = select(*of_run).where(runs.c.run_id == bindparam("run_id"), in_session)
        self.run_by_message = (
            select(*of_run)
            .where(
                runs.c.message_id == bindparam("message_id"),
                runs.c.run_id != bindparam("own"),
                in_session,
            )
            .order_by(runs.c.started_at.desc())
            .limit(1)
        )

    def _build_summary_statements(self) -> None:
        these = and_(
            summaries.c.session_key == bindparam("key_"),
            summaries.c.settings == bindparam("settings_"),
            _match_owner(summaries),
        )
        self.summaries = self._prepare(
            select(summaries.c.covers).where(these).order_by(summaries.c.depth.desc())
        )
        covering = and_(these, summaries.c.covers == bindparam("covers_"))
        self.summary = self._prepare(select(summaries.c.depth, summaries.c.body).where(covering))
        self.insert_summary = (
            self.insert(summaries)
            .values(created_at=DatabaseNow())
            .on_conflict_do_nothing(index_elements=["session_key", "covers", "settings"])
        )

    def _prepare(self, statement: ClauseElement, *columns: str) -> PreparedStatement:
        return PreparedStatement(statement, self._dialect, columns or None)


def _match_owner(table: Any) -> Any:
    return and_(table.c.tenant == bindparam("of_tenant"), table.c.user_id == bindparam("of_user"))
