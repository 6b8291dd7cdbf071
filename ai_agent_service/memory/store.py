"""Stores turns in the tree of their session: the transactions at a turn's start and at its end."""

import logging
import secrets as random
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import Connection, RowMapping, select, update

from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import (
    IdempotencyMismatchError,
    MemoryUnavailableError,
    SessionBusyError,
)
from ai_agent_service.core.events import FinishReason
from ai_agent_service.core.messages import Content
from ai_agent_service.core.text import replace_unstorable
from ai_agent_service.core.turn import IDEMPOTENCY_PREFIX
from ai_agent_service.core.usage import Usage
from ai_agent_service.memory.base import Step, TurnAnswer
from ai_agent_service.memory.counters import MemoryCounts
from ai_agent_service.memory.message_tree import Entry, MessageHasher
from ai_agent_service.memory.processes import has_exited, identify_host
from ai_agent_service.memory.statements import (
    MAX_TAIL_ANSWERS,
    NODE_COLUMNS,
    TAIL_MESSAGES,
    UNCONFIRMED,
    Statements,
)
from ai_agent_service.storage.clock import read_database_time
from ai_agent_service.storage.database import Database
from ai_agent_service.storage.encryption import Cipher, DecryptionError
from ai_agent_service.storage.engine import DatabaseEngine
from ai_agent_service.storage.tables import processes, secrets

logger = logging.getLogger(__name__)

HASH_KEY_NAME = "address_key"
CHUNK = 500
"""How many are looked up at once, and inserted at once, where more must be."""


RETRY_MARK = "\nretry"
"""In the place of a `message_id`, of a run that a retry without one began; no header can say it."""


class ConversationErasedError(Exception):
    """What an answer belongs to was erased; nothing of it is to be stored."""


class Session(msgspec.Struct, frozen=True):
    """Whose conversation it is, and its address."""

    tenant: str
    user: str
    agent_id: str
    session_id: str
    key: bytes

    @property
    def owner_columns(self) -> dict[str, str]:
        """Whose it is, as a new row says it."""
        return {"tenant": self.tenant, "user_id": self.user}

    @property
    def owner_parameters(self) -> dict[str, str]:
        """Whose it is, as every statement that reads or changes rows asks for it."""
        return {"of_tenant": self.tenant, "of_user": self.user}


class TurnKey(msgspec.Struct, frozen=True):
    """Which turn asks: its session and run, and what its caller says of earlier attempts.

    `message_id` is the caller's own id of the turn; `is_retry` says that it may have asked before.
    """

    session: Session
    run_id: str
    is_retry: bool = False
    message_id: str | None = None

    @property
    def is_idempotency_key(self) -> bool:
        """Whether `message_id` is an Idempotency-Key."""
        return self.message_id is not None and self.message_id.startswith(IDEMPOTENCY_PREFIX)


class KnownMessage(msgspec.Struct, frozen=True):
    """What is stored of a message that the client sent too."""

    steps: tuple[Step, ...]
    last: str
    run_id: str | None


class Node(msgspec.Struct, frozen=True):
    """A stored message of the server's history."""

    path: bytes
    parent: bytes
    depth: int
    role: str
    content: Content
    steps: tuple[Step, ...]
    last: str
    run_id: str | None


class Summary(msgspec.Struct, frozen=True):
    """A summary of all up to and with the message `covers`, which is the `depth`-th."""

    covers: bytes
    depth: int
    text: str


class TurnStart(msgspec.Struct, frozen=True, kw_only=True):
    """What was found when a turn's question was stored."""

    known: dict[bytes, KnownMessage]
    has_summaries: bool
    answer: TurnAnswer | None = None
    answer_path: bytes | None = None
    in_progress: str | None = None
    stored: int = 0
    """How many messages were stored."""

    repeated: bool = False
    """Whether an equal turn was asked before; it is run again where it has neither answer nor is
    under way."""


class StoredAnswer(msgspec.Struct, frozen=True):
    """What became of an answer: whether it said anything, and whether the session goes on from it,
    as it does unless another turn took the lease from this one."""

    has_said: bool
    is_newest: bool


class SessionLease(msgspec.Struct, frozen=True):
    """A session that one run has for itself."""

    head: bytes | None
    has_summaries: bool


class _StoredSteps(msgspec.Struct, frozen=True, omit_defaults=True):
    """How steps are stored."""

    steps: tuple[Step, ...]
    last: str = ""


_NO_STEPS = _StoredSteps(())


class Store:
    """The transactions, in one database.

    `process_id` names this process in its runs, so that those can be told that a process left
    behind which is gone.
    """

    def __init__(self, database: Database, cipher: Cipher, process_id: str) -> None:
        self.is_live: Callable[[str], bool] = lambda _: False
        """Whether this process takes the run of an id now."""
        self.is_held: Callable[[bytes], bool] = lambda _: True
        """Whether a turn of this process has the session of a key, or waits for it."""
        self.database = database
        self.cipher = cipher
        self.process_id = process_id
        self.host = identify_host()
        self.counts = MemoryCounts()
        self._hasher: MessageHasher | None = None
        self._sql = Statements(database.kind)

    @property
    def hasher(self) -> MessageHasher:
        """The addresses of this database; raises MemoryUnavailableError until it was first
        connected to."""
        if self._hasher is None:
            raise MemoryUnavailableError(
                "The memory of conversations cannot be reached now. Try again in a moment.",
                retry_after=2,
            )
        return self._hasher

    async def prepare(self, engine: DatabaseEngine) -> None:
        """Reads the database's address key, which is made at the first time; raises DecryptionError
        where a key is lacking."""
        self._hasher = MessageHasher(await engine.run(self._load_hash_key, write=True))

    def mark_alive(self, connection: Connection) -> datetime:
        """Tells that this process lives; gives the time by the database's clock."""
        now = read_database_time(connection)
        known = (
            update(processes).where(processes.c.process_id == self.process_id).values(seen_at=now)
        )
        if connection.execute(known).rowcount == 0:
            new = {
                "process_id": self.process_id,
                "host": self.host,
                "started_at": now,
                "seen_at": now,
            }
            connection.execute(processes.insert().values(new))
        return now

    def _load_hash_key(self, connection: Connection) -> bytes:
        self.mark_alive(
            connection
        )  # before it takes a turn, so that no other process takes it for dead
        bound = HASH_KEY_NAME.encode()
        made = self.cipher.encrypt(
            msgspec.json.encode(random.token_hex(32)).decode(), bound_to=bound
        )
        connection.execute(
            self._sql.insert(secrets)
            .values(name=HASH_KEY_NAME, value=made)
            .on_conflict_do_nothing()
        )
        stored = connection.execute(
            select(secrets.c.value).where(secrets.c.name == HASH_KEY_NAME)
        ).scalar_one()
        return bytes.fromhex(
            msgspec.json.decode(self.cipher.decrypt(stored, bound_to=bound), type=str)
        )

    def build_run_session(self, context: RunContext) -> Session:
        """The session of a run; `context.session` is set."""
        assert context.session is not None
        return self.build_session(context.tenant, context.user, context.agent_id, context.session)

    def build_session(self, tenant: str, user: str, agent_id: str, session_id: str) -> Session:
        """The session of these names."""
        return Session(
            tenant,
            user,
            agent_id,
            session_id,
            self.hasher.hash_session(tenant, user, agent_id, session_id),
        )

    def begin(
        self,
        connection: Connection,
        turn: TurnKey,
        entries: Sequence[Entry],
        *,
        continued: Entry | None = None,
    ) -> TurnStart:
        """Stores the conversation of `entries`, whose last is the question, as far as it is not;
        begins the run, unless it repeats one that was answered or is in progress.

        An earlier answer is of no use if this turn continues one, `continued`, which is looked up
        as well.
        """
        session, question = turn.session, entries[-1]
        has_summaries = bool(self.touch(connection, session, head=question.path))
        known = self._find_known(connection, session, entries, continued)
        asked = known.get(question.path) if continued is None else None
        found = self.find_equal_turn(connection, turn, question.path, asked)
        if found.answer is not None or found.in_progress is not None:
            if found.answer is not None:
                self.touch(connection, session, head=found.answer_path or question.path)
            return msgspec.structs.replace(found, known=known, has_summaries=has_summaries)
        stored = self._store_entries(connection, session, entries, known)
        self.store_question(connection, turn, question)
        return TurnStart(
            known=known, has_summaries=has_summaries, stored=stored + (question.path not in known)
        )

    def lease(self, connection: Connection, session: Session) -> SessionLease | None:
        """Has this process take the session for itself; None while another has it that lives."""
        leased = self._take_lease(connection, session)
        if leased is None and self._release_from_dead(connection, session):
            leased = self._take_lease(connection, session)
        return leased

    def _take_lease(self, connection: Connection, session: Session) -> SessionLease | None:
        row = {**self._build_session_row(session), "lease_process": self.process_id}
        rows = self._sql.lease.fetch_rows(connection, row)
        return next((SessionLease(head, bool(summaries)) for head, summaries in rows), None)

    def _release_from_dead(self, connection: Connection, session: Session) -> bool:
        """Release the session where the process that has it is gone; return whether it is free."""
        wanted = {**session.owner_parameters, "key_": session.key}
        holder = connection.execute(self._sql.lease_holder, wanted).scalar()
        if holder is not None and not self._is_alive(connection, holder):
            connection.execute(self._sql.release, {**wanted, "process": holder})
            return True
        return holder is None

    def release(self, connection: Connection, session: Session) -> None:
        """Gives a session back that `lease` took, where nothing is stored of the turn."""
        connection.execute(
            self._sql.release,
            {**session.owner_parameters, "key_": session.key, "process": self.process_id},
        )

    def read_window(
        self, connection: Connection, session: Session, head: bytes, limit: int, settings: bytes
    ) -> tuple[list[Node], Summary | None]:
        """The newest `limit` messages up to `head`, oldest first, and the summary, made with
        `settings`, that covers most of them; there may be fewer before the last that it covers.
        Empty where `head` is not stored."""
        wanted = {**session.owner_parameters, "key_": session.key, "settings_": settings}
        rows = self._sql.window.fetch_rows(connection, {**wanted, "head": head, "limit": limit})
        nodes = [self.build_node(*node) for *node, _ in reversed(rows)]
        covers = next((path for path, *_, is_summarised in rows if is_summarised), None)
        return nodes, None if covers is None else self._read_summary(connection, wanted, covers)

    def store_question(self, connection: Connection, turn: TurnKey, question: Entry) -> None:
        """Stores the question and its run."""
        session, run_id = turn.session, turn.run_id
        row = self._build_row(session, question, "client")
        self._sql.insert_question.execute(connection, {**row, "run_id": run_id})
        self._sql.insert_run.execute(
            connection,
            {
                "run_id": run_id,
                "session_key": session.key,
                **session.owner_columns,
                "question": question.path,
                "status": "running",
                "process_id": self.process_id,
                "message_id": turn.message_id or (RETRY_MARK if turn.is_retry else None),
            },
        )

    def store_entries(
        self, connection: Connection, session: Session, entries: Sequence[Entry]
    ) -> None:
        """Stores messages that follow on stored ones."""
        if entries:
            self._sql.insert_node.execute_many(
                connection, [self._build_row(session, entry, "client") for entry in entries]
            )

    def find_equal_turn(
        self,
        connection: Connection,
        turn: TurnKey,
        question: bytes,
        known: KnownMessage | None,
    ) -> TurnStart:
        """What came of an equal turn that was asked before: its answer, or that it is under way
        here, or that it is to be run again.

        Raises SessionBusyError if another process runs it, and IdempotencyMismatchError if
        something else was asked under an Idempotency-Key. A turn is not its own repetition, though
        its transaction may be run again.
        """
        nothing = TurnStart(known={}, has_summaries=False)
        session, is_key = turn.session, turn.is_idempotency_key
        if not is_key and (known is None or not (turn.is_retry or turn.message_id)):
            return nothing
        statement = self._sql.run_by_message if turn.message_id else self._sql.run_by_id
        wanted = (
            {"message_id": turn.message_id, "own": turn.run_id}
            if turn.message_id
            else {"run_id": known and known.run_id}
        )
        row = (
            connection.execute(
                statement, {**session.owner_parameters, "key_": session.key, **wanted}
            )
            .mappings()
            .first()
        )
        if is_key and row is not None and row["question"] != question:
            raise IdempotencyMismatchError(
                "This Idempotency-Key was used for another question of this session.",
                param="Idempotency-Key",
            )
        if known is None:
            return nothing
        if row is None or row["question"] != question or row["run_id"] == turn.run_id:
            return msgspec.structs.replace(nothing, repeated=turn.is_retry)
        if row["status"] == "done" and row["answer"] is not None:
            answer = self._read_answer(connection, session, row)
            return msgspec.structs.replace(
                nothing, answer=answer, answer_path=row["answer"], repeated=True
            )
        if (
            row["status"] == "running"
            and row["process_id"] == self.process_id
            and self.is_live(row["run_id"])
        ):
            return msgspec.structs.replace(nothing, in_progress=row["run_id"], repeated=True)
        if (
            row["status"] == "running"
            and row["process_id"] != self.process_id
            and self._is_alive(connection, row["process_id"])
        ):
            raise SessionBusyError(
                "The same request is being answered already. Try again in a moment.", retry_after=2
            )
        return msgspec.structs.replace(nothing, repeated=True)

    def find_question(self, connection: Connection, turn: TurnKey) -> Node | None:
        """The question that another run asked under the turn's `message_id`."""
        session = turn.session
        wanted = {
            **session.owner_parameters,
            "key_": session.key,
            "message_id": turn.message_id,
            "own": turn.run_id,
        }
        run = connection.execute(self._sql.run_by_message, wanted).mappings().first()
        row = (
            run
            and connection.execute(
                self._sql.node, {**session.owner_parameters, "path_": run["question"]}
            )
            .mappings()
            .first()
        )
        return self.build_node(*(row[name] for name in NODE_COLUMNS)) if row else None

    def is_unconfirmed(
        self, connection: Connection, turn: TurnKey, question: Node, waited: float
    ) -> bool:
        """Return whether the session's last turn, of this answered question, is one whose caller
        cannot have the answer.

        It failed because of the database; or a retry began it, and it ended within the `waited`
        seconds for which `turn` has been here: then `turn` is the attempt before that retry.
        """
        wanted = {
            **turn.session.owner_parameters,
            "key_": turn.session.key,
            "run_id": question.run_id,
        }
        run = connection.execute(self._sql.run_by_id, wanted).mappings().first()
        if run is None or run["error"] == UNCONFIRMED:
            return run is not None
        since = read_database_time(connection) - timedelta(seconds=waited)
        return bool(
            run["message_id"] == RETRY_MARK and run["ended_at"] and run["ended_at"] >= since
        )

    def mark_unconfirmed(self, connection: Connection, turn: TurnKey) -> None:
        """Note that the caller of a run does not know whether its answer was stored."""
        wanted = {**turn.session.owner_parameters, "run_id_": turn.run_id}
        connection.execute(self._sql.mark_unconfirmed, wanted)

    def abandon(self, connection: Connection, turn: TurnKey, *, leased: bool) -> None:
        """Ends a run of which its caller was told that it could not begin; gives its session back
        where it was `leased`."""
        session = turn.session
        if leased:
            self.release(connection, session)
        ended = {
            "status_": "incomplete",
            "answer_": None,
            "error_": UNCONFIRMED,
            "finish_reason_": None,
        }
        self._sql.end_run.execute(
            connection,
            {**session.owner_parameters, "run_id_": turn.run_id, **ended},
        )

    def finish(
        self,
        connection: Connection,
        turn: TurnKey,
        question: Entry,
        answer: TurnAnswer,
        *,
        prefix: str = "",
        leased: bool = False,
    ) -> StoredAnswer:
        """Stores the answer, which `prefix` begins where the client brought its beginning, and ends
        the run.

        Raises ConversationErasedError, and must be rolled back then, where the question was erased
        meanwhile.
        """
        session, run_id = turn.session, turn.run_id
        text = replace_unstorable(prefix + answer.text)
        path = self.hasher.hash_answer(question.path, text)
        said = bool(text.strip() or answer.steps or answer.status == "complete")
        statement = self._sql.close_leased if leased else self._sql.close
        head = path if said else question.path
        wanted = {
            **session.owner_parameters,
            "key_": session.key,
            "head_": head,
            "process": self.process_id,
        }
        is_newest = statement.execute(connection, wanted) > 0
        if not is_newest and not self._has_session(connection, session):
            raise ConversationErasedError
        ended = self._sql.end_run.execute(
            connection,
            {
                **session.owner_parameters,
                "run_id_": run_id,
                "status_": "done" if answer.status == "complete" else "incomplete",
                "answer_": path if said else None,
                "error_": answer.error,
                "finish_reason_": answer.reason if answer.status == "complete" else None,
            },
        )
        if ended == 0:
            raise ConversationErasedError
        if said:
            self._sql.insert_answer.execute(
                connection,
                {
                    "path": path,
                    "session_key": session.key,
                    **session.owner_columns,
                    "parent": question.path,
                    "depth": question.depth + 1,
                    "role": "assistant",
                    "origin": "ours",
                    "status": answer.status,
                    "body": self._encrypt(msgspec.json.encode(text), path),
                    "steps": self._encrypt_steps(answer.steps, answer.last, path),
                    "run_id": run_id,
                    "usage": None
                    if answer.usage is None
                    else msgspec.json.encode(answer.usage).decode(),
                },
            )
        return StoredAnswer(said, is_newest)

    def find_summary(
        self, connection: Connection, session: Session, paths: Sequence[bytes], settings: bytes
    ) -> Summary | None:
        """The summary, made with `settings`, that covers most of the conversation of `paths`."""
        wanted = {**session.owner_parameters, "key_": session.key, "settings_": settings}
        on_path = frozenset(paths)
        covers = next(
            (
                covers
                for (covers,) in self._sql.summaries.fetch_rows(connection, wanted)
                if covers in on_path
            ),
            None,
        )
        return None if covers is None else self._read_summary(connection, wanted, covers)

    def _read_summary(
        self, connection: Connection, wanted: Mapping[str, Any], covers: bytes
    ) -> Summary | None:
        """None if it was erased since it was seen."""
        rows = self._sql.summary.fetch_rows(connection, {**wanted, "covers_": covers})
        return next(
            (
                Summary(covers, depth, self._decrypt_text(body, covers + wanted["settings_"]))
                for depth, body in rows
            ),
            None,
        )

    def store_summary(
        self, connection: Connection, session: Session, summary: Summary, settings: bytes
    ) -> None:
        """Stores a summary; another process's equal one stays. A session that was erased meanwhile
        stays erased."""
        if not self._has_session(connection, session):
            return
        stored = connection.execute(
            self._sql.insert_summary,
            {
                "session_key": session.key,
                "covers": summary.covers,
                "settings": settings,
                **session.owner_columns,
                "depth": summary.depth,
                "body": self._encrypt(
                    msgspec.json.encode(replace_unstorable(summary.text)), summary.covers + settings
                ),
            },
        )
        if stored.rowcount:
            connection.execute(
                self._sql.count_summary, {**session.owner_parameters, "key_": session.key}
            )

    def build_node(
        self,
        path: bytes,
        parent: bytes,
        depth: int,
        role: str,
        body: str,
        steps: str | None,
        run_id: str | None,
    ) -> Node:
        """A row of `nodes` as it was stored."""
        content = msgspec.json.decode(self._decrypt(body, path), type=Content)
        taken = self._decode_steps(path, steps)
        return Node(path, parent, depth, role, content, taken.steps, taken.last, run_id)

    def _decode_steps(self, path: bytes, steps: str | None) -> _StoredSteps:
        return (
            _NO_STEPS
            if steps is None
            else msgspec.json.decode(self._decrypt(steps, path + b"steps"), type=_StoredSteps)
        )

    def _read_answer(
        self, connection: Connection, session: Session, run: RowMapping
    ) -> TurnAnswer | None:
        row = (
            connection.execute(self._sql.node, {**session.owner_parameters, "path_": run["answer"]})
            .mappings()
            .first()
        )
        if row is None or row["status"] != "complete":
            return None
        node = self.build_node(*(row[name] for name in NODE_COLUMNS))
        usage = None if row["usage"] is None else msgspec.json.decode(row["usage"], type=Usage)
        reason: FinishReason = run["finish_reason"] or "stop"
        return TurnAnswer(
            text=str(node.content), steps=node.steps, last=node.last, reason=reason, usage=usage
        )

    def _find_known(
        self,
        connection: Connection,
        session: Session,
        entries: Sequence[Entry],
        continued: Entry | None = None,
    ) -> dict[bytes, KnownMessage]:
        """What is stored of the question and the message before it, and of the last answers where
        it has steps."""
        question = entries[-1]
        answers = [entry.path for entry in entries[-TAIL_MESSAGES:] if not entry.is_question]
        answers = [*answers, *([continued.path] if continued else ())][-MAX_TAIL_ANSWERS:]
        padded = [*answers, *([question.path] * (MAX_TAIL_ANSWERS - len(answers)))]
        wanted = {f"answer_{place}": path for place, path in enumerate(padded)}
        rows = self._sql.known.fetch_rows(
            connection,
            {
                **session.owner_parameters,
                **wanted,
                "parent": question.parent,
                "question": question.path,
            },
        )
        return {
            path: KnownMessage((taken := self._decode_steps(path, steps)).steps, taken.last, run_id)
            for path, steps, run_id in rows
        }

    def _store_entries(
        self,
        connection: Connection,
        session: Session,
        entries: Sequence[Entry],
        known: dict[bytes, KnownMessage],
    ) -> int:
        """Stores those before the question that are not stored, and gives their number. One that is
        stored has all before it stored too."""
        before = entries[:-1]
        if not before or before[-1].path in known:
            return 0
        missing = before[self._find_deepest_stored(connection, session, before) :]
        for start in range(0, len(missing), CHUNK):
            self.store_entries(connection, session, missing[start : start + CHUNK])
        return len(missing)

    def _find_deepest_stored(
        self, connection: Connection, session: Session, entries: Sequence[Entry]
    ) -> int:
        """The place after the deepest stored of `entries`."""
        end, size = len(entries), TAIL_MESSAGES  # most edits are made near the end
        while end > 0:
            start = max(0, end - size)
            paths = [entry.path for entry in entries[start:end]]
            stored = {
                row.path
                for row in connection.execute(
                    self._sql.paths_in, {**session.owner_parameters, "paths": paths}
                )
            }
            for place in range(end - 1, start - 1, -1):
                if entries[place].path in stored:
                    return place + 1
            end, size = start, CHUNK
        return 0

    def _build_row(self, session: Session, entry: Entry, origin: str) -> dict[str, Any]:
        return {
            "path": entry.path,
            "session_key": session.key,
            **session.owner_columns,
            "parent": entry.parent,
            "depth": entry.depth,
            "role": "user" if entry.is_question else "assistant",
            "origin": origin,
            "status": "complete",
            "body": self._encrypt(msgspec.json.encode(entry.content), entry.path),
            "steps": None
            if entry.is_question
            else self._encrypt_steps(entry.steps, entry.last, entry.path),
            "run_id": None,
            "usage": None,
        }

    def _encrypt(self, value: bytes, address: bytes) -> str:
        return self.cipher.encrypt(value.decode(), bound_to=address)

    def _encrypt_steps(self, steps: tuple[Step, ...], last: str, address: bytes) -> str | None:
        return (
            self._encrypt(msgspec.json.encode(_StoredSteps(steps, last)), address + b"steps")
            if steps
            else None
        )

    def _decrypt(self, value: str, address: bytes) -> str:
        try:
            return self.cipher.decrypt(value, bound_to=address)
        except DecryptionError as error:
            # the reason says all
            logger.error("memory.undecryptable", extra={"reason": str(error)})  # noqa: TRY400
            raise MemoryUnavailableError(
                "This conversation cannot be decrypted with the keys that are set.", retry_after=60
            ) from None

    def _decrypt_text(self, value: str, address: bytes) -> str:
        text: str = msgspec.json.decode(self._decrypt(value, address), type=str)
        return text

    def touch(self, connection: Connection, session: Session, *, head: bytes) -> int:
        """Make the session, or note when it was last used, with `head` as its newest message;
        gives how many summaries it has."""
        ((summaries,),) = self._sql.upsert_session.fetch_rows(
            connection, {**self._build_session_row(session), "head": head}
        )
        return int(summaries)

    @staticmethod
    def _build_session_row(session: Session) -> dict[str, Any]:
        return {
            "key": session.key,
            **session.owner_columns,
            "agent_id": session.agent_id,
            "session_id": session.session_id,
        }

    def _has_session(self, connection: Connection, session: Session) -> bool:
        return (
            connection.execute(
                self._sql.session, {**session.owner_parameters, "key_": session.key}
            ).first()
            is not None
        )

    def _is_alive(self, connection: Connection, process_id: str) -> bool:
        """Whether a process is known, as those that are gone are forgotten, and did not exit."""
        wanted = select(processes.c.host).where(processes.c.process_id == process_id)
        host = connection.execute(wanted).scalar()
        return host is not None and not has_exited(host, process_id, self.host)
