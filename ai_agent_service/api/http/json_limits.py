"""Reject the character NUL, and free-form values that are nested too deeply or too large."""

import re
from typing import Any

import msgspec

from ai_agent_service.core.errors import InvalidRequestError

MAX_DEPTH = 100
"""How deep a free-form value, such as a tool's schema, may be nested without exhausting the stack
when it is encoded again."""

MAX_VALUES = 100_000
MAX_SEARCHED = 300_000
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_Trail = tuple["_Trail | None", str]
"""The place of a value: that of its container, and its own part of the path."""


def check_no_nul(body: bytes, decoded: object) -> None:
    """Raise InvalidRequestError, with the place as `param`, if `decoded` has a NUL, which databases
    and providers reject.

    It was decoded from `body`; without an escaped NUL there, nothing is searched.
    """
    if b"\\u0000" in body and _NUL.search(body):
        found, place = _find_nul(decoded)
        if found:
            raise InvalidRequestError("Text cannot contain the character NUL.", param=place)


def validate_values(value: Any, place: str) -> Any:
    """Return `value`, free-form JSON; raises InvalidRequestError with `place` if it is nested too
    deeply or too large."""
    level = [value]
    count = 0
    for _ in range(MAX_DEPTH):
        level = [
            child
            for each in level
            if isinstance(each, dict | list) and each
            for child in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return value
        count += len(level)
        if count > MAX_VALUES:
            raise InvalidRequestError(f"This holds more than {MAX_VALUES} values.", param=place)
    raise InvalidRequestError(f"This is nested more than {MAX_DEPTH} levels deep.", param=place)


def _find_nul(decoded: object) -> tuple[bool, str | None]:
    """Return whether there is a NUL, and where; a value beyond all limits counts as having one."""
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
