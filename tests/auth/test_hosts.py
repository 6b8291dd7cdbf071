"""Names that a service without keys answers to, and those that it does not."""

import pytest

from ai_agent_service.auth.hosts import check_host, has_invalid_host
from ai_agent_service.core.errors import HostNotAllowedError

NONE: frozenset[str] = frozenset()
ALLOWED = frozenset({"Agents.Example.com", "box", "nas.lan.", "proxy.example:8443"})


def headers(*hosts: bytes) -> list[tuple[bytes, bytes]]:
    return [
        (b"accept", b"*/*"),
        *((b"host", host) for host in hosts),
        (b"x-forwarded-host", b"localhost"),
    ]


@pytest.mark.parametrize(
    "host",
    [
        b"127.0.0.1",
        b"127.0.0.1:8000",
        b"192.168.1.20:8000",
        b"8.8.8.8",
        b"[::1]",
        b"[::1]:8000",
        b"[fe80::1]:80",
        b"[::ffff:127.0.0.1]",
        b"localhost",
        b"LocalHost:8000",
        b"localhost.",
        b"localhost.:80",
        b"agents.localhost",
        b"a.b.localhost:1",
        b"host.docker.internal:8000",
        b"host.containers.internal",
        b"gateway.docker.internal",
    ],
)
def test_this_machine_and_addresses_are_known(host: bytes) -> None:
    assert not has_invalid_host(headers(host), NONE)
    check_host(headers(host), NONE)


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example",
        b"evil.example:8000",
        b"localhost.evil.example",
        b"localhost.localdomain",
        b"notlocalhost",
        b"127.0.0.1.nip.io",
        b"127.0.0.1.",
        b"127.1",
        b"2130706433",
        b"0x7f.0.0.1",
        b"0177.0.0.1",
        b"docker.internal",
        b"x.host.docker.internal",
        b"*",
        b"",
        b" ",
        b".",
        b".localhost",
        b"a..localhost",
        b"localhost..",
        b"localhost:",
        b"localhost:port",
        b"localhost:123456",
        b"localhost:80:80",
        b"localhost, evil.example",
        b"localhost/evil",
        b"evil@localhost",
        b"localhost@evil.example",
        b"evil.example#localhost",
        b"evil.example\\.localhost",
        b"evil.example?.localhost",
        b"evil.example\x00.localhost",
        b"localhost\n",
        b" localhost",
        b"[::1",
        b"::1",
        b"[::1]evil.example",
        b"[evil.example]",
        b"[fe80::1%25eth0]",
        b"[]",
        "löcalhost".encode(),
        "\uff4cocalhost".encode(),
        b"\xff",
        b"a" * 254,
    ],
)
def test_every_other_name_and_what_is_no_name_is_refused(host: bytes) -> None:
    assert has_invalid_host(headers(host), NONE)
    with pytest.raises(HostNotAllowedError, match="ALLOWED_HOSTS") as caught:
        check_host(headers(host), NONE)
    assert "evil" not in caught.value.message


@pytest.mark.parametrize(
    "host",
    [
        b"agents.example.com",
        b"AGENTS.example.COM:443",
        b"agents.example.com.",
        b"box:1",
        b"nas.lan",
        b"proxy.example",
    ],
)
def test_names_that_are_allowed_are_known(host: bytes) -> None:
    assert not has_invalid_host(headers(host), ALLOWED)


@pytest.mark.parametrize(
    "host", [b"sub.agents.example.com", b"example.com", b"agents.example.com.evil.example", b"boxx"]
)
def test_only_the_exact_names_are_allowed(host: bytes) -> None:
    assert has_invalid_host(headers(host), ALLOWED)


def test_a_star_allows_every_name_and_nothing_malformed() -> None:
    every = frozenset({"*"})
    assert not has_invalid_host(headers(b"anything.example:80"), every)
    assert has_invalid_host(headers(b"any thing"), every)
    assert has_invalid_host(headers(b"a..b"), every)


@pytest.mark.parametrize(
    "hosts", [(), (b"localhost", b"localhost"), (b"localhost", b"evil.example")]
)
def test_there_has_to_be_one_host(hosts: tuple[bytes, ...]) -> None:
    assert has_invalid_host(headers(*hosts), NONE)
