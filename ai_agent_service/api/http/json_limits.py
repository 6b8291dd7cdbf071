"""Repair text that cannot be stored, and reject such names, and JSON with too many values or nested
too deeply."""

import re
from itertools import islice
from typing import Any, ClassVar

import msgspec

from ai_agent_service.core.bounds import BYTES_PER_VALUE, MAX_JSON_DEPTH, MAX_JSON_VALUES
from ai_agent_service.core.errors import InvalidRequestError
from ai_agent_service.core.surrogates import replace_lone_surrogates
from ai_agent_service.core.text import replace_unstorable

MAX_SEARCHED = 300_000
MAX_REPAIRED = 10_000
"""Lone surrogates of one body that are repaired."""

_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_TOKEN = re.compile(rb'[,\[{]|"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
"""What begins a value or separates it from the one before it, or a text as a whole. A text without
an end goes to the end of the body, which would else be searched again from each quote in it."""

_Trail = tuple["_Trail | None", str]
"""The place of a value: that of its container, and its own part of the path."""


def check_value_count(body: bytes, kind: type[Any]) -> None:
    """Raise InvalidRequestError if the JSON text `body` has more values than its size warrants,
    before any of them is built.

    The `param` is the largest of the fields that the struct `kind` has.
    """
    limit = max(MAX_JSON_VALUES, len(body) // BYTES_PER_VALUE)
    most = 2 * limit  # a value that takes memory has two tokens or more
    if sum(map(body.count, (b",", b"[", b"{", b'"'))) <= most:
        return
    if next(islice(_TOKEN.finditer(body), most, None), None) is not None:
        place = _find_largest_field(body, kind)
        raise InvalidRequestError(f"The body holds more than {limit} values.", param=place)


def _find_largest_field(body: bytes, kind: type[Any]) -> str | None:
    try:
        fields = msgspec.structs.asdict(msgspec.json.decode(body, type=_build_outline(kind)))
    except (msgspec.DecodeError, RecursionError):
        return None
    return max(fields, key=lambda name: len(fields[name]))


def _build_outline(kind: type[Any]) -> type[Any]:
    """Return a struct with the fields of `kind` that are not decoded any further."""
    fields = [(name, msgspec.Raw, msgspec.Raw()) for name in kind.__struct_encode_fields__]
    return msgspec.defstruct("Outline", fields)


class WithTexts(msgspec.Struct):
    """A part of a request whose fields named in `texts` are text for a model.

    In these, what cannot be stored is replaced: the text may come from an earlier answer, or stay
    in the client's history, and would lock the conversation.
    """

    texts: ClassVar[frozenset[str]]


def replace_surrogates_by_nul(body: bytes) -> bytes:
    """Return `body` with NUL in place of lone surrogates, so that both are treated alike."""
    return replace_lone_surrogates(body, rb"\u0000", max_count=MAX_REPAIRED)


def repair_texts(body: bytes, decoded: object) -> None:
    """Replace each NUL in the texts of `decoded`, see WithTexts.

    Raises InvalidRequestError, with the place as `param`, for one elsewhere, since databases and
    providers reject it. `decoded` was decoded from `body`: without an escaped NUL there, nothing is
    searched.
    """
    if b"\\u0000" in body and _NUL.search(body):
        found, place = _find_nul(decoded)
        if found:
            raise InvalidRequestError(
                "This cannot contain the character NUL or half of a surrogate pair.", param=place
            )


def validate_values(value: Any, place: str) -> Any:
    """Return `value`, free-form JSON; raises InvalidRequestError with `place` if it is nested too
    deeply or too large."""
    level = [value]
    count = 0
    for _ in range(MAX_JSON_DEPTH):
        containers = [each for each in level if isinstance(each, dict | list) and each]
        if not containers:
            return value
        count += sum(map(len, containers))
        if count > MAX_JSON_VALUES:
            problem = f"This holds more than {MAX_JSON_VALUES} values."
            raise InvalidRequestError(problem, param=place)
        level = [
            child
            for each in containers
            for child in (each.values() if isinstance(each, dict) else each)
        ]
    problem = f"This is nested more than {MAX_JSON_DEPTH} levels deep."
    raise InvalidRequestError(problem, param=place)


def _find_nul(decoded: object) -> tuple[bool, str | None]:
    """Return whether there is a NUL outside of texts, which are repaired, and where; a value beyond
    all limits counts as having one."""
    waiting: list[tuple[object, _Trail | None]] = [(decoded, None)]
    searched = 0
    while waiting:
        value, trail = waiting.pop()
        searched += 1
        if searched > MAX_SEARCHED:
            return True, None
        if isinstance(value, str):
            if "\x00" in value:
                return True, _format_path(trail)
        elif isinstance(value, list):
            waiting += [(each, (trail, f"[{number}]")) for number, each in enumerate(value)]
        elif isinstance(value, dict):
            # The place does not contain the key, which is the caller's text.
            waiting += [(each, (trail, "[...]")) for pair in value.items() for each in pair]
        elif isinstance(value, msgspec.Struct):
            fields = msgspec.structs.asdict(value)
            if isinstance(value, WithTexts):
                for name in value.texts:
                    if isinstance(text := fields[name], str):
                        setattr(value, name, replace_unstorable(text))
                        del fields[name]
            waiting += [(each, (trail, f".{name}")) for name, each in fields.items()]
    return False, None


def _format_path(trail: _Trail | None) -> str:
    """Return the trail as errors show it, which ends at a free-form value."""
    parts: list[str] = []
    while trail is not None:
        trail, part = trail
        parts.append(part)
    parts.reverse()
    if "[...]" in parts:
        del parts[parts.index("[...]") + 1 :]
    return "".join(parts).removeprefix(".")
