"""Understands a database's address: which kind of database it is, and how it may be shown."""

import re
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode

import msgspec

_SCHEME = "postgresql://"
_POSTGRES = re.compile(r"^postgres(?:ql)?(?:\+\w+)?://", re.IGNORECASE)
_SQLITE = re.compile(r"^sqlite(?:\+\w+)?:///", re.IGNORECASE)
_SERVER = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|(?:[^:\[\].]{1,63}(?:\.|(?=:)|$))*)(?::(\d{1,5}))?")
"""A host, which may be left out, and a port."""

_OPTION_NAMES = {"ssl": "sslmode"}
"""Options that SQLAlchemy's addresses name otherwise than PostgreSQL's own."""


class DatabaseUrl(msgspec.Struct, frozen=True):
    """Where a database is: `location` is PostgreSQL's own form of address, or the path of SQLite's
    file."""

    kind: Literal["sqlite", "postgresql"]
    location: str

    @property
    def redacted(self) -> str:
        """The address without its password."""
        if self.kind == "sqlite":
            return f"sqlite:///{self.location}"
        return re.sub(
            r"(?<=://)([^:@/]*):[^/]*@",
            r"\1:***@",
            re.sub(r"(?i)((?:password|_key|secret)=)[^&]*", r"\1***", self.location),
        )

    @property
    def servers(self) -> tuple["DatabaseUrl", ...]:
        """An address for each server of PostgreSQL that this one names, in order."""
        start, rest = self.location[: len(_SCHEME)], self.location[len(_SCHEME) :]
        place = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
        user, at, hosts = rest[:place].rpartition("@")
        return tuple(
            DatabaseUrl(self.kind, f"{start}{user}{at}{host}{rest[place:]}")
            for host in hosts.split(",")
        )

    @property
    def hosts(self) -> str:
        """The servers of PostgreSQL without user and database, such as `one:5432,two:5432`, or the
        folder of its socket."""
        rest, _, query = self.location.removeprefix(_SCHEME).partition("?")
        options = dict(parse_qsl(query))
        return _extract_servers(rest) or ":".join(
            options[name] for name in ("host", "port") if name in options
        )

    @property
    def path(self) -> Path:
        """The file of an SQLite database."""
        return Path(self.location)


def parse_database_url(url: str) -> DatabaseUrl:
    """The address that `url` gives: `sqlite:///FILE` or `postgresql://...`, whatever driver it
    names. Raises ValueError."""
    if match := _SQLITE.match(url):
        path = unquote(url[match.end() :].partition("?")[0])
        if not path or path == ":memory:":
            raise ValueError("an SQLite database needs a file: sqlite:///data/ai-agent-service.db")
        return DatabaseUrl("sqlite", path)
    if match := _POSTGRES.match(url):
        rest = url[match.end() :]
        if not rest:
            raise ValueError("this names no server: postgresql://USER:PASSWORD@HOST:5432/DATABASE")
        return DatabaseUrl("postgresql", _normalize_options(f"{_SCHEME}{rest}"))
    raise ValueError(
        "this is neither sqlite:///FILE nor postgresql://USER:PASSWORD@HOST:5432/DATABASE"
    )


def _normalize_options(dsn: str) -> str:
    """`dsn` with options in PostgreSQL's names; raises ValueError, without repeating any of it, for
    hosts and ports that cannot be."""
    rest, _, query = dsn.removeprefix(_SCHEME).partition("?")
    options = {_OPTION_NAMES.get(name, name): value for name, value in parse_qsl(query)}
    if not _extract_servers(rest) and "host" in options and "/" not in options["host"]:
        rest = _insert_hosts(rest, options.pop("host"), options.pop("port", ""))
    found = [_SERVER.fullmatch(server) for server in _extract_servers(rest).split(",")]
    if "#" in rest or not all(
        server and (server[1] is None or 1 <= int(server[1]) <= 65_535) for server in found
    ):
        raise ValueError(
            "its hosts or ports cannot be; in a password / is written as %2F, # as %23, : as %3A, @"
            " as %40"
        )
    return f"{_SCHEME}{rest}" + (f"?{urlencode(options, quote_via=quote)}" if options else "")


def _extract_servers(rest: str) -> str:
    """The servers in what stands between the scheme and the options."""
    return rest.partition("/")[0].rpartition("@")[2]


def _insert_hosts(rest: str, hosts: str, ports: str) -> str:
    """`rest` with the servers that the options `host` and `port` name; raises ValueError."""
    named = [f"[{host}]" if ":" in host else host for host in hosts.split(",")]
    numbers = ports.split(",")
    if len(numbers) == 1:
        numbers *= len(named)
    if len(numbers) != len(named):
        raise ValueError("the options host and port name different numbers of servers")
    place, slash, database = rest.partition("/")
    servers = ",".join(
        f"{host}:{port}" if port else host for host, port in zip(named, numbers, strict=True)
    )
    return f"{place}{servers}{slash}{database}"
