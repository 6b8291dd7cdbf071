"""What a database's address means, and how it is shown."""

import pytest

from ai_agent_service.storage.url import parse_database_url


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///data/agents.db", "data/agents.db"),
        ("sqlite:////var/lib/agents.db", "/var/lib/agents.db"),
        ("sqlite+aiosqlite:///data/agents.db", "data/agents.db"),
        ("SQLite:///data/agents.db", "data/agents.db"),
        ("sqlite:///data/agents.db?mode=rwc", "data/agents.db"),
        ("sqlite:///a%20b/100%25.db", "a b/100%.db"),
    ],
)
def test_an_sqlite_address_names_a_file(url: str, path: str) -> None:
    address = parse_database_url(url)
    assert (address.kind, address.location, address.path.as_posix()) == ("sqlite", path, path)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p@h:5432/d",
        "postgres://u:p@h:5432/d",
        "postgresql+asyncpg://u:p@h:5432/d",
        "postgresql+psycopg2://u:p@h:5432/d",
        "PostgreSQL://u:p@h:5432/d",
    ],
)
def test_a_postgresql_address_is_taken_whatever_driver_it_names(url: str) -> None:
    address = parse_database_url(url)
    assert (address.kind, address.location) == ("postgresql", "postgresql://u:p@h:5432/d")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:p%40ss%2Fword@h/d",
        "postgresql://u@h1:5432,h2:5433/d?target_session_attrs=read-write",
        "postgresql://u@/d?host=/var/run/postgresql",
        "postgresql://[::1]:5432/d",
        "postgresql://h/d?sslmode=require&application_name=agents",
    ],
)
def test_what_postgresql_itself_understands_stays_as_it_is(url: str) -> None:
    kept = (
        parse_database_url(url).location.replace("%2F", "/")
        if "host=" in url
        else parse_database_url(url).location
    )
    assert kept == url


def test_the_option_ssl_is_postgresqls_sslmode() -> None:
    assert parse_database_url(
        "postgresql+asyncpg://u@h/d?ssl=require&connect_timeout=5"
    ).location == ("postgresql://u@h/d?sslmode=require&connect_timeout=5")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "neither"),
        ("data/agents.db", "neither"),
        ("mysql://u:secret@h/d", "neither"),
        ("sqlite://", "neither"),
        ("sqlite:///", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("sqlite:///?mode=memory", "needs a file"),
        ("postgresql://", "names no server"),
    ],
)
def test_what_names_no_database_is_refused_without_being_repeated(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        parse_database_url(url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ada:secret@h:5432/d", "postgresql://ada:***@h:5432/d"),
        ("postgresql://ada:se%40cret@h1,h2/d", "postgresql://ada:***@h1,h2/d"),
        (
            "postgresql://h/d?user=ada&password=secret&sslmode=require",
            "postgresql://h/d?user=ada&password=***&sslmode=require",
        ),
        ("postgresql://h/d?PASSWORD=secret", "postgresql://h/d?PASSWORD=***"),
        ("postgresql://ada@h/d", "postgresql://ada@h/d"),
        ("postgresql://ada:sec@ret@h/d", "postgresql://ada:***@h/d"),
        ("postgresql://ada:sec:ret@h/d", "postgresql://ada:***@h/d"),
        ("sqlite:///data/agents.db", "sqlite:///data/agents.db"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert parse_database_url(url).redacted == shown


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        (
            "postgresql://u:p%40@one:1,two/d?sslmode=require",
            {"one:1": "u:p%40@one:1/d?sslmode=require", "two": "u:p%40@two/d?sslmode=require"},
        ),
        ("postgresql://[::1]:5432,h", {"[::1]:5432": "[::1]:5432", "h": "h"}),
        ("postgresql://h?user=a/b", {"h": "h?user=a%2Fb"}),
        (
            "postgresql:///d?host=/run/postgresql",
            {"/run/postgresql": "/d?host=%2Frun%2Fpostgresql"},
        ),
        (
            "postgresql://u:p@/d?host=one,::1&port=1,2&sslmode=require",
            {
                "one:1": "u:p@one:1/d?sslmode=require",
                "[::1]:2": "u:p@[::1]:2/d?sslmode=require",
            },
        ),
        (
            "postgresql:///d?host=one,two&port=5433",
            {"one:5433": "one:5433/d", "two:5433": "two:5433/d"},
        ),
    ],
)
def test_an_address_of_several_servers_has_one_for_each(url: str, servers: dict[str, str]) -> None:
    found = parse_database_url(url).servers
    assert {server.hosts: server.location for server in found} == {
        name: f"postgresql://{rest}" for name, rest in servers.items()
    }


def test_options_that_name_servers_must_fit_together() -> None:
    with pytest.raises(
        ValueError, match="the options host and port name different numbers of servers"
    ):
        parse_database_url("postgresql:///d?host=one,two,three&port=1,2")
