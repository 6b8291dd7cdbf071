"""Text made safe to pass on: to a model, to a database, to a log."""

import re
from collections.abc import Mapping

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_PREFIXES = ("sk", "pk", "rk", "xoxa", "xoxb", "xoxp", "gho", "ghp", "ghs", "ghu", "github_pat", "glpat", "aas")
_SECRET_SHAPES = re.compile(rf"(?i)\b(?:{'|'.join(_PREFIXES)})[-_][A-Za-z0-9_\-*.]{{8,}}|\bbearer\s+[^\s\"',]+")
_MARKS = ("bearer", *(f"{prefix}{sign}" for prefix in _PREFIXES for sign in "-_"))
"""What no text lacks that has one of those shapes; to look for them all takes a fifth of what the pattern takes."""


_SECRET_NAMES = re.compile(r"(?i)(?:^|_)(?:keys?|tokens?|secrets?|passwords?|pass|pepper|credentials?|url|dsn)$")
_PASSWORD = re.compile(r"(?<=:)[^:/@]+(?=@)")
MIN_SECRET = 8
"""Characters of a secret that is looked for by itself; a shorter one would be found in words."""


def storable(text: str) -> str:
    """`text` with NUL and lone surrogates, which neither JSON nor PostgreSQL bears, replaced by U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text)


def capped(text: str, limit: int) -> str:
    """`text` cut to at most `limit` bytes of UTF-8, the cut being said in a last line."""
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    kept = encoded[:limit].decode(errors="ignore")
    return f"{kept}\n[cut here: {limit} of {len(encoded)} bytes are shown]"


def without_secrets(text: str, secrets: tuple[str, ...] = ()) -> str:
    """`text` with each of `secrets`, and whatever looks like an API key, replaced by `[redacted]`."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "[redacted]")
    lowered = text.lower()
    return _SECRET_SHAPES.sub("[redacted]", text) if any(mark in lowered for mark in _MARKS) else text


def secrets_in(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The values of variables whose names say that they are secret, the parts of lists and the passwords in addresses; longest first."""
    found: set[str] = set()
    for name, value in environment.items():
        if not _SECRET_NAMES.search(name):
            continue
        if name.lower().endswith(("url", "dsn")):
            found.update(_PASSWORD.findall(value))
        else:
            found.update(part.strip() for part in (value, *value.split(",")))
    return tuple(sorted((secret for secret in found if len(secret) >= MIN_SECRET), key=len, reverse=True))
