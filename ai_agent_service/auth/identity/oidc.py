"""IDENTITY_MODE=oidc: each request brings a token that an OpenID Connect provider has signed for its user."""

import re
import time
from collections.abc import Callable
from typing import Any

from ai_agent_service.auth.identity.claims import Refused, names, refusal, text
from ai_agent_service.auth.identity.fetch import KeySource
from ai_agent_service.auth.identity.jwks import Jwks
from ai_agent_service.auth.identity.jwt import Claims, Pinned, check_times
from ai_agent_service.auth.principal import Headers, User, values_of

LEEWAY = 30.0

_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_BEARER = re.compile(rb"bearer +", re.IGNORECASE)
_SEPARATORS = re.compile(r"[\s,]+")


class Oidc:
    """Believes tokens of `issuer` for `audience` that a key of `keys` has signed; `now` gives seconds of the wall clock.

    Claims are named as they are, or by their path (`realm_access.roles`).
    """

    verifies = True

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        algorithms: Pinned,
        keys: Jwks,
        header: str,
        user_claim: str,
        groups_claim: str,
        roles_claim: str,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._issuer = issuer
        self._audience = audience
        self._algorithms = algorithms
        self._keys = keys
        self._header = header.lower().encode()
        self._user_claim = user_claim
        self._groups_claim = groups_claim
        self._roles_claim = roles_claim
        self._now = now
        how = f"'{header}: Bearer TOKEN', and the API key as 'x-api-key: KEY'" if self._in_authorization else f"'{header}: TOKEN'"
        self._message = f"A valid token of the user is needed: send it as {how}."

    @property
    def _in_authorization(self) -> bool:
        return self._header == b"authorization"

    @property
    def source(self) -> KeySource:
        """How the issuer's keys stand."""
        return self._keys.source

    async def user(self, headers: Headers, peer: str | None) -> User:
        """The user of the token. Raises InvalidToken, and AccessUnavailable where the provider's keys cannot be had."""
        try:
            return self._user(await self._claims(self._token(headers)))
        except Refused as why:
            raise refusal("oidc", self._message, why) from None

    def uses_authorization(self, token: str) -> bool:
        """Whether `token`, of an `Authorization: Bearer` header, is a user's and not an API key."""
        return self._in_authorization and _JWT.fullmatch(token) is not None

    def _token(self, headers: Headers) -> bytes:
        sent = values_of(headers, self._header)
        if len(sent) != 1:
            raise Refused("the header is not there exactly once")
        if found := _BEARER.match(sent[0]):
            return sent[0][found.end() :]
        if self._in_authorization:
            raise Refused("the scheme is not Bearer")
        return sent[0]

    async def _claims(self, token: bytes) -> Claims:
        opened = self._algorithms.opened(token)
        key = await self._keys.key(opened.key_id, opened.algorithm)
        if key is None:
            raise Refused("the key is not known")
        claims = self._algorithms.verified(opened, key)
        if claims.get("iss") != self._issuer:
            raise Refused("the issuer is another")
        audience = claims.get("aud")
        if self._audience not in (audience if isinstance(audience, list) else [audience]):
            raise Refused("the audience is another")
        check_times(claims, now=self._now(), leeway=LEEWAY)
        return claims

    def _user(self, claims: Claims) -> User:
        if self._user_claim == "email" and claims.get("email_verified", True) not in (True, "true"):
            raise Refused("the email address is not verified")
        return User(
            text(_claim(claims, self._user_claim), "the user's claim"),
            _names(_claim(claims, self._roles_claim), "a role"),
            _names(_claim(claims, self._groups_claim), "a group"),
        )


def _claim(claims: Claims, path: str) -> Any:
    """The claim of that name, which may have dots (`https://example.com/roles`), or at that path; None where there is none."""
    if path in claims:
        return claims[path]
    value: Any = claims
    for step in path.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _names(value: object, what: str) -> frozenset[str]:
    """The texts of a list, or those in one text, between spaces and commas; none where there is no claim."""
    match value:
        case None:
            return frozenset()
        case str():
            return names((name for name in _SEPARATORS.split(value) if name), what)
        case list():
            return names(value, what)
        case _:
            raise Refused(f"{what} is in neither a list nor a text")
