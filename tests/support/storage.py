"""Engines for tests of what is above them."""

from ai_agent_service.storage.engine import DatabaseEngine
from ai_agent_service.storage.postgres import PostgresEngine
from ai_agent_service.storage.sqlite import SqliteEngine
from ai_agent_service.storage.url import parse_database_url


def engine_of(
    url: str, *, timeout: float = 5, pool_size: int = 2, read_only: bool = False
) -> DatabaseEngine:
    """An engine of the database at an address."""
    address = parse_database_url(url)
    if address.kind == "sqlite":
        return SqliteEngine(address, timeout=timeout)
    return PostgresEngine(address, pool_size=pool_size, timeout=timeout, read_only=read_only)
