"""A statement that is compiled once, for those that each turn runs: to look a compiled form up costs SQLAlchemy more than SQLite takes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, CursorResult, Dialect
from sqlalchemy.sql.elements import ClauseElement


class Prepared:
    """A statement for one dialect; `columns` are those that an insert sets.

    What it gives is as the driver gives it: bytes, texts and numbers are the same, points in time are texts on SQLite.
    """

    def __init__(self, statement: ClauseElement, dialect: Dialect, columns: Sequence[str] | None = None) -> None:
        compiled: Any = statement.compile(dialect=dialect, column_keys=list(columns) if columns is not None else None)
        self._sql: str = compiled.string
        self._names: tuple[str, ...] = tuple(compiled.positiontup)
        processors: dict[str, Callable[[Any], Any]] = compiled._bind_processors
        self._processors = tuple(processors.get(name) for name in self._names)
        self._defaults: Mapping[str, Any] = {name: value for name, value in compiled.params.items() if value is not None}

    def __call__(self, connection: Connection, values: Mapping[str, Any]) -> CursorResult[Any]:
        """Runs it with `values` by the names of its parameters."""
        return connection.exec_driver_sql(self._sql, self._positioned(values))

    def many(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Runs it once for each of `rows`."""
        connection.exec_driver_sql(self._sql, [self._positioned(row) for row in rows]).close()

    def _positioned(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        defaults = self._defaults
        given = (values[name] if name in values else defaults[name] for name in self._names)
        return tuple(
            value if processor is None or value is None else processor(value)
            for value, processor in zip(given, self._processors, strict=True)
        )
