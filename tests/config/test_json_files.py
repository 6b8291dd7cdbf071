"""The operator's JSON files: what may stand in them beside JSON."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_agent_service.config.json_files import read_json, strip_comments

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.sampled_from(["//", "/*", "*/", '"//', "\\", "a\\", ",]", ', }"']),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)

COMMENTED = """\
// what it is for, with "quotes
{
  "url": "https://host//path", /* of the
  server, ] */ "list": [1, 2, // the last one,
  ],
  "text": "// no, /* no */ ,]",
  // "off": true,
}
"""


@given(VALUES, st.sampled_from([None, 2]), st.booleans())
def test_plain_json_stays_as_it_is(value: object, indent: int | None, ascii: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii)
    assert strip_comments(text) == text


def test_comments_and_last_commas_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(COMMENTED, encoding="utf-8")
    assert read_json(tmp_path / "x.json") == (
        {"url": "https://host//path", "list": [1, 2], "text": "// no, /* no */ ,]"},
        [],
    )


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('// one\n/* two\n three */ {"a": nope}', "line 3, column 17"),
        ('{"a" /* never ends', "line 1, column 6"),
        ('{"a": "never ends // }', "line 1, column 7"),
        ("[1] /", "line 1, column 5"),
    ],
)
def test_a_fault_is_told_where_it_stands_in_the_file(tmp_path: Path, text: str, place: str) -> None:
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    value, [fault] = read_json(tmp_path / "x.json")
    assert (value, fault.where) == (None, place)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        "/* " * 100_000,
        '["' + "a\\n" * 1_000_000 + '"]',
        '"' * 1_000_000,
        "/" * 1_000_000,
        ", " * 500_000,
    ],
)
def test_what_is_long_or_never_ends_is_looked_through_once(text: str) -> None:
    assert len(strip_comments(text)) == len(text)
