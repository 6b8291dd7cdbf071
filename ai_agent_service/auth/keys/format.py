"""A key as its caller has it: `aas_<id>_<secret><checksum>`."""

import re
import secrets
import string
import zlib

import msgspec

PREFIX = "aas"
ID_CHARACTERS = 12
SECRET_CHARACTERS = 32
"""Of 62 kinds each: 190 random bits."""

_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_CHECKSUM_CHARACTERS = 6
_SHAPE = re.compile(
    f"({PREFIX}_([0-9A-Za-z]{{{ID_CHARACTERS}}})_([0-9A-Za-z]{{{SECRET_CHARACTERS},64}}))"
    "([0-9A-Za-z]{6})"
)


class ParsedKey(msgspec.Struct, frozen=True):
    """What a well-formed key says; whether it is a key of ours is another question."""

    key_id: str
    secret: str

    def __repr__(self) -> str:
        return f"ParsedKey(key_id={self.key_id!r})"

    @property
    def text(self) -> str:
        """The key as its caller has it."""
        named = f"{PREFIX}_{self.key_id}_{self.secret}"
        return named + _compute_checksum(named)


def generate_key(key_id: str | None = None) -> ParsedKey:
    """A key with a new random secret, for the key of this id or for a new one."""
    return ParsedKey(
        key_id or _generate_characters(ID_CHARACTERS), _generate_characters(SECRET_CHARACTERS)
    )


def parse_key(text: str) -> ParsedKey | None:
    """What `text` says; None if it is malformed: not of this shape, or mistyped so that the
    checksum is another one."""
    found = _SHAPE.fullmatch(text)
    if found is None or _compute_checksum(found[1]) != found[4]:
        return None
    return ParsedKey(found[2], found[3])


def _generate_characters(characters: int) -> str:
    return "".join(secrets.choice(_DIGITS) for _ in range(characters))


def _compute_checksum(named: str) -> str:
    """CRC-32 in base 62."""
    value = zlib.crc32(named.encode())
    digits = ""
    for _ in range(_CHECKSUM_CHARACTERS):
        value, digit = divmod(value, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return digits
