"""IDENTITY_MODE=open_webui_jwt: Open WebUI names its user in a header that it signs with a secret
that both know.

Open WebUI (0.12) signs HS256 with `sub`, `email`, `name`, `role`, `iss`, `iat` and an `exp` 300
seconds later.
"""

import time
from collections.abc import Callable

from joserfc.jwk import OctKey
from joserfc.jwt import JWTClaimsRegistry

from ai_agent_service.auth.identity.claims import (
    IdentityError,
    build_invalid_token,
    validate_names,
    validate_text,
)
from ai_agent_service.auth.identity.jwt import PinnedAlgorithms, check_claims
from ai_agent_service.auth.principal import Headers, User

MESSAGE = (
    "A valid X-OpenWebUI-User-Jwt header is needed, and none of the plain X-OpenWebUI-User headers."
)
ISSUER = "open-webui"
LEEWAY = 10
MAX_LIFETIME = 3600
"""Seconds from `iat` to `exp`."""

_SIGNED_HEADER = b"x-openwebui-user-jwt"
_UNSIGNED_HEADERS = frozenset(
    b"x-openwebui-user-" + part for part in (b"id", b"name", b"email", b"role")
)
"""What Open WebUI sends when it cannot sign, and what anybody can write."""


class OpenWebUI:
    """Believes what is signed with `secret`, of 32 bytes or more; `now` gives seconds of the wall
    clock."""

    verifies = True
    source = None

    def __init__(self, secret: str, *, now: Callable[[], float] = time.time) -> None:
        self._key = OctKey.import_key(secret)
        self._algorithms = PinnedAlgorithms(["HS256"])
        self._registry = JWTClaimsRegistry(
            lambda: int(now()),
            LEEWAY,
            iss={"essential": True, "value": ISSUER},
            exp={"essential": True},
            iat={"essential": True},
        )

    async def identify_user(self, headers: Headers, peer: str | None) -> User:
        """The user of Open WebUI, with the one role that they have there. Raises
        InvalidTokenError."""
        try:
            return self._verify_user(headers)
        except IdentityError as why:
            raise build_invalid_token("open_webui_jwt", MESSAGE, why) from None

    def is_user_token(self, token: str) -> bool:
        """False: the Authorization header is the key's."""
        return False

    def _verify_user(self, headers: Headers) -> User:
        sent = []
        for name, value in headers:
            if name == _SIGNED_HEADER:
                sent.append(value)
            elif name in _UNSIGNED_HEADERS:
                raise IdentityError("a plain header names the user")
        if len(sent) != 1:
            raise IdentityError("the header is not there exactly once")
        claims = self._algorithms.verify_token(self._algorithms.parse_token(sent[0]), self._key)
        check_claims(claims, self._registry)
        if claims["exp"] - claims["iat"] > MAX_LIFETIME:
            raise IdentityError("it is valid for too long")
        role = claims.get("role")
        return User(
            validate_text(claims.get("sub"), "sub"),
            frozenset() if role is None else validate_names([role], "role"),
        )
