"""The text of a key: its parts, its checksum, and what is not a key."""

import re
import string

from hypothesis import given, settings
from hypothesis import strategies as st

from ai_agent_service.auth.keys.format import ParsedKey, generate_key, parse_key


def test_a_key_says_which_it_is_and_has_a_secret_of_190_bits() -> None:
    made = generate_key()
    assert re.fullmatch(r"aas_[0-9A-Za-z]{12}_[0-9A-Za-z]{32}[0-9A-Za-z]{6}", made.text)
    assert parse_key(made.text) == made
    assert len({generate_key().text for _ in range(50)}) == 50
    assert generate_key(made.key_id).key_id == made.key_id
    assert made.secret not in repr(made)


def test_the_checksum_is_known() -> None:
    assert ParsedKey("0" * 12, "A" * 32).text == f"aas_{'0' * 12}_{'A' * 32}2z7UBP"


@given(
    st.text(alphabet=string.printable, max_size=80)
    | st.text()
    | st.from_regex(r"\Aaas_[0-9A-Za-z]{12}_[0-9A-Za-z]{38,70}\Z")
)
def test_any_text_is_parsed_or_malformed(text: str) -> None:
    found = parse_key(text)
    assert found is None or found.text == text


@given(st.data())
@settings(deadline=None)
def test_a_key_with_one_character_changed_is_malformed(data: st.DataObject) -> None:
    key = ParsedKey("Key000000001", "Secret" * 5 + "00").text
    place = data.draw(st.integers(0, len(key) - 1))
    other = data.draw(st.characters(exclude_characters=key[place]))
    assert parse_key(key[:place] + other + key[place + 1 :]) is None
    assert parse_key(key[:place] + key[place + 1 :]) is None
