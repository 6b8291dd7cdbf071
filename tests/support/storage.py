"""Database engines for tests of the layers above them."""

from ai_agent_service.storage.database import Database
from ai_agent_service.storage.engine import DatabaseEngine
from ai_agent_service.storage.postgres import PostgresEngine
from ai_agent_service.storage.sqlite import SqliteEngine
from ai_agent_service.storage.url import parse_database_url
from tests.support.events import until


def make_engine(
    url: str, *, timeout: float = 5, pool_size: int = 2, read_only: bool = False
) -> DatabaseEngine:
    """Build an engine for the database at an address."""
    address = parse_database_url(url)
    if address.kind == "sqlite":
        return SqliteEngine(address, timeout=timeout)
    return PostgresEngine(address, pool_size=pool_size, timeout=timeout, read_only=read_only)


async def until_usable(database: Database) -> None:
    """Wait until the database counts as usable."""
    await until(lambda: database.problem is None)
