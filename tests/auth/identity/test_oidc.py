"""Users whom an OpenID Connect provider has signed a token for, and every token that is not
theirs."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey

from ai_agent_service.auth.identity.jwks import UNKNOWN_PAUSE, Jwks
from ai_agent_service.auth.identity.jwt import PinnedAlgorithms
from ai_agent_service.auth.identity.oidc import LEEWAY, Oidc
from ai_agent_service.auth.identity.settings import ALGORITHMS
from ai_agent_service.auth.principal import Headers, User
from ai_agent_service.core.errors import AccessUnavailableError, InvalidTokenError
from ai_agent_service.core.tasks import Tasks
from tests.support.tokens import (
    AUDIENCE,
    ED448,
    ED25519,
    ISSUER,
    JWKS,
    KEYS,
    NOW,
    P256,
    P384,
    P521,
    RSA,
    RSA_OTHER,
    Provider,
    Time,
    encoded,
    public,
    signed,
    without,
)

CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "aud": AUDIENCE,
    "sub": "alice",
    "iat": NOW,
    "exp": NOW + 300,
}


class Login:
    """An identity with all that it is made of."""

    def __init__(self, tasks: Tasks, algorithms: tuple[str, ...], names: dict[str, str]) -> None:
        self.provider = Provider(*KEYS)
        self.time = Time()
        pinned = PinnedAlgorithms(algorithms)
        self.identity = Oidc(
            issuer=ISSUER,
            audience=AUDIENCE,
            algorithms=pinned,
            keys=Jwks(ISSUER, None, pinned, self.provider, tasks, clock=self.time),
            now=self.time,
            **{
                "header": "Authorization",
                "user_claim": "sub",
                "groups_claim": "groups",
                "roles_claim": "roles",
            }
            | names,
        )

    async def user(self, value: str, *, header: bytes = b"authorization") -> User:
        """The user of the token in the header."""
        return await self.identity.identify_user(
            [(b"x-api-key", b"sk-key"), (header, value.encode())], None
        )

    async def of(self, **claims: Any) -> User:
        """The user of a token with such claims."""
        return await self.user(bearer(**claims))

    async def refuses(self, value: str, *, header: bytes = b"authorization") -> None:
        with pytest.raises(InvalidTokenError) as caught:
            await self.user(value, header=header)
        assert caught.value.message == REFUSAL


REFUSAL = (
    "A valid token of the user is needed: send it as 'Authorization: Bearer TOKEN', and the API key"
    " as 'x-api-key: KEY'."
)


@asynccontextmanager
async def login(*algorithms: str, **names: str) -> AsyncGenerator[Login, None]:
    async with Tasks() as tasks:
        yield Login(tasks, algorithms or ("RS256",), names)


def bearer(
    key: Key = RSA, algorithm: str = "RS256", header: dict[str, Any] | None = None, **claims: Any
) -> str:
    return f"Bearer {signed(CLAIMS | claims, key, algorithm, **{'kid': key.kid} | (header or {}))}"


async def test_a_token_has_its_user_with_roles_and_groups() -> None:
    async with login() as at:
        assert await at.of(roles=["admin", "user"], groups="staff /ops,more") == User(
            "alice", frozenset({"admin", "user"}), frozenset({"staff", "/ops", "more"})
        )
        assert at.identity.verifies


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_each_algorithm_is_believed_where_it_is_among_those_set(algorithm: str) -> None:
    of_kind: dict[str, list[Key]] = {
        "ES256": [P256],
        "ES384": [P384],
        "ES512": [P521],
        "EdDSA": [ED25519, ED448],
    }
    for key in of_kind.get(algorithm, [RSA]):
        async with login(algorithm) as at:
            assert (await at.user(bearer(key, algorithm))).user_id == "alice"
        async with login(*(name for name in ALGORITHMS if name != algorithm)) as at:
            await at.refuses(bearer(key, algorithm))


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (RSA_OTHER, "RS256"),
        (RSAKey.generate_key(2048, {"kid": "rsa"}), "RS256"),
        (RSAKey.generate_key(2048, {"kid": "rsa"}), "PS256"),
        (ECKey.generate_key("P-256", {"kid": "p256"}), "ES256"),
        (ECKey.generate_key("P-256", {"kid": "rsa"}), "ES256"),
        (OKPKey.generate_key("Ed25519", {"kid": "ed25519"}), "EdDSA"),
        (RSA, "HS256"),
        (OctKey.import_key("a secret of 32 bytes or even more", {"kid": "rsa"}), "HS256"),
        (RSA, "none"),
        (RSA, "None"),
        (ECKey.generate_key("secp256k1", {"kid": "p256"}), "ES256K"),
    ],
    ids=range(11),
)
async def test_another_key_or_another_kind_is_refused(key: Key, algorithm: str) -> None:
    _, payload, _ = bearer().split(".")
    async with login(*ALGORITHMS) as at:
        if key is RSA:
            for signature in ("", "AAAA", encoded(public(RSA))):
                await at.refuses(
                    f"Bearer {encoded({'alg': algorithm, 'kid': 'rsa'})}.{payload}.{signature}"
                )
        else:
            await at.refuses(bearer(key, algorithm))


async def test_the_public_key_is_no_secret_to_sign_with() -> None:
    secret = OctKey(RSA.as_pem(private=False), RSA.as_pem(private=False))
    async with login(*ALGORITHMS) as at:
        await at.refuses(bearer(secret, "HS256", {"kid": "rsa"}))


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["exp"], "exp": 1},
        {"b64": True},
        {"jwk": RSA_OTHER.as_dict(private=False)},
        {"jku": "https://evil.example.com/certs"},
        {"x5u": "https://evil.example.com/cert"},
        {"x5c": ["AAAA"]},
        {"kid": "p256"},
        {"kid": "none such"},
        {"kid": ["rsa"]},
        {"kid": 0},
        {"alg": "ES256"},
        {"alg": "RS384"},
    ],
    ids=range(12),
)
async def test_a_header_that_leads_to_another_key_is_refused_and_not_followed(
    header: dict[str, Any],
) -> None:
    signature = bearer(header={name: value for name, value in header.items() if name != "alg"})
    if "alg" in header:
        signature = f"Bearer {encoded({'kid': 'rsa'} | header)}.{signature.partition('.')[2]}"
    async with login("RS256", "ES256") as at:
        await at.refuses(signature)
        assert not any("evil" in url for url in at.provider.asked)


async def test_a_token_without_a_key_id_is_believed_where_only_one_key_is_for_it() -> None:
    async with login() as at:
        value = f"Bearer {signed(CLAIMS, RSA, 'RS256')}"
        assert (await at.user(value)).user_id == "alice"
        at.provider.documents[JWKS] = public(RSA, RSA_OTHER)
        at.time.now += UNKNOWN_PAUSE
        await at.refuses(bearer(RSA_OTHER, header={"kid": "none such"}))
        await at.refuses(value)


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": NOW - LEEWAY + 1},
        {"nbf": NOW + LEEWAY},
        {"iat": NOW + LEEWAY},
        {"exp": NOW + 10_000_000},
        {"aud": [AUDIENCE]},
        {"aud": ["another", AUDIENCE]},
        {"exp": NOW + 0.5},
    ],
    ids=str,
)
async def test_what_is_just_within_the_limits_is_believed(claims: dict[str, Any]) -> None:
    async with login() as at:
        assert (await at.of(**claims)).user_id == "alice"


async def test_when_a_token_was_made_need_not_be_told() -> None:
    async with login() as at:
        assert (
            await at.user(f"Bearer {signed(without(CLAIMS, 'iat'), RSA, 'RS256', kid='rsa')}")
        ).user_id == "alice"


WRONG: dict[str, list[Any]] = {
    "iss": [
        "",
        f"{ISSUER}/",
        ISSUER.upper(),
        "https://evil.example.com",
        None,
        [ISSUER],
        {ISSUER: 1},
    ],
    "aud": [
        "",
        "agent",
        "agents ",
        None,
        [],
        ["another"],
        [None],
        {AUDIENCE: 1},
        [[AUDIENCE]],
        5,
        f"x,{AUDIENCE}",
    ],
    "exp": [NOW - LEEWAY, 0, -1, "1900000000", None, True, 10**400],
    "nbf": [NOW + LEEWAY + 1, "1", None, True, []],
    "iat": [NOW + LEEWAY + 1, "1", None, True, {}],
    "sub": ["", " ", "a\nb", "a\x00", "\ud800", "x" * 256, 5, None, ["alice"], True],
    "groups": [5, {"a": 1}, True, [5], [None], [""], ["a\n"], ["x" * 256], "a \x00", [["a"]]],
    "roles": [5, {"a": 1}, True, [5], [None], [""], ["a\n"], ["x" * 256], "a \x00", [["a"]]],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in WRONG.items() for value in values],
    ids=repr,
)
async def test_a_signed_token_with_a_wrong_claim_is_refused(name: str, value: Any) -> None:
    async with login() as at:
        await at.refuses(f"Bearer {signed({**CLAIMS, name: value}, RSA, 'RS256', kid='rsa')}")


@pytest.mark.parametrize("name", ["iss", "aud", "sub", "exp"])
async def test_a_signed_token_without_a_claim_is_refused(name: str) -> None:
    async with login() as at:
        await at.refuses(f"Bearer {signed(without(CLAIMS, name), RSA, 'RS256', kid='rsa')}")


@pytest.mark.parametrize("payload", [b"", b"no", b"[]", b"null", b"[" * 5000, b"\xff"])
async def test_signed_claims_that_are_no_object_are_refused(payload: bytes) -> None:
    async with login() as at:
        await at.refuses(f"Bearer {signed(payload, RSA, 'RS256', kid='rsa')}")


async def test_claims_are_found_by_name_or_by_path() -> None:
    names = {
        "user_claim": "who.id",
        "groups_claim": "https://example.com/groups",
        "roles_claim": "realm_access.roles",
    }
    async with login(**names) as at:
        claims = {
            "who": {"id": "a.b"},
            "https://example.com/groups": ["staff"],
            "realm_access": {"roles": ["admin"]},
        }
        assert await at.of(**claims) == User("a.b", frozenset({"admin"}), frozenset({"staff"}))
        assert await at.of(who={"id": "a"}, realm_access={"roles": None}) == User("a")
        assert await at.of(who={"id": "a"}, realm_access="none") == User("a")
        await at.refuses(bearer(who="a"))
        await at.refuses(bearer(who=[{"id": "a"}]))


async def test_an_email_address_names_a_user_only_where_it_is_not_known_to_be_unverified() -> None:
    async with login(user_claim="email") as at:
        for verified in ({}, {"email_verified": True}, {"email_verified": "true"}):
            assert (await at.of(email="a@example.com", **verified)).user_id == "a@example.com"
        for unverified in (False, "false", None, 0, "yes"):
            await at.refuses(bearer(email="a@example.com", email_verified=unverified))


# Headers


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
async def test_the_scheme_is_written_in_any_case(scheme: str) -> None:
    async with login() as at:
        assert (await at.user(bearer().replace("Bearer", scheme))).user_id == "alice"


@pytest.mark.parametrize(
    "before", ["", "Basic ", "Bearer", "Bearer\t", "Bearer Bearer ", " Bearer ", "JWT "]
)
async def test_another_scheme_is_refused(before: str) -> None:
    async with login() as at:
        await at.refuses(bearer().replace("Bearer ", before))


async def test_another_header_has_the_token_with_or_without_a_scheme() -> None:
    async with login(header="X-User-Token") as at:
        for value in (bearer(), bearer().removeprefix("Bearer ")):
            assert (await at.user(value, header=b"x-user-token")).user_id == "alice"
            with pytest.raises(InvalidTokenError, match="send it as 'X-User-Token: TOKEN'"):
                await at.user(value)
        assert not at.identity.is_user_token(bearer().removeprefix("Bearer "))


async def test_no_token_and_two_tokens_are_refused() -> None:
    async with login() as at:
        sent = (b"authorization", bearer().encode())
        await refused_by(at, [])
        await refused_by(at, [(b"x-api-key", b"sk-key")])
        await refused_by(at, [sent, sent])
        await refused_by(at, [(b"cookie", sent[1])])


async def test_a_user_is_told_from_a_key_by_the_form_of_a_token() -> None:
    async with login() as at:
        value = bearer().removeprefix("Bearer ")
        for token in (value, value.rpartition(".")[0] + ".", "a.b.c"):
            assert at.identity.is_user_token(token)
        for key in (
            "",
            "sk-abc_def-123",
            "a.b",
            "a.b.c.d",
            f"{value} ",
            f"{value}\n",
            "..",
            "a..c",
            "sk.a+b.c",
            f"Bearer {value}",
        ):
            assert not at.identity.is_user_token(key)


# Keys


async def test_a_new_key_is_used_at_once_and_an_old_one_no_more() -> None:
    async with login() as at:
        assert (await at.of()).user_id == "alice"
        at.provider.documents[JWKS] = public(RSA_OTHER)
        at.time.now += UNKNOWN_PAUSE
        assert (await at.user(bearer(RSA_OTHER))).user_id == "alice"
        await at.refuses(bearer())


async def test_without_keys_it_cannot_be_told_who_calls() -> None:
    async with login() as at:
        at.provider.up = False
        with pytest.raises(AccessUnavailableError) as caught:
            await at.of()
        assert (caught.value.status, caught.value.code) == (503, "access_unavailable")
        assert caught.value.retry_after


async def test_what_is_no_token_is_refused_without_asking_for_keys() -> None:
    async with login() as at:
        for value in (
            "Bearer sk-key",
            "Bearer a.b.c",
            "Bearer",
            "",
            bearer(OctKey.generate_key(256), "HS256"),
        ):
            await at.refuses(value)
        assert at.provider.asked == []


async def refused_by(at: Login, headers: Headers) -> None:
    with pytest.raises(InvalidTokenError):
        await at.identity.identify_user(headers, None)


@given(
    st.lists(
        st.binary()
        | st.from_regex(rb"\A[Bb]earer [A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\Z"),
        max_size=2,
    )
)
async def test_whatever_a_header_has_it_is_refused(values: list[bytes]) -> None:
    async with login() as at:
        await refused_by(at, [(b"authorization", value) for value in values])


@given(
    st.sampled_from(["rsa", "p256", "ed25519", "other", None]),
    st.sampled_from(ALGORITHMS),
    st.binary(max_size=600),
)
async def test_whatever_a_signature_is_it_is_refused(
    key_id: str | None, algorithm: str, signature: bytes
) -> None:
    async with login(*ALGORITHMS) as at:
        token = ".".join(
            [encoded({"alg": algorithm, "kid": key_id}), encoded(CLAIMS), encoded(signature)]
        )
        await refused_by(at, [(b"authorization", f"Bearer {token}".encode())])
