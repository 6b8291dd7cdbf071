"""A statement that is compiled once, for those that each turn runs: SQLAlchemy takes longer for one
than SQLite does."""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeVar

from sqlalchemy import Connection, Dialect, LargeBinary
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.elements import ClauseElement

T = TypeVar("T")


class PreparedStatement:
    """A statement with two parameters at least, for one dialect; `columns` are those that an insert
    sets.

    On SQLite it is given to the driver itself, on the connection and in the transaction that it is
    run with, and errors are SQLAlchemy's all the same. What it gives is as the driver gives it:
    bytes, texts and numbers are the same, points in time are texts on SQLite.
    """

    def __init__(
        self, statement: ClauseElement, dialect: Dialect, columns: Sequence[str] | None = None
    ) -> None:
        compiled: Any = statement.compile(
            dialect=dialect, column_keys=list(columns) if columns is not None else None
        )
        self._sql: str = compiled.string
        names: tuple[str, ...] = tuple(compiled.positiontup)
        self._placed: Callable[[Mapping[str, Any]], tuple[Any, ...]] = itemgetter(*names)
        # The drivers take bytes as they are.
        processors = {
            name: process
            for name, process in compiled._bind_processors.items()
            if not _is_binary(compiled.binds[name])
        }
        self._processors = tuple(
            (place, processors[name]) for place, name in enumerate(names) if name in processors
        )
        self._constants = {
            name: compiled.binds[name].value for name in names if not compiled.binds[name].required
        }
        self._is_driven = dialect.name == "sqlite"

    def fetch_rows(
        self, connection: Connection, values: Mapping[str, Any]
    ) -> Sequence[Sequence[Any]]:
        """Runs it with `values` by the names of its parameters; the rows that it gives."""
        positioned = self._bind_values(values)
        if self._is_driven:
            return self._run_on_driver(
                lambda: _get_driver(connection).execute(self._sql, positioned).fetchall()
            )
        return connection.exec_driver_sql(self._sql, positioned).fetchall()

    def execute(self, connection: Connection, values: Mapping[str, Any]) -> int:
        """Runs it with `values` by the names of its parameters; how many rows it changed."""
        positioned = self._bind_values(values)
        if self._is_driven:
            return self._run_on_driver(
                lambda: _get_driver(connection).execute(self._sql, positioned).rowcount
            )
        return connection.exec_driver_sql(self._sql, positioned).rowcount

    def execute_many(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Runs it once for each of `rows`."""
        positioned = [self._bind_values(row) for row in rows]
        if self._is_driven:
            self._run_on_driver(lambda: _get_driver(connection).executemany(self._sql, positioned))
        else:
            connection.exec_driver_sql(self._sql, positioned).close()

    def _run_on_driver(self, run: Callable[[], T]) -> T:
        try:
            return run()
        except sqlite3.Error as error:
            raise DBAPIError.instance(
                self._sql, None, error, sqlite3.Error, hide_parameters=True
            ) from error

    def _bind_values(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        placed = self._placed({**self._constants, **values} if self._constants else values)
        if not self._processors:
            return placed
        processed = list(placed)
        for place, process in self._processors:
            if processed[place] is not None:
                processed[place] = process(processed[place])
        return tuple(processed)


def _get_driver(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def _is_binary(parameter: Any) -> bool:
    return isinstance(parameter.type, LargeBinary)
