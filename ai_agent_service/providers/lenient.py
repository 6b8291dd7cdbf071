"""Read JSON that is not quite what a wire format says, and report it once."""

import json
import logging
import math
from functools import lru_cache
from typing import Any

import msgspec

from ai_agent_service.core.text import join_surrogates

logger = logging.getLogger(__name__)

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for JSON that is not valid, or not of the type asked for."""

MAX_COUNT = 2**53
"""A count of tokens above this is not one."""

MAX_DEPTH = 100
"""How deeply a value that is kept may be nested."""

_TEXT_MEMBERS = ("text", "content", "thinking", "summary", "reasoning", "value")


@lru_cache(maxsize=1024)
def report_oddity(provider: str, kind: str) -> None:
    """Log once that `provider` sends something odd; `kind` names the part that is ignored or read
    leniently."""
    logger.warning("provider.odd_answer", extra={"provider": provider, "odd": kind})


def parse_json(data: bytes | str) -> Any:
    """Return the value of `data`, also with NaN, lone surrogates, invalid UTF-8, control characters
    or a byte order mark in it; raises ValueError for what is not JSON all the same."""
    try:
        return msgspec.json.decode(data)
    except UNREADABLE:
        text = data if isinstance(data, str) else data.decode("utf-8-sig", "replace")
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        raise ValueError("The text is not JSON.") from error


def is_done(data: bytes) -> bool:
    """Return whether `data` is the `[DONE]` that ends a stream, in any spelling."""
    return data.strip(b" \t\r\n\"'[]").lower() == b"done"


def read_items(value: Any) -> list[Any]:
    """Return the items of a list; a single object stands for a list of it, anything else for an
    empty one."""
    if isinstance(value, list):
        return value
    return [value] if isinstance(value, dict) and value else []


def read_text(value: Any, depth: int = 8) -> str:
    """Return the text in `value`: a string, a number, or an object or list with texts in it."""
    match value:
        case str():
            return value
        case bool() | None:
            return ""
        case int() | float():
            return str(value)
        case list() if depth:
            return "".join(read_text(each, depth - 1) for each in value)
        case dict() if depth:
            texts = (read_text(value.get(name), depth - 1) for name in _TEXT_MEMBERS)
            return next(filter(None, texts), "")
        case _:
            return ""


def read_number(value: Any) -> float | None:
    """Return a number that is not negative, also if it is sent as text; None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 <= value < math.inf else None


def read_count(value: Any) -> int | None:
    """Return a whole number that is not negative, also if it is sent as a float or as text; None
    for anything else."""
    number = read_number(value)
    return None if number is None or number > MAX_COUNT else int(number)


def clean(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Return a JSON value without lone surrogates, which cannot be encoded, and without what is
    nested too deeply."""
    match value:
        case str() if not value.isascii():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case list():
            return [clean(each, depth - 1) for each in value] if depth else None
        case dict():
            pairs = value.items() if depth else ()
            return {clean(name): clean(each, depth - 1) for name, each in pairs}
        case _:
            return value


class TextCleaner:
    """Joins surrogate pairs that are split between two pieces of a text, of several at a time, and
    replaces NUL and lone surrogates."""

    def __init__(self) -> None:
        self.halves: dict[str, str] = {}
        """The first half of a pair at the end of a text, which its next piece may complete."""

    def clean(self, kind: str, piece: str) -> str:
        """Return the next piece of the text `kind`, maybe an empty one."""
        text = self.halves.pop(kind, "") + piece
        if "\ud800" <= text[-1:] <= "\udbff":
            self.halves[kind] = text[-1]
            text = text[:-1]
        return join_surrogates(text)

    def take_rest(self) -> list[tuple[str, str]]:
        """Return the replacements of halves that stay alone, each with its kind."""
        found = [(kind, "\ufffd") for kind in self.halves]
        self.halves = {}
        return found
