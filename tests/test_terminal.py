"""The terminal chat: where Markdown that still grows may be cut."""

import pytest

from app.terminal import _whole_blocks

LIST = "1. Step:\n\n   ```bash\n   cmd\n   ```\n\n2. More\n\n   of step two\n3. Third\n"


@pytest.mark.parametrize(
    ("text", "whole", "rest"),
    [
        ("One.\n\nTwo", "One.", "Two"),
        ("One paragraph\nthat goes on\n", "", "One paragraph\nthat goes on\n"),
        (f"{LIST}", "", LIST),
        (f"Do this:\n\n{LIST}\nDone.", f"Do this:\n\n{LIST.rstrip()}", "Done."),
        ("```\na\n\nb\n", "", "```\na\n\nb\n"),
        ("# Title\n\n| a | b |\n|---|---|\n| 1 | 2 |\n", "# Title", "| a | b |\n|---|---|\n| 1 | 2 |\n"),
    ],
)
def test_only_blocks_that_cannot_grow_any_more_are_cut_off(text: str, whole: str, rest: str) -> None:
    assert _whole_blocks(text) == (whole, rest)
