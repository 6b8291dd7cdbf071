"""Encrypts anew what is stored, with the newest key or not at all, beside a running service."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import msgspec
from sqlalchemy import Connection, RowMapping, Select, Table, and_, bindparam, func, select, tuple_, update

from app.memory.store import ADDRESS_KEY, PROCESS_STALE_SECONDS
from app.storage.cipher import Cipher, Undecryptable
from app.storage.database import Database
from app.storage.engines import database_time
from app.storage.tables import nodes, processes, secrets, summaries

BATCH = 500
"""Rows that are encrypted in one transaction, at most."""

BATCH_CHARACTERS = 8 * 1024 * 1024
"""Fewer rows are, if they hold more than this together: nobody else writes to an SQLite file meanwhile."""

BATCH_SECONDS = 60.0

Bound = Callable[[RowMapping], bytes]

VALUES: Mapping[Table, Mapping[str, Bound]] = {
    nodes: {"body": lambda row: row["path"], "steps": lambda row: row["path"] + b"steps"},
    summaries: {"body": lambda row: row["covers"] + row["settings"]},
    secrets: {"value": lambda row: row["name"].encode()},
}
"""The columns that are encrypted, and the address that each value is bound to; the store seals them so."""


class Reencrypted(msgspec.Struct):
    """How many values were encrypted anew, how many were as they should be, and what kept others from being read, by how many."""

    changed: int = 0
    unchanged: int = 0
    unreadable: Counter[str] = msgspec.field(default_factory=Counter)

    def add(self, other: "Reencrypted") -> None:
        """Counts `other` too."""
        self.changed += other.changed
        self.unchanged += other.unchanged
        self.unreadable += other.unreadable


class _Batch(msgspec.Struct, frozen=True):
    rows: int
    last: tuple[Any, ...]
    counted: Reencrypted


def check_address_key(connection: Connection, cipher: Cipher) -> None:
    """Reads the key of the addresses, if there is one yet; raises Undecryptable."""
    stored = connection.execute(select(secrets.c.value).where(secrets.c.name == ADDRESS_KEY)).scalar()
    if stored is not None:
        cipher.decrypt(stored, bound_to=ADDRESS_KEY.encode())


def living_processes(connection: Connection) -> Sequence[str]:
    """The ids of the service's processes that use the database now."""
    since = database_time(connection) - timedelta(seconds=PROCESS_STALE_SECONDS)
    wanted = select(processes.c.process_id).where(processes.c.seen_at >= since).order_by(processes.c.process_id)
    return connection.execute(wanted).scalars().all()


def count_rows(connection: Connection) -> int:
    """How many rows have something to encrypt."""
    return sum(connection.execute(select(func.count()).select_from(table)).scalar_one() for table in VALUES)


async def reencrypt(
    database: Database,
    old: Cipher,
    new: Cipher,
    progress: Callable[[int], object],
    *,
    rows: int = BATCH,
    characters: int = BATCH_CHARACTERS,
) -> Reencrypted:
    """Stores every value that `old` reads as `new` writes it, row by row in the order of their keys; calls `progress` with the number
    of rows done since the last time.

    What is written meanwhile is left as it is written. Values that `old` cannot read stay as they are. It may be stopped and begun
    again. A transaction takes `rows` at most, and but one if that holds more than `characters`. Raises MemoryUnavailable.
    """
    total = Reencrypted()
    for table in VALUES:
        last: tuple[Any, ...] | None = None
        while True:

            def work(connection: Connection, table: Table = table, last: tuple[Any, ...] | None = last) -> _Batch | None:
                return _reencrypted(connection, table, _following(connection, table, last, rows, characters), last, old, new)

            batch = await database.write(work, timeout=BATCH_SECONDS)
            if batch is None:
                break
            total.add(batch.counted)
            progress(batch.rows)
            last = batch.last
    return total


def _reencrypted(
    connection: Connection, table: Table, keys: Sequence[tuple[Any, ...]], last: tuple[Any, ...] | None, old: Cipher, new: Cipher
) -> _Batch | None:
    """Encrypts the rows after `last` up to the last of `keys`; None where there are none."""
    if connection.dialect.name == "sqlite":
        # Else what was there in the clear would stay in the file, in pages that are free.
        connection.exec_driver_sql("PRAGMA secure_delete=ON").close()
    if not keys:
        return None
    counted = Reencrypted()
    columns = VALUES[table]
    identity = list(table.primary_key.columns)
    wanted = _after(select(*identity, *(table.c[name] for name in columns)), identity, last).where(tuple_(*identity) <= keys[-1])
    changes: dict[str, list[dict[str, Any]]] = {name: [] for name in columns}
    for row in connection.execute(wanted).mappings():
        for name, bound in columns.items():
            if (stored := row[name]) is None:
                continue
            if new.is_current(stored):
                counted.unchanged += 1
                continue
            try:
                sealed = new.encrypt(old.decrypt(stored, bound_to=bound(row)), bound_to=bound(row))
            except Undecryptable as error:
                counted.unreadable[str(error)] += 1
                continue
            changes[name].append({"new_": sealed, "old_": stored, **{f"{column.name}_": row[column.name] for column in identity}})
    this_row = and_(*(column == bindparam(f"{column.name}_") for column in identity))
    for name, values in changes.items():
        if values:
            # What another process has written since stays.
            unchanged = and_(this_row, table.c[name] == bindparam("old_"))
            connection.execute(update(table).where(unchanged).values({name: bindparam("new_")}), values)
            counted.changed += len(values)
    return _Batch(len(keys), keys[-1], counted)


def _following(
    connection: Connection, table: Table, last: tuple[Any, ...] | None, rows: int, most_characters: int
) -> list[tuple[Any, ...]]:
    """The keys of the rows after `last` that make up a batch."""
    identity = list(table.primary_key.columns)
    sizes = (func.coalesce(func.length(table.c[name]), 0) for name in VALUES[table])
    wanted = _after(select(*identity, *sizes), identity, last).order_by(*identity).limit(rows)
    keys: list[tuple[Any, ...]] = []
    characters = 0
    for row in connection.execute(wanted):
        characters += sum(row[len(identity) :])
        if keys and characters > most_characters:
            break
        keys.append(tuple(row[: len(identity)]))
    return keys


def _after(wanted: Select[Any], identity: Sequence[Any], last: tuple[Any, ...] | None) -> Select[Any]:
    return wanted if last is None else wanted.where(tuple_(*identity) > last)
