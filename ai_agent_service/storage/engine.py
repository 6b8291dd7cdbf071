"""What a database engine offers, whichever database it is."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

from sqlalchemy import Connection, text

T = TypeVar("T")

Work = Callable[[Connection], T]
"""What is done within one transaction; it blocks, so it runs in a thread or in a greenlet of its
own."""


class PoolUsage(NamedTuple):
    """How many connections there may be, and how many are in use."""

    size: int
    in_use: int


class DatabaseEngine(Protocol):
    """One database server, or one file."""

    name: str

    @property
    def pool(self) -> PoolUsage:
        """What is in use now."""
        ...

    def run(self, work: Work[T], *, write: bool, timeout: float | None = None) -> asyncio.Future[T]:
        """Begins to run `work` in a transaction that is committed when it returns and rolled back
        when it raises; gives what it comes to.

        A statement may take `timeout` seconds, by default the engine's own. What is cancelled is
        not begun any more, or undone; once begun on SQLite, it comes to its end.
        """
        ...

    async def close(self) -> None:
        """Closes every connection."""
        ...

    async def forget_connections(self) -> None:
        """Has later transactions use new connections."""
        ...


def ping(connection: Connection) -> None:
    """Work that asks for nothing, to see that it is answered."""
    connection.execute(text("SELECT 1")).close()
