"""IDENTITY_MODE=open_webui_jwt: Open WebUI names its user in a header that it signs with a secret that both know.

Open WebUI (0.12) signs HS256 with `sub`, `email`, `name`, `role`, `iss`, `iat` and an `exp` 300 seconds later.
"""

import time
from collections.abc import Callable

from joserfc.jwk import OctKey

from ai_agent_service.auth.identity.claims import Refused, names, refusal, text
from ai_agent_service.auth.identity.jwt import Pinned, check_times, seconds
from ai_agent_service.auth.principal import Headers, User

MESSAGE = "A valid X-OpenWebUI-User-Jwt header is needed, and none of the plain X-OpenWebUI-User headers."
ISSUER = "open-webui"
LEEWAY = 10.0
MAX_LIFETIME = 3600.0
"""Seconds from `iat` to `exp`."""

_SIGNED = b"x-openwebui-user-jwt"
_PLAIN = frozenset({b"x-openwebui-user-id", b"x-openwebui-user-name", b"x-openwebui-user-email", b"x-openwebui-user-role"})
"""What Open WebUI sends when it cannot sign, and what anybody can write."""


class OpenWebUI:
    """Believes what is signed with `secret`, of 32 bytes or more; `now` gives seconds of the wall clock."""

    verifies = True
    source = None

    def __init__(self, secret: str, *, now: Callable[[], float] = time.time) -> None:
        self._key = OctKey.import_key(secret)
        self._algorithms = Pinned(["HS256"])
        self._now = now

    async def user(self, headers: Headers, peer: str | None) -> User:
        """The user of Open WebUI, with the one role that they have there. Raises InvalidToken."""
        try:
            return self._user(headers)
        except Refused as why:
            raise refusal("open_webui_jwt", MESSAGE, why) from None

    def uses_authorization(self, token: str) -> bool:
        """False: the Authorization header is the key's."""
        return False

    def _user(self, headers: Headers) -> User:
        sent = []
        for name, value in headers:
            if name == _SIGNED:
                sent.append(value)
            elif name in _PLAIN:
                raise Refused("a plain header names the user")
        if len(sent) != 1:
            raise Refused("the header is not there exactly once")
        claims = self._algorithms.verified(self._algorithms.opened(sent[0]), self._key)
        if claims.get("iss") != ISSUER:
            raise Refused("the issuer is another")
        check_times(claims, now=self._now(), leeway=LEEWAY)
        if seconds(claims, "exp") - seconds(claims, "iat") > MAX_LIFETIME:
            raise Refused("it is valid for too long")
        role = claims.get("role")
        return User(text(claims.get("sub"), "sub"), frozenset() if role is None else names([role], "role"))
