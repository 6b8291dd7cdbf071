"""The pepper, without which a digest says nothing of its key: API_KEY_PEPPER, or a random one that
the database keeps."""

import hmac
import secrets as random
from typing import Any

import msgspec
from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from ai_agent_service.storage.encryption import Cipher
from ai_agent_service.storage.tables import secrets

PEPPER = "api_key_pepper"
FINGERPRINT = "api_key_fingerprint"
PEPPER_MISMATCH = (
    "the pepper is not the one that the keys of this database were made with, so they are refused:"
    " set API_KEY_PEPPER as it was then, or revoke them and make new ones"
)


class KeyHasher:
    """Makes the digests of secrets, with one pepper."""

    def __init__(self, pepper: str) -> None:
        self._pepper = pepper.encode()

    def compute_digest(self, secret: str) -> bytes:
        """HMAC-SHA256 of `secret`, which may be any text."""
        return hmac.digest(self._pepper, secret.encode(errors="surrogatepass"), "sha256")

    @property
    def fingerprint(self) -> str:
        """What tells peppers apart."""
        return self.compute_digest("fingerprint")[:12].hex()


class PepperState(msgspec.Struct, frozen=True):
    """The digests of a database's keys; None where there is no pepper yet. `is_other`: its keys
    were made with another pepper."""

    digests: KeyHasher | None
    is_other: bool


class Pepper:
    """The pepper of a database: `setting`, else the one that is kept there, encrypted by
    `cipher`."""

    def __init__(self, setting: str | None, cipher: Cipher) -> None:
        self._setting = setting
        self._cipher = cipher

    def read(self, connection: Connection) -> PepperState:
        """What is there; raises DecryptionError."""
        wanted = select(secrets.c.name, secrets.c.value).where(
            secrets.c.name.in_((PEPPER, FINGERPRINT))
        )
        kept = {row["name"]: row["value"] for row in connection.execute(wanted).mappings()}
        digests = None
        if self._setting is not None:
            digests = KeyHasher(self._setting)
        elif (value := self._decrypt_value(PEPPER, kept)) is not None:
            digests = KeyHasher(value)
        fingerprint = self._decrypt_value(FINGERPRINT, kept)
        return PepperState(
            digests,
            fingerprint is not None and (digests is None or digests.fingerprint != fingerprint),
        )

    def get_or_create(self, connection: Connection) -> KeyHasher:
        """As `read`, and makes a random pepper if there is none; raises DecryptionError."""
        if (found := self.read(connection).digests) is not None:
            return found
        made = self._build_insert(connection, PEPPER, random.token_hex(32))
        connection.execute(made.on_conflict_do_nothing())
        found = self.read(connection).digests
        assert found is not None
        return found

    def store_fingerprint(self, connection: Connection, digests: KeyHasher) -> None:
        """Has it be known that the database's keys are made with this pepper."""
        kept = self._build_insert(connection, FINGERPRINT, digests.fingerprint)
        connection.execute(
            kept.on_conflict_do_update(index_elements=["name"], set_={"value": kept.excluded.value})
        )

    def _build_insert(self, connection: Connection, name: str, value: str) -> Any:
        insert: Any = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        sealed = self._cipher.encrypt(msgspec.json.encode(value).decode(), bound_to=name.encode())
        return insert(secrets).values(name=name, value=sealed)

    def _decrypt_value(self, name: str, kept: dict[str, str]) -> str | None:
        if name not in kept:
            return None
        return msgspec.json.decode(
            self._cipher.decrypt(kept[name], bound_to=name.encode()), type=str
        )
