"""JSON that is not quite what it should be."""

import math
from typing import Any

import pytest
from hypothesis import given

from ai_agent_service.providers.lenient import (
    TextCleaner,
    clean,
    parse_json,
    read_count,
    read_items,
    read_text,
)
from tests.support.odd_json import odd_values


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b'\xef\xbb\xbf {"a": "\xff"}', {"a": "\ufffd"}),
        (b'["\\ud83d"]', ["\ud83d"]),
        (b'["a\tb\n"]', ["a\tb\n"]),
        (b"[Infinity]", [math.inf]),
        ("[1e999]", [math.inf]),
        (b"1" * 400, int("1" * 400)),
    ],
)
def test_what_python_can_read_is_read(data: bytes | str, expected: Any) -> None:
    assert parse_json(data) == expected


@pytest.mark.parametrize("data", [b"", b"{", b"no", b"[" * 5000, b"1" * 5000, b'{"a": 1}{'])
def test_what_is_not_json_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="is not JSON"):
        parse_json(data)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (12, 12),
        ("13", 13),
        (14.0, 14),
        ("15.0", 15),
        (12.9, 12),
        (-1, None),
        (True, None),
        (math.nan, None),
        ("inf", None),
        (2**80, None),
        (None, None),
        ([], None),
    ],
)
def test_counts_are_read_from_any_form_of_a_number(value: Any, expected: int | None) -> None:
    assert read_count(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a", "a"),
        (7, "7"),
        (False, ""),
        ([{"text": "a"}, "b", {"type": "image"}, {"text": {"value": "c"}}], "abc"),
        ({"summary": [{"text": "a"}]}, "a"),
    ],
)
def test_text_is_read_from_any_form(value: Any, expected: str) -> None:
    assert read_text(value) == expected


def test_an_object_stands_for_a_list_of_it() -> None:
    assert [read_items(value) for value in ({"a": 1}, [1], {}, None, "x", 7)] == [
        [{"a": 1}],
        [1],
        [],
        [],
        [],
        [],
    ]


@given(odd_values)
def test_any_value_is_read_as_text_and_cleaned(value: Any) -> None:
    assert isinstance(read_text(value), str)
    repr(clean(value)).encode()


def test_halves_are_joined_within_their_own_text() -> None:
    cleaner = TextCleaner()
    found = [
        cleaner.clean("a", "x\ud83d"),
        cleaner.clean("b", "\ude00"),
        cleaner.clean("a", "\ude00"),
    ]
    assert found == ["x", "\ufffd", "\U0001f600"]
    assert cleaner.take_rest() == []
    assert cleaner.clean("a", "\ud83d") == ""
    assert cleaner.take_rest() == [("a", "\ufffd")]
    assert cleaner.take_rest() == []
