"""Connections of one address, over a real socket, and descriptors that run short."""

import asyncio
import resource
import socket
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from ai_agent_service.auth.identity.trusted_proxy import parse_network
from ai_agent_service.server.application import create_app
from ai_agent_service.server.connections import ConnectionLimit, build_connection_limit
from tests.support.clients import connected_raw
from tests.support.processes import serving as process_serving
from tests.support.raw_http import parsed, read_refusal, sent
from tests.support.service import configuration, serving
from tests.support.talker import configured

GET = b"GET /health/live HTTP/1.1\r\nhost: service\r\nconnection: close\r\n\r\n"


@contextmanager
def limited_descriptors(files: int) -> Generator[None, None, None]:
    """Have processes that start meanwhile open so many files at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_an_address_has_a_number_of_connections_and_gets_room_when_one_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "access")
    app = create_app(configuration(tmp_path))
    app.state.connections = ConnectionLimit(3, (), exempts_loopback=False)
    async with asyncio.timeout(20), serving(app) as address:
        held = [await connected_raw(address, b"") for _ in range(3)]
        assert read_refusal(await sent(address), 429)["code"] == "too_many_connections"
        reader, writer = held.pop()
        writer.write(GET)
        assert parsed(await reader.read())[0] == 200, "those that are open go on"
        writer.close()
        await writer.wait_closed()
        assert parsed(await sent(address, GET))[0] == 200
        for _, writer in held:
            writer.close()
    [line] = [vars(each) for each in caplog.records if vars(each).get("status") == 429]
    assert line["error"] == "too_many_connections"


@pytest.mark.parametrize(
    ("first", "second", "are_one"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::2:3", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
    ],
)
def test_a_caller_is_an_address_or_a_network_of_ipv6(
    first: str, second: str, are_one: bool
) -> None:
    limit = ConnectionLimit(1, (), exempts_loopback=True)
    assert limit.take((first, 1))
    assert (limit.take((second, 2)) is None) is are_one


@pytest.mark.parametrize("client", [None, ("", 0), ("127.0.0.1", 1), ("::1", 1), ("10.1.2.3", 1)])
def test_this_machine_and_trusted_proxies_are_not_counted(client: tuple[str, int] | None) -> None:
    limit = ConnectionLimit(1, [parse_network("10.0.0.0/8")], exempts_loopback=True)
    for _ in range(3):
        assert limit.take(client) == ""
    limit.release("")
    assert limit.take(("192.0.2.1", 1))


def test_the_limit_follows_the_runs_at_once_unless_it_is_set(tmp_path: Path) -> None:
    def count(**settings: Any) -> int:
        limit = build_connection_limit(configuration(tmp_path, **settings).settings)
        return next(n for n in range(10_000) if limit.take(("192.0.2.1", n)) is None)

    assert count(max_concurrent_requests=7) == 70
    assert count(max_connections_per_address=3) == 3


def test_health_answers_while_idle_connections_use_up_the_descriptors(tmp_path: Path) -> None:
    files = 256
    with ExitStack() as held:
        with limited_descriptors(files):
            url, _ = held.enter_context(process_serving(tmp_path, **configured(tmp_path)))
        place = urlsplit(url)
        for number in range(2 * files):
            held.enter_context(socket.create_connection((place.hostname, place.port), timeout=5))
            if number % 16 == 0:
                assert httpx2.get(f"{url}/health", timeout=5).status_code == 200
