"""Compares arguments of a call with what is expected of them: exact values, or objects that are
matchers."""

import re
from typing import Any

import msgspec

_MATCHERS = ({"regex"}, {"contains"}, {"any"}, {"equals"}, {"number", "tolerance"})


def is_matcher(expected: object) -> bool:
    """Whether `expected` says how to compare; `{"equals": ...}` has an object that looks like that
    taken as it is."""
    return isinstance(expected, dict) and expected.keys() in _MATCHERS


def find_matcher_fault(expected: object) -> str | None:
    """What is wrong with `expected`, in words for whoever wrote it; None if nothing is."""
    if isinstance(expected, list):
        return next((problem for item in expected if (problem := find_matcher_fault(item))), None)
    if not isinstance(expected, dict):
        return None
    if not is_matcher(expected):
        return next(
            (problem for item in expected.values() if (problem := find_matcher_fault(item))), None
        )
    match expected:
        case {"regex": str(pattern)}:
            try:
                re.compile(pattern)
            except re.error as error:
                return f"this is no regular expression ({error})"
        case {"regex": _} | {"contains": _} if not isinstance(next(iter(expected.values())), str):
            return "regex and contains take a text"
        case {"any": value} if value is not True:
            return "any takes true"
        case {"number": number, "tolerance": tolerance} if not (
            _is_number(number) and _is_number(tolerance) and tolerance >= 0
        ):
            return "number and tolerance take numbers, tolerance one from 0"
        case _:
            pass
    return None


def matches(expected: Any, value: Any) -> bool:
    """Whether `value` is as expected. Of objects within, every field counts; what is no text is
    searched as JSON shows it."""
    if is_matcher(expected):
        match expected:
            case {"regex": pattern}:
                return re.search(pattern, _to_text(value)) is not None
            case {"contains": text}:
                return text.casefold() in _to_text(value).casefold()
            case {"any": _}:
                return True
            case {"equals": wanted}:
                return _is_equal(wanted, value)
            case {"number": number, "tolerance": tolerance}:
                return _is_number(value) and bool(abs(value - number) <= tolerance)
            case _:
                pass
    if isinstance(expected, dict) and isinstance(value, dict):
        return expected.keys() == value.keys() and all(
            matches(expected[name], value[name]) for name in expected
        )
    if isinstance(expected, list) and isinstance(value, list):
        return len(expected) == len(value) and all(map(matches, expected, value))
    return _is_equal(expected, value)


def _is_equal(one: Any, other: Any) -> bool:
    """Equal as JSON: true is not 1, 1.0 is."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_equal(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_equal, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _to_text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
