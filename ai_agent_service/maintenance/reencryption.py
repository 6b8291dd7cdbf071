"""Encrypts anew what is stored, with the newest key or not at all, beside a running service."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import msgspec
from sqlalchemy import (
    Connection,
    RowMapping,
    Select,
    Table,
    and_,
    bindparam,
    func,
    select,
    tuple_,
    update,
)

from ai_agent_service.memory.processes import PROCESS_STALE_SECONDS
from ai_agent_service.memory.store import HASH_KEY_NAME
from ai_agent_service.storage.clock import read_database_time
from ai_agent_service.storage.database import Database
from ai_agent_service.storage.encryption import Cipher, DecryptionError
from ai_agent_service.storage.tables import nodes, processes, secrets, summaries

BATCH = 500
"""Rows that are encrypted in one transaction, at most."""

BATCH_CHARACTERS = 8 * 1024 * 1024
"""Fewer rows are, if they hold more than this together: nobody else writes to an SQLite file
meanwhile."""

BATCH_SECONDS = 60.0

WAIT_SECONDS = 30.0
"""How long a database that went away is waited for."""

Bound = Callable[[RowMapping], bytes]
Key = tuple[Any, ...]

ENCRYPTED_COLUMNS: Mapping[Table, Mapping[str, Bound]] = {
    nodes: {"body": lambda row: row["path"], "steps": lambda row: row["path"] + b"steps"},
    summaries: {"body": lambda row: row["covers"] + row["settings"]},
    secrets: {"value": lambda row: row["name"].encode()},
}
"""The columns that are encrypted, and the address that each value is bound to; the store seals them
so."""


class ReencryptionCounts(msgspec.Struct):
    """How many values were encrypted anew, how many were as they should be, and what kept others
    from being read, by how many."""

    changed: int = 0
    unchanged: int = 0
    unreadable: Counter[str] = msgspec.field(default_factory=Counter)

    def add(self, other: "ReencryptionCounts") -> None:
        """Counts `other` too."""
        self.changed += other.changed
        self.unchanged += other.unchanged
        self.unreadable += other.unreadable


class _Batch(msgspec.Struct, frozen=True):
    rows: int
    last: Key
    counted: ReencryptionCounts


def read_hash_key(connection: Connection) -> str | None:
    """The key of the addresses as it is stored, if there is one yet."""
    stored: str | None = connection.execute(
        select(secrets.c.value).where(secrets.c.name == HASH_KEY_NAME)
    ).scalar()
    return stored


def check_hash_key(stored: str | None, cipher: Cipher) -> None:
    """Reads the key of the addresses, if there is one; raises DecryptionError."""
    if stored is not None:
        cipher.decrypt(stored, bound_to=HASH_KEY_NAME.encode())


def list_live_processes(connection: Connection) -> Sequence[str]:
    """The ids of the service's processes that use the database now."""
    since = read_database_time(connection) - timedelta(seconds=PROCESS_STALE_SECONDS)
    wanted = (
        select(processes.c.process_id)
        .where(processes.c.seen_at >= since)
        .order_by(processes.c.process_id)
    )
    return connection.execute(wanted).scalars().all()


def count_rows(connection: Connection) -> int:
    """How many rows have something to encrypt."""
    return sum(
        connection.execute(select(func.count()).select_from(table)).scalar_one()
        for table in ENCRYPTED_COLUMNS
    )


async def reencrypt(
    database: Database,
    old: Cipher,
    new: Cipher,
    progress: Callable[[int], object],
    *,
    rows: int = BATCH,
    characters: int = BATCH_CHARACTERS,
) -> ReencryptionCounts:
    """Stores every value that `old` reads as `new` writes it, row by row in the order of their
    keys; calls `progress` with the number of rows done since the last time.

    What is written meanwhile is left as it is written. Values that `old` cannot read stay as they
    are. It may be stopped and begun again. A transaction takes `rows` at most, and but one if that
    holds more than `characters`. Raises MemoryUnavailableError.
    """
    total = ReencryptionCounts()
    for table in ENCRYPTED_COLUMNS:
        sweep = _TableSweep(table, old, new, rows, characters)
        last: Key | None = None
        while True:

            def encrypt_batch(
                connection: Connection, sweep: _TableSweep = sweep, last: Key | None = last
            ) -> _Batch | None:
                return sweep.process_batch(connection, last)

            batch = await database.write(encrypt_batch, wait=WAIT_SECONDS, timeout=BATCH_SECONDS)
            if batch is None:
                break
            total.add(batch.counted)
            progress(batch.rows)
            last = batch.last
    return total


class _TableSweep:
    """Goes through a table in the order of its keys."""

    def __init__(self, table: Table, old: Cipher, new: Cipher, rows: int, characters: int) -> None:
        self._table = table
        self._columns = ENCRYPTED_COLUMNS[table]
        self._key = list(table.primary_key.columns)
        self._old = old
        self._new = new
        self._rows = rows
        self._characters = characters

    def process_batch(self, connection: Connection, last: Key | None) -> _Batch | None:
        """Encrypts some of the rows after `last`; None where there are none."""
        if connection.dialect.name == "sqlite":
            # Else what was there in the clear would stay in the file, in pages that are free.
            connection.exec_driver_sql("PRAGMA secure_delete=ON").close()
        keys = self._select_keys(connection, last)
        if not keys:
            return None
        counted = ReencryptionCounts()
        wanted = self._select_after(last, *(self._table.c[name] for name in self._columns)).where(
            tuple_(*self._key) <= keys[-1]
        )
        changes: dict[str, list[dict[str, Any]]] = {name: [] for name in self._columns}
        for row in connection.execute(wanted).mappings():
            key = {f"{column.name}_": row[column.name] for column in self._key}
            for name, bound in self._columns.items():
                stored = row[name]
                if (
                    stored is not None
                    and (sealed := self._reencrypt_value(stored, bound(row), counted)) is not None
                ):
                    changes[name].append({"new_": sealed, "old_": stored, **key})
        this_row = and_(*(column == bindparam(f"{column.name}_") for column in self._key))
        for name, values in changes.items():
            if values:
                # What another process has written since stays.
                unchanged = and_(this_row, self._table.c[name] == bindparam("old_"))
                connection.execute(
                    update(self._table).where(unchanged).values({name: bindparam("new_")}), values
                )
        return _Batch(len(keys), keys[-1], counted)

    def _reencrypt_value(
        self, stored: str, address: bytes, counted: ReencryptionCounts
    ) -> str | None:
        """The value as it is to be stored; None where it is to stay."""
        if self._new.is_current(stored):
            counted.unchanged += 1
            return None
        try:
            text = self._old.decrypt(stored, bound_to=address)
        except DecryptionError as error:
            counted.unreadable[str(error)] += 1
            return None
        counted.changed += 1
        return self._new.encrypt(text, bound_to=address)

    def _select_keys(self, connection: Connection, last: Key | None) -> list[Key]:
        """The keys of the rows that make up a batch."""
        sizes = (func.coalesce(func.length(self._table.c[name]), 0) for name in self._columns)
        keys: list[Key] = []
        characters = 0
        for row in connection.execute(
            self._select_after(last, *sizes).order_by(*self._key).limit(self._rows)
        ):
            characters += sum(row[len(self._key) :])
            if keys and characters > self._characters:
                break
            keys.append(tuple(row[: len(self._key)]))
        return keys

    def _select_after(self, last: Key | None, *columns: Any) -> Select[Any]:
        wanted = select(*self._key, *columns)
        return wanted if last is None else wanted.where(tuple_(*self._key) > last)
