"""JSON with halves of surrogate pairs, which strict readers refuse."""

import json
from collections.abc import AsyncGenerator

import httpx2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_agent_service.core.surrogates import replace_lone_surrogates
from ai_agent_service.mcp.http import _RepairedBody

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


class _Pieces(httpx2.AsyncByteStream):
    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        for piece in self._pieces:
            yield piece


async def test_a_body_is_repaired_wherever_it_is_cut() -> None:
    body = (
        rb'data: {"a": "\ud800", "b": "\ud83d\ude00"}' + b"\n\n" + rb'data: "\udc00"' + b"\n\nrest"
    )
    whole = replace_lone_surrogates(body)
    assert (
        whole
        == rb'data: {"a": "\ufffd", "b": "\ud83d\ude00"}'
        + b"\n\n"
        + rb'data: "\ufffd"'
        + b"\n\nrest"
    )
    cuts = [(body[:cut], body[cut:]) for cut in range(len(body) + 1)]
    for pieces in (*cuts, [bytes([byte]) for byte in body]):
        assert b"".join([piece async for piece in _RepairedBody(_Pieces(*pieces))]) == whole


async def test_whole_lines_are_passed_on_at_once() -> None:
    pieces = aiter(_RepairedBody(_Pieces(b"data: 1\n\nda", b"ta: 2\n\n")))
    assert await anext(pieces) == b"data: 1\n\n"
    assert await anext(pieces) == b"data: 2\n\n"
