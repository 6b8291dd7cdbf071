"""JSON with halves of surrogate pairs, which strict readers refuse."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_agent_service.core.surrogates import replace_lone_surrogates

ANY_TEXT = st.text(st.characters(exclude_categories=()))
"""Lone surrogates too, which `json.dumps` writes as escapes."""


@given(ANY_TEXT)
def test_what_any_server_writes_becomes_readable(text: str) -> None:
    read = msgspec.json.decode(replace_lone_surrogates(json.dumps(text).encode()))
    paired = text.encode("utf-16", "surrogatepass").decode(
        "utf-16", "surrogatepass"
    )  # halves that stand together are one letter
    assert read == "".join(
        "\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in paired
    )


@given(st.text())
def test_what_is_readable_stays_as_it_is(text: str) -> None:
    written = json.dumps(text).encode()
    assert replace_lone_surrogates(written) == written


@pytest.mark.parametrize(
    "escaped", [rb'"\\ud800"', rb'"\ud83d\ude00"', rb'"\\\ud83d\ude00"', rb'"\uD83D\uDE00"']
)
def test_an_escaped_backslash_and_whole_pairs_are_left_alone(escaped: bytes) -> None:
    assert replace_lone_surrogates(escaped) == escaped
