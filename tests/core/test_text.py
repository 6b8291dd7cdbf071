"""Text made safe."""

import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_agent_service.core.text import (
    escape_unprintable,
    replace_unstorable,
    show_foreign,
    truncate_utf8,
)


def test_nul_and_lone_surrogates_are_replaced_and_all_else_is_kept() -> None:
    assert (
        replace_unstorable("a\x00b\ud800c\udfffd\U0001f600é\n")
        == "a\ufffdb\ufffdc\ufffdd\U0001f600é\n"
    )


@given(st.text(), st.integers(min_value=1, max_value=50))
def test_a_cut_keeps_whole_characters_within_the_limit(text: str, limit: int) -> None:
    cut = truncate_utf8(text, limit)
    if len(text.encode()) <= limit:
        assert cut == text
    else:
        kept, _, note = cut.rpartition("\n")
        assert text.startswith(kept)
        assert len(kept.encode()) <= limit
        assert note == f"[cut here: {limit} of {len(text.encode())} bytes are shown]"


VISIBLE_FORMATS = (
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
)
"""Signs of Arabic, Syriac and Kaithi that Unicode counts as format characters and that are seen."""


def test_all_that_commands_a_terminal_or_is_invisible_is_shown_as_an_escape() -> None:
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        kind = unicodedata.category(character)
        is_hieroglyph = 0x13430 <= number < 0x13440  # joins signs, as letters do
        hides = kind in ("Cc", "Cs", "Zl", "Zp") or (
            kind == "Cf" and character not in VISIBLE_FORMATS and not is_hieroglyph
        )
        shown = show_foreign(character)
        assert not hides or (shown.isascii() and shown.isprintable()), hex(number)
        assert kind[0] not in "LMNPS" or shown == character or number in FILLERS, hex(number)


FILLERS = {
    *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x3164, 0xFFA0),
    *range(0xE0100, 0xE01F0),
}
"""Letters and marks that are not seen."""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07", "\\u001b]0;owned\\u0007"),
        ("a\u202eb\u200bc\x9b", "a\\u202eb\\u200bc\\u009b"),
        ("one\ntwo\tthree\r", "one\\ntwo\\tthree\\r"),
        ("tag \U000e0041", "tag \\udb40\\udc41"),
        ("Grüße 你好\u3000\xa0😀🫨 [red]x[/]", "Grüße 你好\u3000\xa0😀🫨 [red]x[/]"),
    ],
)
def test_foreign_text_is_shown_with_visible_escapes_and_ordinary_text_as_it_is(
    text: str, shown: str
) -> None:
    assert show_foreign(text) == shown


def test_characters_to_keep_stay() -> None:
    assert show_foreign("a\n\tb\r\x1b", keep="\n\t") == "a\n\tb\\r\\u001b"


@given(st.text())
def test_a_line_of_json_is_printable_and_has_the_same_value(text: str) -> None:
    line = json.dumps(text, ensure_ascii=False)
    escaped = escape_unprintable(line)
    assert escaped.isprintable()
    assert json.loads(escaped) == json.loads(line)
