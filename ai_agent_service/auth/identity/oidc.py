"""IDENTITY_MODE=oidc: each request brings a token that an OpenID Connect provider has signed for
its user."""

import re
import time
from collections.abc import Callable
from typing import Any

from joserfc.jwt import Claims, JWTClaimsRegistry

from ai_agent_service.auth.identity.claims import (
    IdentityError,
    build_invalid_token,
    validate_names,
    validate_text,
)
from ai_agent_service.auth.identity.fetch import KeySetStatus
from ai_agent_service.auth.identity.jwks import Jwks
from ai_agent_service.auth.identity.jwt import PinnedAlgorithms, check_claims
from ai_agent_service.auth.principal import Headers, User, get_header_values

LEEWAY = 30

_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_BEARER = re.compile(rb"bearer +", re.IGNORECASE)
_SEPARATORS = re.compile(r"[\s,]+")


class Oidc:
    """Believes tokens of `issuer` for `audience` that a key of `keys` has signed; `now` gives
    seconds of the wall clock.

    Claims are named as they are, or by their path (`realm_access.roles`).
    """

    verifies = True

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        algorithms: PinnedAlgorithms,
        keys: Jwks,
        header: str,
        user_claim: str,
        groups_claim: str,
        roles_claim: str,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._algorithms = algorithms
        self._registry = JWTClaimsRegistry(
            lambda: int(now()),
            LEEWAY,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": audience},
            exp={"essential": True},
        )
        self._keys = keys
        self._header = header.lower().encode()
        self._user_claim = user_claim
        self._groups_claim = groups_claim
        self._roles_claim = roles_claim
        how = (
            f"'{header}: Bearer TOKEN', and the API key as 'x-api-key: KEY'"
            if self._is_in_authorization
            else f"'{header}: TOKEN'"
        )
        self._message = f"A valid token of the user is needed: send it as {how}."

    @property
    def _is_in_authorization(self) -> bool:
        return self._header == b"authorization"

    @property
    def source(self) -> KeySetStatus:
        """How the issuer's keys stand."""
        return self._keys.source

    async def identify_user(self, headers: Headers, peer: str | None) -> User:
        """The user of the token. Raises InvalidTokenError, and AccessUnavailableError where the
        provider's keys cannot be had."""
        try:
            return self._build_user(await self._verify_claims(self._read_token(headers)))
        except IdentityError as why:
            raise build_invalid_token("oidc", self._message, why) from None

    def is_user_token(self, token: str) -> bool:
        """Whether `token`, of an `Authorization: Bearer` header, is a user's and not an API key."""
        return self._is_in_authorization and _JWT.fullmatch(token) is not None

    def _read_token(self, headers: Headers) -> bytes:
        sent = get_header_values(headers, self._header)
        if len(sent) != 1:
            raise IdentityError("the header is not there exactly once")
        if found := _BEARER.match(sent[0]):
            return sent[0][found.end() :]
        if self._is_in_authorization:
            raise IdentityError("the scheme is not Bearer")
        return sent[0]

    async def _verify_claims(self, token: bytes) -> Claims:
        opened = self._algorithms.parse_token(token)
        key = await self._keys.find_key(opened.key_id, opened.algorithm)
        if key is None:
            raise IdentityError("the key is not known")
        claims = self._algorithms.verify_token(opened, key)
        check_claims(claims, self._registry)
        return claims

    def _build_user(self, claims: Claims) -> User:
        if self._user_claim == "email" and claims.get("email_verified", True) not in (True, "true"):
            raise IdentityError("the email address is not verified")
        return User(
            validate_text(_get_claim(claims, self._user_claim), "the user's claim"),
            _parse_names(_get_claim(claims, self._roles_claim), "a role"),
            _parse_names(_get_claim(claims, self._groups_claim), "a group"),
        )


def _get_claim(claims: Claims, path: str) -> Any:
    """The claim of that name, which may have dots (`https://example.com/roles`), or at that path;
    None where there is none."""
    if path in claims:
        return claims[path]
    value: Any = claims
    for step in path.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _parse_names(value: object, what: str) -> frozenset[str]:
    """The texts of a list, or those in one text, between spaces and commas; none where there is no
    claim."""
    match value:
        case None:
            return frozenset()
        case str():
            return validate_names((name for name in _SEPARATORS.split(value) if name), what)
        case list():
            return validate_names(value, what)
        case _:
            raise IdentityError(f"{what} is in neither a list nor a text")
