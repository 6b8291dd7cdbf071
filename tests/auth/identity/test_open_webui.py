"""Users whom Open WebUI names, and everything that only looks like it."""

import itertools
import json
import logging
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import Key, OctKey

from ai_agent_service.auth.identity.open_webui import LEEWAY, MAX_LIFETIME, MESSAGE, OpenWebUI
from ai_agent_service.auth.principal import Headers, User
from ai_agent_service.core.errors import InvalidTokenError
from tests.support.tokens import ED25519, NOW, P256, RSA, SECRET, encoded, public, signed, without

KEY = OctKey.import_key(SECRET)
CLAIMS = {
    "sub": "3f2b8d4e",
    "email": "a@example.com",
    "name": "A",
    "role": "user",
    "iss": "open-webui",
    "iat": NOW,
    "exp": NOW + 300,
}


def identity() -> OpenWebUI:
    return OpenWebUI(SECRET, now=lambda: NOW)


def sent(*tokens: str | bytes) -> list[tuple[bytes, bytes]]:
    values = [token.encode() if isinstance(token, str) else token for token in tokens]
    return [
        (b"host", b"x"),
        *((b"x-openwebui-user-jwt", value) for value in values),
        (b"x-openwebui-chat-id", b"c"),
    ]


def token(
    algorithm: str = "HS256", key: Key = KEY, header: dict[str, Any] | None = None, **claims: Any
) -> str:
    return signed(CLAIMS | claims, key, algorithm, **(header or {}))


async def refused(headers: Headers, who: OpenWebUI | None = None) -> None:
    with pytest.raises(InvalidTokenError) as caught:
        await (who or identity()).identify_user(headers, "127.0.0.1")
    assert (caught.value.message, caught.value.status, caught.value.code) == (
        MESSAGE,
        401,
        "invalid_token",
    )
    assert caught.value.__cause__ is None


async def test_a_signed_user_has_their_id_and_role() -> None:
    assert await identity().identify_user(sent(token()), None) == User(
        "3f2b8d4e", frozenset({"user"})
    )


async def test_users_are_verified_and_the_authorization_header_is_the_keys() -> None:
    assert identity().verifies
    assert not identity().is_user_token(token())


async def test_the_clock_of_the_machine_is_used() -> None:
    now = int(time.time())
    assert (
        await OpenWebUI(SECRET).identify_user(sent(token(iat=now, exp=now + 300)), None)
    ).user_id == "3f2b8d4e"
    await refused(sent(token(iat=now - 600, exp=now - 300)), OpenWebUI(SECRET))


async def test_a_user_without_a_role_has_none() -> None:
    assert (
        await identity().identify_user(sent(signed(without(CLAIMS, "role"), KEY, "HS256")), None)
    ).roles == frozenset()


@pytest.mark.parametrize("header", [{"kid": "any"}, {"x5t": "AA"}, {"signer": 5}])
async def test_what_is_not_known_in_a_header_is_ignored(header: dict[str, Any]) -> None:
    assert (await identity().identify_user(sent(token(header=header)), None)).user_id == "3f2b8d4e"


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": NOW - LEEWAY + 1},
        {"iat": NOW + LEEWAY},
        {"nbf": NOW + LEEWAY},
        {"exp": NOW + MAX_LIFETIME},
        {"exp": NOW + 0.5},
        {"sub": "\u00e4" * 255},
    ],
    ids=str,
)
async def test_what_is_just_within_the_limits_is_believed(claims: dict[str, Any]) -> None:
    assert (await identity().identify_user(sent(token(**claims)), None)).user_id == claims.get(
        "sub", "3f2b8d4e"
    )


WRONG: dict[str, list[Any]] = {
    "sub": [
        "",
        " ",
        "a\nb",
        "a\x00",
        "a\x7f",
        "a\x9f",
        "a\u2028",
        "\ud800",
        "x" * 256,
        5,
        None,
        ["a"],
        {},
        True,
    ],
    "iss": ["", "Open-WebUI", "open-webui ", None, ["open-webui"], 5],
    "exp": [NOW - LEEWAY, NOW - 1000, 0, -1, "1900000000", None, True, [NOW + 1]],
    "iat": [NOW + LEEWAY + 1, "1", None, True, 0, NOW + 299 - MAX_LIFETIME],
    "nbf": [NOW + LEEWAY + 1, "1", None, True],
    "role": ["", " ", "a\r", 5, ["user"], {"a": 1}, "x" * 256],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in WRONG.items() for value in values],
    ids=repr,
)
async def test_a_signed_token_with_a_wrong_claim_is_refused(name: str, value: Any) -> None:
    await refused(sent(signed({**CLAIMS, name: value}, KEY, "HS256")))


@pytest.mark.parametrize("name", ["sub", "iss", "exp", "iat"])
async def test_a_signed_token_without_a_claim_is_refused(name: str) -> None:
    await refused(sent(signed(without(CLAIMS, name), KEY, "HS256")))


@pytest.mark.parametrize(
    "number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 400, b"9" * 5000]
)
async def test_a_time_that_is_no_number_is_refused(number: bytes) -> None:
    claims = json.dumps(CLAIMS | {"exp": 0}).encode().replace(b'"exp": 0', b'"exp": ' + number)
    await refused(sent(signed(claims, KEY, "HS256")))


@pytest.mark.parametrize(
    "payload",
    [b"", b"no", b"[]", b"null", b"5", b'"x"', b"[" * 5000, b'{"a":' * 3000, b"\xff", b"{"],
)
async def test_signed_claims_that_are_no_object_are_refused(payload: bytes) -> None:
    await refused(sent(signed(payload, KEY, "HS256")))


@pytest.mark.parametrize("algorithm", ["none", "HS384", "HS512"])
async def test_another_algorithm_is_refused(algorithm: str) -> None:
    await refused(sent(token(algorithm)))


@pytest.mark.parametrize(
    ("algorithm", "key"), [("RS256", RSA), ("PS256", RSA), ("ES256", P256), ("EdDSA", ED25519)]
)
async def test_a_key_of_ones_own_is_refused(algorithm: str, key: Key) -> None:
    await refused(sent(token(algorithm, key)))
    await refused(sent(token(algorithm, key, {"jwk": key.as_dict(private=False)})))


@pytest.mark.parametrize(
    "algorithm", ["None", "NONE", "hs256", "", "HS256 ", None, 5, ["HS256"], {"HS256": 1}], ids=repr
)
async def test_an_algorithm_that_is_written_otherwise_is_refused(algorithm: object) -> None:
    parts = token().split(".")
    await refused(sent(".".join([encoded({"alg": algorithm, "typ": "JWT"}), *parts[1:]])))
    await refused(sent(".".join([encoded({"alg": algorithm}), parts[1], ""])))


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["exp"]},
        {"crit": []},
        {"crit": ["kid"], "kid": "x"},
        {"b64": False, "crit": ["b64"]},
        {"b64": True},
        {"jwk": {"kty": "oct", "k": "AAAA"}},
        {"jwk": None},
        {"jku": "https://evil.example.com/"},
        {"x5u": "https://evil.example.com/"},
        {"x5c": ["AAAA"]},
        {"kid": 5},
        {"typ": 5},
        {"x5t": ["a"]},
    ],
    ids=repr,
)
async def test_a_header_that_brings_a_key_or_asks_for_more_is_refused(
    header: dict[str, Any],
) -> None:
    await refused(sent(token(header=header)))


@pytest.mark.parametrize(
    "header",
    [
        b"5",
        b'"alg"',
        b'["alg","b64"]',
        b"null",
        b"{}",
        b"\xff",
        b"[" * 5000,
        b"",
        b'{"alg":"HS256"',
    ],
)
async def test_a_header_that_is_no_object_is_refused(header: bytes) -> None:
    await refused(sent(".".join([encoded(header), *token().split(".")[1:]])))


def broken() -> list[str]:
    whole = token()
    header, payload, signature = whole.split(".")
    return [
        "",
        ".",
        "..",
        "...",
        header,
        f"{header}.{payload}",
        f"{header}.{payload}.",
        f".{payload}.{signature}",
        f"{header}..{signature}",
        f"{whole}.{signature}",
        f"{whole}=",
        f"{whole}\n",
        f" {whole}",
        f"Bearer {whole}",
        f"{whole}, {whole}",
        whole[:-2],
        f"{header}.{encoded(CLAIMS | {'role': 'admin'})}.{signature}",
        f"{header}.{payload}.{encoded(b'x' * 32)}",
        f"{header}.{payload[:-1]}.{signature}",
        f"{whole[:-1]}{'AB'[whole[-1] == 'A']}",
        f"{whole}{'A' * 20_000}",
        token(name="x" * 20_000),
        token(key=OctKey.import_key("another secret of 32 bytes or more")),
        token(key=OctKey.import_key(public(RSA))),
    ]


@pytest.mark.parametrize("value", broken(), ids=itertools.count())
async def test_a_token_that_is_not_whole_or_not_signed_by_us_is_refused(value: str) -> None:
    await refused(sent(value))


async def test_no_token_and_two_tokens_are_refused() -> None:
    await refused([])
    await refused(sent())
    await refused(sent(token(), token()))
    await refused(
        [(b"authorization", b"Bearer " + token().encode()), (b"x-openwebui-user-id", b"a")]
    )


@pytest.mark.parametrize(
    "name",
    [
        b"x-openwebui-user-id",
        b"x-openwebui-user-name",
        b"x-openwebui-user-email",
        b"x-openwebui-user-role",
    ],
)
async def test_a_plain_header_is_refused_with_and_without_a_token(name: bytes) -> None:
    await refused([(name, b"admin")])
    await refused([(name, b""), *sent(token())])
    await refused([*sent(token()), (name, b"admin")])


async def test_the_log_tells_why_and_never_has_the_token(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "ai_agent_service.auth")
    value = token(exp=NOW - 100)
    await refused(sent(value))
    (record,) = caplog.records
    assert vars(record) | {"mode": "open_webui_jwt", "reason": "it has expired"} == vars(record)
    assert not any(part in str(vars(record)) for part in value.split("."))


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"x-openwebui-user-jwt", b"x"]),
            st.binary() | st.from_regex(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"),
        )
    )
)
async def test_whatever_a_header_has_it_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    await refused(headers)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "x5t"]), inner)
        ),
    )
)
async def test_whatever_json_the_header_of_a_token_is_it_is_refused(header: object) -> None:
    await refused(sent(".".join([encoded(header), *token(role="admin").split(".")[1:]])))
