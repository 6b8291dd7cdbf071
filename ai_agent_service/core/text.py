"""Text made safe to pass on: to a model, to a database, to a log."""

import re

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def replace_unstorable(text: str) -> str:
    """Return `text` with U+FFFD in place of NUL and lone surrogates, which JSON and PostgreSQL do
    not take; the same object if it has none."""
    if text.isascii() and "\0" not in text:
        return text
    return _UNSTORABLE.sub("\ufffd", text) if _UNSTORABLE.search(text) else text


def join_surrogates(text: str) -> str:
    """Return `text` with the two halves of a surrogate pair as their character, and halves that
    stand alone and NUL as U+FFFD."""
    joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return joined.replace("\0", "\ufffd")


def truncate_utf8(text: str, limit: int) -> str:
    """`text` cut to at most `limit` bytes of UTF-8, the cut being said in a last line."""
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    kept = encoded[:limit].decode(errors="ignore")
    return f"{kept}\n[cut here: {limit} of {len(encoded)} bytes are shown]"
