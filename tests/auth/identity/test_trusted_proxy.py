"""Users whom a proxy names, and everybody else who tries to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_agent_service.auth.identity.trusted_proxy import MESSAGE, TrustedProxy, parse_network
from ai_agent_service.auth.principal import User
from ai_agent_service.core.errors import InvalidTokenError

SECRET = "a secret of the proxy \u00e4"
SENT = (b"x-proxy-secret", SECRET.encode())
ALICE = (b"x-forwarded-user", b"alice")
Header = tuple[bytes, bytes]


def identity(*networks: str) -> TrustedProxy:
    return TrustedProxy(
        networks=map(parse_network, networks or ("10.0.0.0/8", "127.0.0.1", "fd00::/8")),
        secret=SECRET,
        secret_header="X-Proxy-Secret",
        user_header="X-Forwarded-User",
        groups_header="X-Forwarded-Groups",
        roles_header="X-Forwarded-Roles",
    )


async def refused(
    *headers: Header, peer: str | None = "10.1.2.3", who: TrustedProxy | None = None
) -> None:
    with pytest.raises(InvalidTokenError) as caught:
        await (who or identity()).identify_user(headers, peer)
    assert caught.value.message == MESSAGE


async def test_the_proxy_tells_the_user_with_roles_and_groups() -> None:
    headers = [
        SENT,
        ALICE,
        (b"x-forwarded-groups", b"staff, /ops,, caf\xc3\xa9 ,staff"),
        (b"x-forwarded-roles", b"admin"),
    ]
    assert await identity().identify_user(headers, "10.1.2.3") == User(
        "alice", frozenset({"admin"}), frozenset({"staff", "/ops", "caf\u00e9"})
    )


@pytest.mark.parametrize("empty", [b"", b" ", b",", b" , ,"])
async def test_no_groups_and_no_roles_are_none(empty: bytes) -> None:
    assert await identity().identify_user([SENT, ALICE], "10.1.2.3") == User("alice")
    assert await identity().identify_user(
        [SENT, ALICE, (b"x-forwarded-groups", empty), (b"x-forwarded-roles", empty)], "10.1.2.3"
    ) == User("alice")


async def test_users_are_verified_and_the_authorization_header_is_the_keys() -> None:
    assert identity().verifies
    assert not identity().is_user_token("a.b.c")


@pytest.mark.parametrize(
    "value", ["a", "a%20b", "CN=Alice,OU=Staff", "caf\u00e9", "a b", "x" * 255]
)
async def test_an_id_is_taken_as_it_is(value: str) -> None:
    assert (
        await identity().identify_user([SENT, (b"x-forwarded-user", value.encode())], "10.1.2.3")
    ).user_id == value


@pytest.mark.parametrize(
    "peer",
    ["10.0.0.0", "10.255.255.255", "127.0.0.1", "fd00::1", "fdff::1%eth0", "::ffff:10.1.2.3"],
)
async def test_the_proxy_is_known_by_its_address(peer: str) -> None:
    assert await identity().identify_user([SENT, ALICE], peer) == User("alice")


async def test_a_network_may_be_written_as_ipv4_within_ipv6() -> None:
    for peer in ("10.1.2.3", "::ffff:10.1.2.3"):
        assert await identity("::ffff:10.0.0.0/104").identify_user([SENT, ALICE], peer) == User(
            "alice"
        )
    await refused(SENT, ALICE, peer="11.1.2.3", who=identity("::ffff:10.0.0.0/104"))


@pytest.mark.parametrize(
    "peer",
    [
        None,
        "",
        "11.0.0.1",
        "9.255.255.255",
        "127.0.0.2",
        "fc00::1",
        "::1",
        "::ffff:11.0.0.1",
        "::10.1.2.3",
        "unix",
        "10.1.2.3:80",
        "10.1.2.3, 1.1.1.1",
    ],
)
async def test_another_address_is_refused_whatever_it_sends(peer: str | None) -> None:
    await refused(SENT, ALICE, (b"x-forwarded-for", b"10.1.2.3"), peer=peer)


@pytest.mark.parametrize(
    "secrets",
    [
        [],
        [b""],
        [SECRET.encode()[:-1]],
        [SECRET.encode() + b"x"],
        [SECRET.encode("latin-1")],
        [SECRET.encode()] * 2,
        [b"x", SECRET.encode()],
        [b"\xff"],
    ],
)
async def test_without_the_secret_exactly_once_a_request_is_refused(secrets: list[bytes]) -> None:
    await refused(*((b"x-proxy-secret", secret) for secret in secrets), ALICE)


@pytest.mark.parametrize(
    "users",
    [
        [],
        [b"alice", b"alice"],
        [b""],
        [b" "],
        [b"\xff"],
        [b"a\x00"],
        [b"a\tb"],
        ["a\u0085".encode()],
        [b"x" * 256],
    ],
)
async def test_a_user_that_is_not_there_exactly_once_and_whole_is_refused(
    users: list[bytes],
) -> None:
    await refused(SENT, *((b"x-forwarded-user", user) for user in users))


@pytest.mark.parametrize("name", [b"x-forwarded-groups", b"x-forwarded-roles"])
@pytest.mark.parametrize("values", [[b"a", b"b"], [b"a,\xff"], [b"a\x01"], [b"a," + b"x" * 256]])
async def test_groups_and_roles_that_are_there_twice_or_not_whole_are_refused(
    name: bytes, values: list[bytes]
) -> None:
    await refused(SENT, ALICE, *((name, value) for value in values))


async def test_open_webui_s_headers_mean_nothing() -> None:
    await refused(SENT, (b"x-openwebui-user-id", b"alice"))


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"x-proxy-secret", b"x-forwarded-user", b"x-forwarded-groups", b"x"]),
            st.binary(),
        )
    ),
    st.none() | st.text() | st.ip_addresses().map(str),
)
async def test_whatever_the_headers_have_they_are_refused(
    headers: list[Header], peer: str | None
) -> None:
    await refused(*headers, peer=peer)


@given(st.binary(), st.binary())
async def test_whatever_the_proxy_says_it_is_a_user_or_refused(user: bytes, groups: bytes) -> None:
    try:
        found = await identity().identify_user(
            [SENT, (b"x-forwarded-user", user), (b"x-forwarded-groups", groups)], "10.1.2.3"
        )
    except InvalidTokenError:
        return
    assert found.user_id.encode() == user
    assert found.user_id.strip()
