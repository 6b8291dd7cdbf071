"""Clocks that are wrong: those of service processes, and that of a PostgreSQL database."""

from pathlib import Path

from tests.support.postgres import PostgresServer

_SHIFT = """
import datetime
import sys
import time

_real = datetime.datetime
_time = time.time

class _Shifted(_real):
    @classmethod
    def now(cls, tz=None):
        return _real.now(tz) + datetime.timedelta(seconds=SECONDS)

time.time = lambda: _time() + SECONDS
for _name, _module in list(sys.modules.items()):
    if _name.startswith("ai_agent_service.") and getattr(_module, "datetime", None) is _real:
        _module.datetime = _Shifted
"""

_FUNCTIONS = ("now", "statement_timestamp", "clock_timestamp", "transaction_timestamp")


def shift_process_clock(plugins: Path, seconds: float) -> None:
    """Have the service that loads this folder of plug-ins see another time than its host."""
    text = _SHIFT.replace("SECONDS", str(seconds))
    (plugins / "shifted_clock.py").write_text(text, encoding="utf-8")


class DatabaseClock:
    """The clock of one PostgreSQL database: connections made from now on find our functions before
    PostgreSQL's own."""

    def __init__(self, server: PostgresServer, name: str) -> None:
        self._server = server
        self._name = name
        functions = "".join(
            f"""
            CREATE FUNCTION clock.{each}() RETURNS timestamptz LANGUAGE sql STABLE AS
            'SELECT pg_catalog.{each}() + (SELECT shift FROM clock.shifts)';
            """
            for each in _FUNCTIONS
        )
        server.sql(
            "CREATE SCHEMA clock; CREATE TABLE clock.shifts (shift interval); INSERT INTO"
            f" clock.shifts VALUES ('0'); {functions} ALTER DATABASE {name} SET search_path ="
            " clock, pg_catalog, public",
            name,
        )

    def jump(self, interval: str) -> None:
        """Have it say another time, such as `3 days` ahead of the server's."""
        self._server.sql(f"UPDATE clock.shifts SET shift = '{interval}'", self._name)
