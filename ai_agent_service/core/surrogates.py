"""Repair JSON that strict readers refuse."""

import re

_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_ESCAPE = re.compile(
    rb"(?:[^\\]++|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|\\(?!u[dD][89a-fA-F]).)++"
    rb"|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})",
    re.DOTALL,
)
"""All up to the next half of a surrogate pair, or that half."""


def has_lone_surrogate(json: bytes) -> bool:
    """Return whether `json` may have an escape that is half of a surrogate pair."""
    return _SURROGATE_ESCAPE.search(json) is not None


def replace_lone_surrogates(
    json: bytes, replacement: bytes = rb"\ufffd", *, max_count: int = 0
) -> bytes:
    """Return `json` with `replacement`, an escape, in place of each half of a surrogate pair, which
    some programs write; of at least the first `max_count` of them, unless that is 0."""
    if not has_lone_surrogate(json):
        return json
    return _ESCAPE.sub(
        lambda match: replacement if match["half"] else match[0], json, count=2 * max_count
    )
