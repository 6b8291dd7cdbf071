"""Text made safe."""

from hypothesis import given
from hypothesis import strategies as st

from ai_agent_service.core.text import replace_unstorable, truncate_utf8


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
