"""Text made safe to pass on: to a model, to a database, to a log."""

import re

_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Characters that command a terminal or hide in a text: controls, both ranges of them, lone
surrogates, and what Unicode calls default ignorable: direction, zero width, fillers and tags.
Variation selectors stay, since they only choose a glyph."""

_NOT_ASCII = re.compile("[^ -~]+")
_SHORT_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
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


def show_foreign(text: str, keep: str = "") -> str:
    """Return `text` of users, models, tools or servers as a terminal may show it.

    Characters that command a terminal or cannot be seen become visible escapes, as JSON has them,
    such as `\\u001b`; those in `keep`, such as a newline, stay.
    """
    return _INVISIBLE.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def escape_unprintable(line: str) -> str:
    """Return a line of JSON with all that is not printable escaped; its value is the same."""
    if line.isprintable():
        return line
    return _NOT_ASCII.sub(
        lambda found: "".join(each if each.isprintable() else _escape(each) for each in found[0]),
        line,
    )


def _escape(character: str) -> str:
    if character in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[character]
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[place : place + 2].hex()}" for place in range(0, len(units), 2))
