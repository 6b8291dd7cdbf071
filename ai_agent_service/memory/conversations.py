"""List, read, export and delete a user's conversations."""

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal, cast

import msgspec
from sqlalchemy import Connection, RowMapping, Select, and_, delete, func, select, tuple_

from ai_agent_service.core.errors import InvalidRequestError, MemoryUnavailableError, NotFoundError
from ai_agent_service.core.usage import Usage
from ai_agent_service.memory.base import (
    Conversation,
    ConversationInfo,
    ErasureCounts,
    Origin,
    Status,
    StoredMessage,
)
from ai_agent_service.memory.statements import NODE_COLUMNS
from ai_agent_service.memory.store import Session, Store
from ai_agent_service.storage.tables import nodes, runs, sessions, summaries

ERASURE_SECONDS = 600.0
"""The time limit of the transaction that deletes everything of a user."""

READ_SECONDS = 60.0
INLINE_MESSAGES = 100
"""Messages that are read and decrypted without a thread."""

EXPORT_PAGE = 100
MAX_DEPTH = 100_000

_MESSAGE_COLUMNS = (
    *(nodes.c.path, nodes.c.parent, nodes.c.depth, nodes.c.role, nodes.c.origin, nodes.c.status),
    *(nodes.c.body, nodes.c.steps, nodes.c.run_id, nodes.c.usage, nodes.c.created_at),
)


class SqlConversations:
    """See Conversations."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(
        self, tenant: str, user: str, agent_id: str, *, limit: int, after: str | None = None
    ) -> tuple[tuple[ConversationInfo, ...], str | None]:
        """See Conversations."""
        mine = and_(
            sessions.c.tenant == tenant, sessions.c.user_id == user, sessions.c.agent_id == agent_id
        )
        wanted = select(
            sessions.c.key, sessions.c.session_id, sessions.c.created_at, sessions.c.updated_at
        ).where(mine)
        if after is not None:
            wanted = wanted.where(
                tuple_(sessions.c.updated_at, sessions.c.key) < _decode_cursor(after)
            )
        wanted = wanted.order_by(sessions.c.updated_at.desc(), sessions.c.key.desc()).limit(
            limit + 1
        )

        def read_page(connection: Connection) -> tuple[list[RowMapping], dict[bytes, int]]:
            found = list(connection.execute(wanted).mappings())
            counted = (
                select(nodes.c.session_key, func.count())
                .where(
                    nodes.c.tenant == tenant,
                    nodes.c.user_id == user,
                    nodes.c.session_key.in_([row["key"] for row in found]),
                )
                .group_by(nodes.c.session_key)
            )
            return found, {row[0]: row[1] for row in connection.execute(counted)}

        rows, counts = await self._store.database.read(read_page)
        infos = tuple(
            ConversationInfo(
                session_id=row["session_id"],
                created_at=row["created_at"],
                updated_at=row["updated_at"],
                messages=counts.get(row["key"], 0),
            )
            for row in rows[:limit]
        )
        return infos, _encode_cursor(rows[limit - 1]) if len(rows) > limit else None

    async def get(
        self, tenant: str, user: str, agent_id: str, session_id: str, *, branches: bool = False
    ) -> Conversation:
        """See Conversations. The messages come from the replica if it has the session as the
        primary has it."""
        session = self._store.build_session(tenant, user, agent_id, session_id)

        def read_conversation(connection: Connection) -> tuple[RowMapping, Sequence[RowMapping]]:
            row = self._read_session(connection, session)
            messages = _select_messages(session, row, branches=branches)
            return row, connection.execute(messages).mappings().all()

        row, found = await self._read_newest(session, read_conversation)
        if len(found) <= INLINE_MESSAGES:
            return self._build_conversation(session, row, found)
        return await asyncio.to_thread(self._build_conversation, session, row, found)

    async def delete(self, tenant: str, user: str, agent_id: str, session_id: str) -> ErasureCounts:
        """See Conversations."""
        session = self._store.build_session(tenant, user, agent_id, session_id)

        def delete_session(connection: Connection) -> ErasureCounts:
            self._read_session(connection, session)
            return _delete_sessions(
                connection, tenant, user, select(sessions.c.key).where(_match_session(session))
            )

        return await self._store.database.write(delete_session, timeout=ERASURE_SECONDS)

    async def erase(
        self, tenant: str, user: str, *, agents: Collection[str] | None = None
    ) -> ErasureCounts:
        """See Conversations."""
        mine = select(sessions.c.key).where(_match_owner(tenant, user, agents))
        return await self._store.database.write(
            lambda connection: _delete_sessions(connection, tenant, user, mine),
            timeout=ERASURE_SECONDS,
        )

    async def export(
        self, tenant: str, user: str, *, agents: Collection[str] | None = None
    ) -> AsyncGenerator[Conversation, None]:
        """See Conversations."""
        mine = _match_owner(tenant, user, agents)
        last: bytes = b""
        while True:
            page = (
                select(sessions.c.key, sessions.c.agent_id, sessions.c.session_id)
                .where(mine, sessions.c.key > last)
                .order_by(sessions.c.key)
                .limit(EXPORT_PAGE)
            )
            rows = await self._store.database.read(
                lambda connection, page=page: connection.execute(page).all()  # type: ignore[misc]
            )
            for row in rows:
                try:
                    yield await self.get(tenant, user, row.agent_id, row.session_id, branches=True)
                except NotFoundError:
                    continue  # deleted since
            if len(rows) < EXPORT_PAGE:
                return
            last = rows[-1].key

    async def _read_newest(
        self,
        session: Session,
        read: Callable[[Connection], tuple[RowMapping, Sequence[RowMapping]]],
    ) -> tuple[RowMapping, Sequence[RowMapping]]:
        """Read from the replica if it has the session as the primary has it, or if the primary
        cannot be used; else from the primary."""
        database = self._store.database
        if database.replica is not None:
            try:
                current: RowMapping | None = await database.read(
                    lambda connection: self._read_session(connection, session)
                )
            except MemoryUnavailableError:
                current = None
            with suppress(MemoryUnavailableError, NotFoundError):
                row, found = await database.read_replica(read, timeout=READ_SECONDS)
                if current is None or all(
                    current[name] == row[name] for name in ("updated_at", "head")
                ):
                    return row, found
        return await database.read(read, timeout=READ_SECONDS)

    def _read_session(self, connection: Connection, session: Session) -> RowMapping:
        wanted = select(
            sessions.c.key, sessions.c.created_at, sessions.c.updated_at, sessions.c.head
        ).where(_match_session(session))
        row = connection.execute(wanted).mappings().first()
        if row is None:
            raise NotFoundError("There is no such conversation.", code="conversation_not_found")
        return row

    def _build_conversation(
        self, session: Session, row: RowMapping, found: Sequence[RowMapping]
    ) -> Conversation:
        return Conversation(
            agent_id=session.agent_id,
            session_id=session.session_id,
            created_at=row["created_at"],
            updated_at=row["updated_at"],
            messages=tuple(self._build_message(session, each) for each in found),
        )

    def _build_message(self, session: Session, row: RowMapping) -> StoredMessage:
        node = self._store.build_node(*(row[name] for name in NODE_COLUMNS))
        return StoredMessage(
            id=node.path.hex(),
            parent=None if node.parent == session.key else node.parent.hex(),
            role=cast(Literal["user", "assistant"], node.role),
            content=node.content,
            status=cast(Status, row["status"]),
            origin=cast(Origin, row["origin"]),
            created_at=row["created_at"],
            steps=node.steps,
            run_id=node.run_id,
            usage=None if row["usage"] is None else msgspec.json.decode(row["usage"], type=Usage),
        )


def _match_owner(tenant: str, user: str, agents: Collection[str] | None) -> Any:
    owned = and_(sessions.c.tenant == tenant, sessions.c.user_id == user)
    return owned if agents is None else and_(owned, sessions.c.agent_id.in_(sorted(agents)))


def _match_session(session: Session) -> Any:
    return and_(
        sessions.c.key == session.key,
        sessions.c.tenant == session.tenant,
        sessions.c.user_id == session.user,
    )


def _select_messages(session: Session, row: RowMapping, *, branches: bool) -> Select[Any]:
    """Return a query for the messages of the newest branch, or of all, in their order."""
    owned = and_(nodes.c.tenant == session.tenant, nodes.c.user_id == session.user)
    if branches:
        return (
            select(*_MESSAGE_COLUMNS)
            .where(nodes.c.session_key == session.key, owned)
            .order_by(nodes.c.depth, nodes.c.created_at, nodes.c.path)
        )
    newest = (
        select(*_MESSAGE_COLUMNS)
        .where(nodes.c.path == row["head"], owned)
        .cte("newest", recursive=True)
    )
    newest = newest.union_all(
        select(*_MESSAGE_COLUMNS).where(nodes.c.path == newest.c.parent, owned)
    )
    return select(newest).order_by(newest.c.depth).limit(MAX_DEPTH)


def _delete_sessions(
    connection: Connection, tenant: str, user: str, keys: Select[Any]
) -> ErasureCounts:
    """Delete the sessions of these `keys` and all that belongs to them. Turns lock the session's
    row first too, so there is no deadlock."""
    connection.execute(keys.with_for_update()).close()
    counts = [
        connection.execute(
            delete(table).where(
                table.c.tenant == tenant, table.c.user_id == user, table.c.session_key.in_(keys)
            )
        ).rowcount
        for table in (nodes, runs, summaries)
    ]
    gone = connection.execute(
        delete(sessions).where(
            sessions.c.tenant == tenant, sessions.c.user_id == user, sessions.c.key.in_(keys)
        )
    )
    return ErasureCounts(gone.rowcount, *counts)


def _encode_cursor(row: RowMapping) -> str:
    value = msgspec.json.encode((row["updated_at"], row["key"].hex()))
    return base64.urlsafe_b64encode(value).decode().rstrip("=")


def _decode_cursor(after: str) -> tuple[datetime, bytes]:
    try:
        value = base64.urlsafe_b64decode(after + "=" * (-len(after) % 4))
        moment, key = msgspec.json.decode(value, type=tuple[datetime, str])
        if moment.tzinfo is None:
            raise ValueError("a time without its zone")
        return moment.astimezone(UTC), bytes.fromhex(key)
    except (binascii.Error, ValueError, OverflowError, msgspec.MsgspecError):
        raise InvalidRequestError(
            "This is not a position that a list gave.", param="after"
        ) from None
