"""The identity that IDENTITY_MODE opens."""

import functools
import json
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import OctKey

from ai_agent_service.auth.identity.base import UnverifiedIdentity, open_identity
from ai_agent_service.auth.identity.fetch import FETCH_SECONDS
from ai_agent_service.auth.principal import User
from ai_agent_service.config.settings import load_settings
from ai_agent_service.core.bounds import MAX_DOCUMENT_BYTES
from ai_agent_service.core.errors import AccessUnavailableError, ConfigError, InvalidTokenError
from ai_agent_service.providers.http import HttpClient
from tests.support.fake_upstream import Upstream, reply
from tests.support.tokens import AUDIENCE, ED25519, RSA, SECRET, Provider, public, signed

PROXY: dict[str, Any] = {
    "identity_mode": "trusted_proxy",
    "trusted_proxy_cidrs": "10.0.0.0/8,::1",
    "trusted_proxy_secret": "s" * 20,
    "trusted_proxy_secret_header": "X-Secret",
    "trusted_proxy_user_header": "X-User",
    "trusted_proxy_groups_header": "X-Groups",
    "trusted_proxy_roles_header": "X-Roles",
}


async def test_without_a_mode_headers_say_nothing() -> None:
    async with open_identity(load_settings(), Provider()) as identity:
        assert not identity.verifies
        assert not identity.is_user_token("a.b.c")
        assert (
            await identity.identify_user(
                [(b"x-openwebui-user-id", b"admin"), (b"x-forwarded-user", b"admin")], "127.0.0.1"
            )
            is None
        )


@given(st.lists(st.tuples(st.binary(), st.binary())), st.none() | st.text())
async def test_without_a_mode_no_header_does_anything(
    headers: list[tuple[bytes, bytes]], peer: str | None
) -> None:
    await UnverifiedIdentity().identify_user(headers, peer)


async def test_open_webui_is_believed_by_its_secret() -> None:
    settings = load_settings(identity_mode="open_webui_jwt", open_webui_jwt_secret=SECRET)
    now = int(time.time())
    claims = {"sub": "a", "role": "admin", "iss": "open-webui", "iat": now, "exp": now + 300}
    token = signed(claims, OctKey.import_key(SECRET), "HS256").encode()
    async with open_identity(settings, Provider()) as identity:
        assert identity.verifies
        assert await identity.identify_user([(b"x-openwebui-user-jwt", token)], None) == User(
            "a", frozenset({"admin"})
        )
        with pytest.raises(InvalidTokenError):
            await identity.identify_user([(b"x-openwebui-user-id", b"a")], None)


async def test_a_proxy_is_believed_with_the_headers_that_are_set() -> None:
    headers = [(b"x-secret", b"s" * 20), (b"x-user", b"a"), (b"x-groups", b"b"), (b"x-roles", b"c")]
    async with open_identity(load_settings(**PROXY), Provider()) as identity:
        assert identity.verifies
        for peer in ("10.0.0.1", "::1"):
            assert await identity.identify_user(headers, peer) == User(
                "a", frozenset({"c"}), frozenset({"b"})
            )
        with pytest.raises(InvalidTokenError):
            await identity.identify_user(headers, "11.0.0.1")


@pytest.mark.parametrize("discovered", [True, False])
async def test_a_provider_is_asked_for_its_keys_over_http(discovered: bool) -> None:
    async with Upstream() as upstream, HttpClient() as http:
        issuer = f"{upstream.url}/realms/one/"
        documents = [
            json.dumps({"issuer": issuer, "jwks_uri": f"{upstream.url}/certs"}).encode(),
            public(RSA, ED25519),
        ]
        upstream.answers = tuple(reply(200, document) for document in documents[not discovered :])
        settings = load_settings(
            identity_mode="oidc",
            oidc_issuer=issuer,
            oidc_audience=AUDIENCE,
            oidc_jwks_url=None if discovered else f"{upstream.url}/certs",
            oidc_algorithms="EdDSA",
            oidc_token_header="X-Token",
            oidc_user_claim="name",
            oidc_groups_claim="access.groups",
            oidc_roles_claim="access.roles",
        )
        claims = {
            "iss": issuer,
            "aud": AUDIENCE,
            "exp": time.time() + 60,
            "name": "a",
            "access": {"groups": ["b"], "roles": ["c"]},
        }
        fetch = functools.partial(http.fetch, limit_bytes=MAX_DOCUMENT_BYTES, timeout=FETCH_SECONDS)
        async with open_identity(settings, fetch) as identity:
            token = signed(claims, ED25519, "EdDSA", kid="ed25519").encode()
            assert await identity.identify_user([(b"x-token", token)], None) == User(
                "a", frozenset({"c"}), frozenset({"b"})
            )
            with pytest.raises(InvalidTokenError):
                await identity.identify_user(
                    [(b"x-token", signed(claims, RSA, "RS256", kid="rsa").encode())], None
                )
        paths = ["/realms/one/.well-known/openid-configuration", "/certs"]
        assert [request.path for request in upstream.requests] == paths[not discovered :]


async def test_a_provider_that_cannot_be_reached_does_not_keep_the_service_from_starting() -> None:
    settings = load_settings(
        identity_mode="oidc", oidc_issuer="http://127.0.0.1:1", oidc_audience=AUDIENCE
    )
    async with HttpClient() as http:
        fetch = functools.partial(http.fetch, limit_bytes=MAX_DOCUMENT_BYTES, timeout=FETCH_SECONDS)
        async with open_identity(settings, fetch) as identity:
            token = signed({"sub": "a"}, RSA, "RS256", kid="rsa").encode()
            with pytest.raises(AccessUnavailableError):
                await identity.identify_user([(b"authorization", b"Bearer " + token)], None)
            assert identity.is_user_token(token.decode())


@pytest.mark.parametrize("mode", ["open_webui_jwt", "trusted_proxy", "oidc"])
async def test_a_mode_without_its_settings_is_not_opened(mode: str) -> None:
    with pytest.raises(ConfigError):
        async with open_identity(load_settings(identity_mode=mode), Provider()):
            pass


def test_a_service_without_tokens_does_not_load_the_library_for_them() -> None:
    source = (
        "import sys, ai_agent_service.auth.identity.base; sys.exit(any(name.startswith('joserfc')"
        " for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", source], timeout=30, check=False).returncode == 0
