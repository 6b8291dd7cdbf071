"""Repair JSON that strict readers refuse."""

import re

_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.",
    re.DOTALL,
)


def has_lone_surrogate(json: bytes) -> bool:
    """Return whether `json` may have an escape that is half of a surrogate pair."""
    return _SURROGATE_ESCAPE.search(json) is not None


def replace_lone_surrogates(json: bytes) -> bytes:
    """Return `json` with U+FFFD in place of each half of a surrogate pair, which some servers
    write."""
    if not has_lone_surrogate(json):
        return json
    return _ESCAPE.sub(lambda match: b"\\ufffd" if match["half"] else match[0], json)
