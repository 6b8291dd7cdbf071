"""Makes JSON readable that strict readers refuse."""

import re

_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL
)


def has_half_pair(json: bytes) -> bool:
    """Whether `json` may have an escape that is half of a surrogate pair."""
    return _HALF_PAIR.search(json) is not None


def without_half_pairs(json: bytes) -> bytes:
    """`json` with each escape that is half of a surrogate pair replaced by that of U+FFFD; some servers write them, and no strict reader
    takes them."""
    if not has_half_pair(json):
        return json
    return _ESCAPE.sub(lambda match: b"\\ufffd" if match["half"] else match[0], json)
