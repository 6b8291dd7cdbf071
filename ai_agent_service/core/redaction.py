"""Finds secrets in text and redacts them."""

import re
from collections.abc import Mapping
from urllib.parse import unquote

_PREFIXES = (
    "sk",
    "pk",
    "rk",
    "xoxa",
    "xoxb",
    "xoxp",
    "gho",
    "ghp",
    "ghs",
    "ghu",
    "github_pat",
    "glpat",
    "aas",
)

_SECRET_PATTERN = re.compile(
    rf"(?i)\b(?:{'|'.join(_PREFIXES)})[-_][A-Za-z0-9_\-*.]{{8,}}|\bbearer\s+[^\s\"',]+"
)

_SECRET_MARKERS = ("bearer", *(f"{prefix}{sign}" for prefix in _PREFIXES for sign in "-_"))
"""What no text lacks that has one of those shapes; to look for them all takes a fifth of what the
pattern takes."""

_MARKER_HINTS = ("bearer", "k-", "k_", "xox", "gh", "github", "glpat", "aas")
"""Each of the marks holds one of these, which are fewer: each line of the log is looked through."""

_SECRET_NAMES = re.compile(
    r"(?i)^(?!(?:old)?pwd$).*?"
    r"(?:(?:^|_)(?:keys?|pass|pat|auth|pepper|cookie)|api_?keys?|tokens?|secrets?|passwords?"
    r"|passwd|pwd|passphrase|credentials?)(?:_?\d+)?$"
)
"""PWD and OLDPWD are folders, which shells set."""

_HEADER_NAMES = re.compile(r"(?i)(?:^|_)headers$")

_URL_NAMES = re.compile(r"(?i)(?:^|_)(?:url|uri|dsn|proxy|endpoint|connection_string)$")

_URL_SECRETS = re.compile(
    r"(?<=://)[^\s/]*?:([^\s]*)@|[?&;\s](?i:password|pwd|api_?key|token|secret)=([^&;\s]+)"
)

_PLAIN_WORD = re.compile(r"[a-z_.]+")
"""A value that is no secret to look for: to take `postgres` out of each line would leave little of
it."""

MIN_SECRET_LENGTH = 8
"""Characters of a secret that is looked for by itself; a shorter one would be found in words."""


def redact_secrets(text: str, secrets: tuple[str, ...] = ()) -> str:
    """`text` with each of `secrets`, and whatever looks like an API key, replaced by
    `[redacted]`."""
    text = redact_known(text, secrets)
    return _SECRET_PATTERN.sub("[redacted]", text) if has_secret_marker(text) else text


def has_secret_marker(text: str) -> bool:
    """Whether something in `text` may look like an API key; quickly found out, and mostly false."""
    lowered = text.lower()
    for hint in _MARKER_HINTS:  # a generator would cost as much again
        if hint in lowered:
            return any(mark in lowered for mark in _SECRET_MARKERS)
    return False


def redact_known(text: str, secrets: tuple[str, ...]) -> str:
    """`text` with each of `secrets` replaced by `[redacted]`."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "[redacted]")
    return text


def find_secrets(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The values of variables whose names say that they are secret, the parts of lists, and what is
    secret in headers and addresses, as it is written there and without its quoting; longest first.
    A value that is one word of small letters is left out."""
    found: set[str] = set()
    for name, value in environment.items():
        if _URL_NAMES.search(name):
            written = [
                part for match in _URL_SECRETS.finditer(value) for part in match.groups() if part
            ]
            found.update((*written, *map(unquote, written)))
        elif _HEADER_NAMES.search(
            name
        ):  # as those of OTEL_EXPORTER_OTLP_HEADERS: name=value, separated by commas, quoted or not
            written = [part.partition("=")[2].strip() for part in value.split(",")]
            values = [value, *written, *map(unquote, written)]
            found.update((*values, *(word for each in values for word in each.split())))
        elif _SECRET_NAMES.search(name):
            found.update(part.strip() for part in (value, *value.split(",")))
    long_enough = (
        secret
        for secret in found
        if len(secret) >= MIN_SECRET_LENGTH and not _PLAIN_WORD.fullmatch(secret)
    )
    return tuple(sorted(long_enough, key=len, reverse=True))
