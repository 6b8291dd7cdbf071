"""Encryption at rest: the text of a column sealed with AES-GCM and bound to its row."""

import base64
import hashlib
import re
import secrets
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_PREFIX = "aesgcm:"
_NONCE_BYTES = 12
_HEX_KEY = re.compile("[0-9A-Fa-f]{64}")
_BASE64_KEY = re.compile("[0-9A-Za-z+/_-]{43}=?")
_KEY_ID = re.compile("[0-9a-f]{8}")


class DecryptionError(Exception):
    """A stored value cannot be read: its key is not among ours, or it was altered or moved to
    another row.

    The message names the id of the lacking key; it never shows text or key.
    """


def parse_keys(text: str) -> tuple[bytes, ...]:
    """The keys in `text` (MEMORY_ENCRYPTION_KEYS): separated by commas, the newest first, each of
    32 bytes; none in an empty text.

    A key is written in base64 (standard or URL-safe, with or without padding) or as 64 hex digits.
    Raises ValueError, which says by its number which key is wrong and never shows it.
    """
    keys: list[bytes] = []
    for number, item in enumerate(text.split(",") if text.strip() else (), start=1):
        written = item.strip()
        if _HEX_KEY.fullmatch(written):
            key = bytes.fromhex(written)
        elif _BASE64_KEY.fullmatch(written):
            key = base64.urlsafe_b64decode(
                written.rstrip("=").replace("+", "-").replace("/", "_") + "="
            )
        else:
            raise ValueError(
                f"Key {number} is not a key: 32 bytes in base64 (43 or 44 characters) or 64 hex"
                " digits are expected."
            )
        if key in keys:
            raise ValueError(
                f"Keys {keys.index(key) + 1} and {number} are the same: each key may be listed"
                " once."
            )
        keys.append(key)
    return tuple(keys)


class Cipher:
    """Encrypts with the first of `keys` and decrypts with any of them; without keys text is stored
    as it is.

    An encrypted value is `aesgcm:<key id>:<base64 of nonce, ciphertext and tag>`. Whatever begins
    with `aesgcm:` is read as encrypted, anything else as plain text. That is unambiguous for what
    is stored here: JSON that begins with `{`, `[` or `"`.

    The nonces are random, so a key is good for 2**32 values (NIST SP 800-38D, 8.3); then another
    key belongs in front of it.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = {_derive_key_id(key): AESGCM(key) for key in keys}
        if len(self._keys) != len(keys):
            raise ValueError("Two keys have the same id: replace one of them.")
        self._newest = next(iter(self._keys), None)

    @property
    def is_enabled(self) -> bool:
        """Whether there is a key to encrypt with."""
        return self._newest is not None

    def encrypt(self, text: str, *, bound_to: bytes) -> str:
        """`text` as it is to be stored at the address `bound_to`, without which it cannot be
        decrypted.

        Raises ValueError for a lone surrogate, and without keys for text that would be read back as
        encrypted.
        """
        if self._newest is None:
            if text.startswith(_PREFIX):
                raise ValueError(
                    f"Text that begins with {_PREFIX!r} cannot be stored in the clear."
                )
            return text
        try:
            encoded = text.encode()
        except UnicodeEncodeError:
            raise ValueError("Text with a lone surrogate cannot be stored.") from None
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = nonce + self._keys[self._newest].encrypt(nonce, encoded, bound_to)
        return f"{_PREFIX}{self._newest}:{base64.b64encode(sealed).decode()}"

    def decrypt(self, text: str, *, bound_to: bytes) -> str:
        """What `encrypt` was given for the stored `text`, whether it was stored with one of our
        keys or in the clear.

        Raises DecryptionError.
        """
        if not text.startswith(_PREFIX):
            return text
        key_id, _, payload = text.removeprefix(_PREFIX).partition(":")
        if not _KEY_ID.fullmatch(key_id):
            raise DecryptionError("An encrypted value was altered: it has no key id.")
        key = self._keys.get(key_id)
        if key is None:
            raise DecryptionError(
                f"An encrypted value needs the key with the id {key_id}, which"
                " MEMORY_ENCRYPTION_KEYS lacks."
            )
        try:
            sealed = base64.b64decode(payload)
            return key.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], bound_to).decode()
        except (InvalidTag, ValueError):
            raise DecryptionError(
                f"A value encrypted with the key {key_id} was altered, or belongs to another row."
            ) from None

    def is_current(self, text: str) -> bool:
        """Whether the stored `text` is as `encrypt` would store it now: under the newest key, or in
        the clear without keys."""
        return (
            text.startswith(f"{_PREFIX}{self._newest}:")
            if self.is_enabled
            else not text.startswith(_PREFIX)
        )


def _derive_key_id(key: bytes) -> str:
    return hashlib.sha256(b"key id" + key).hexdigest()[:8]
