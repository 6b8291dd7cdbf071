"""Real keys and tokens, and an identity provider without a network."""

import json
from collections.abc import Mapping
from typing import Any

from joserfc import jws
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey
from joserfc.util import urlsafe_b64encode

from ai_agent_service.core.errors import ProviderUnavailableError

NOW = 1_800_000_000.0
ISSUER = "https://login.example.com/realms/one"
DISCOVERY = f"{ISSUER}/.well-known/openid-configuration"
JWKS = "https://login.example.com/certs"
AUDIENCE = "agents"
SECRET = "a secret of Open WebUI, shared \u00e4 la carte"

RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
RSA_OTHER = RSAKey.generate_key(2048, {"kid": "other"})
P256 = ECKey.generate_key("P-256", {"kid": "p256"})
P384 = ECKey.generate_key("P-384", {"kid": "p384"})
P521 = ECKey.generate_key("P-521", {"kid": "p521"})
ED25519 = OKPKey.generate_key("Ed25519", {"kid": "ed25519"})
ED448 = OKPKey.generate_key("Ed448", {"kid": "ed448"})
KEYS: list[Key] = [RSA, P256, P384, P521, ED25519, ED448]


class _Any(jws.JWSRegistry):
    """Signs with any algorithm and any header, to create tokens that must be refused."""

    def get_alg(self, name: str) -> Any:
        return self.algorithms[name]

    def check_header(self, header: Any) -> None:
        pass


def encoded(part: object) -> str:
    """Encode a part of a token: JSON, or bytes as they are."""
    return urlsafe_b64encode(
        part if isinstance(part, bytes) else json.dumps(part).encode()
    ).decode()


def signed(claims: object, key: Key, algorithm: str, **header: Any) -> str:
    """Sign a token; its claims and its header may be anything."""
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    return jws.serialize_compact(
        {"typ": "JWT", "alg": algorithm, **header}, payload, key, registry=_Any()
    )


def without(claims: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the claims without some."""
    return {name: value for name, value in claims.items() if name not in names}


def public(*keys: Key, **members: Any) -> bytes:
    """Build a JWK Set of the public parts of `keys`, each with `members` added."""
    return json.dumps({"keys": [key.as_dict(private=False) | members for key in keys]}).encode()


class Time:
    """A clock that stands until a test moves it."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Provider:
    """Documents by their addresses instead of a network; counts the requests.

    An address without a document cannot be reached.
    """

    def __init__(self, *keys: Key) -> None:
        self.documents: dict[str, bytes] = {
            DISCOVERY: json.dumps({"issuer": ISSUER, "jwks_uri": JWKS, "more": [1]}).encode(),
            JWKS: public(*keys),
        }
        self.asked: list[str] = []
        self.up = True

    async def __call__(self, url: str) -> bytes:
        self.asked.append(url)
        if not self.up or url not in self.documents:
            raise ProviderUnavailableError("login.example.com cannot be reached.")
        return self.documents[url]
