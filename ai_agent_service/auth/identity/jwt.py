"""Verifies signed tokens (JWS, RFC 7515; JWT, RFC 7519): by pinned algorithms and a key of ours,
never by what a token brings.

joserfc takes a tenth of a second to import, so that only what is loaded for a mode with tokens may
import this.
"""

import re
from collections.abc import Collection

import msgspec
from joserfc import jws
from joserfc.errors import ClaimError, ExpiredTokenError, JoseError, UnsupportedAlgorithmError
from joserfc.jwa import JWSAlgModel
from joserfc.jwk import Key
from joserfc.jwt import Claims, JWTClaimsRegistry
from joserfc.util import urlsafe_b64decode

from ai_agent_service.auth.identity.claims import IdentityError
from ai_agent_service.core.bounds import MAX_TOKEN_BYTES

MAX_SECONDS = 2**53
"""Whole numbers up to here are the same as floats; arithmetic with larger ones may overflow."""

_TIMES = ("exp", "nbf", "iat")
_COMPACT = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_FORBIDDEN_FIELDS = frozenset({"crit", "b64", "jwk", "jku", "x5u", "x5c"})
"""What a header may not have: extensions that must be understood, and keys that a token brings
itself."""


class UnverifiedToken(msgspec.Struct, frozen=True):
    """A token as it came, with what its header asks for; nothing of it is to be believed."""

    token: bytes
    algorithm: str
    key_id: str | None


class PinnedAlgorithms(jws.JWSRegistry):
    """The algorithms that a token may be signed by, and no others.

    A header may have fields that are not known, which RFC 7515 wants ignored.
    """

    def __init__(self, algorithms: Collection[str]) -> None:
        super().__init__(algorithms=frozenset(algorithms), strict_check_header=False)

    def get_alg(self, name: str) -> JWSAlgModel:
        """The algorithm, if it is among those; joserfc's own warns of EdDSA with each token, as RFC
        9864 gives it two new names."""
        if name not in (self.allowed or ()):
            raise UnsupportedAlgorithmError
        return self.algorithms[name]

    def parse_token(self, token: bytes) -> UnverifiedToken:
        """What the header of `token` says, its form being right and its algorithm one of these;
        raises IdentityError."""
        if len(token) > MAX_TOKEN_BYTES or not _COMPACT.fullmatch(token):
            raise IdentityError("this is no signed token")
        try:
            header = msgspec.json.decode(urlsafe_b64decode(token[: token.index(b".")]))
        except (ValueError, RecursionError):
            raise IdentityError("the header is not JSON") from None
        if not isinstance(header, dict):
            raise IdentityError("the header is no object")
        if _FORBIDDEN_FIELDS & header.keys():
            raise IdentityError("the header has crit, or brings a key")
        algorithm, key_id = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in (self.allowed or ()):
            raise IdentityError("the algorithm is not allowed")
        if key_id is not None and not isinstance(key_id, str):
            raise IdentityError("the key's id is no text")
        return UnverifiedToken(token, algorithm, key_id)

    def verify_token(self, opened: UnverifiedToken, key: Key) -> Claims:
        """The claims, if `key` has signed them; raises IdentityError."""
        try:
            payload = jws.deserialize_compact(opened.token, key, registry=self).payload
        except (JoseError, ValueError) as error:
            raise IdentityError(f"the signature does not hold ({type(error).__name__})") from None
        try:
            return msgspec.json.decode(payload or b"", type=Claims)
        except (ValueError, RecursionError):
            raise IdentityError("the claims are no JSON object") from None

    def is_compatible(self, algorithm: str, key: Key) -> bool:
        """Whether `key` is one for `algorithm`, which is among these."""
        try:
            self.get_alg(algorithm).check_key(key)
        except JoseError:
            return False
        return True


def check_claims(claims: Claims, registry: JWTClaimsRegistry) -> None:
    """Raise IdentityError unless `registry` accepts the issuer, the audience and the times.

    Other claims are not checked: a caller reads those that it needs.
    """
    checked = {name: claims[name] for name in ("iss", "aud", *_TIMES) if name in claims}
    try:
        registry.validate(checked)
    except ExpiredTokenError:
        raise IdentityError("it has expired") from None
    except ClaimError as error:
        raise IdentityError(error.description) from None
    if not all(0 <= checked[name] <= MAX_SECONDS for name in _TIMES if name in checked):
        raise IdentityError("a time is out of range")
