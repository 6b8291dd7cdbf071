"""Documents are read, refused by name, and cut into pieces between which cases are shared out."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_agent_service.core.errors import ConfigError
from ai_agent_service.evaluation.documents import Piece, allocate_cases, read_documents, split_text


def written(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_a_folder_is_read_with_what_is_in_its_folders_and_the_rest_is_told(tmp_path: Path) -> None:
    folder = written(
        tmp_path,
        a_md="# A\n\nOne.",
        sub__b_TXT="Two.",
        sub__c_pdf="%PDF",
        _git__d_md="hidden",
        e_markdown=" \n",
    )
    pieces, left_out = read_documents([folder, folder / "a.md"])
    assert [(Path(piece.source).name, piece.text) for piece in pieces] == [
        ("a.md", "# A\n\nOne."),
        ("b.TXT", "Two."),
    ]
    assert sorted(path.name for path in left_out) == ["c.pdf", "e.markdown"]


def test_what_cannot_be_used_is_told_all_at_once(tmp_path: Path) -> None:
    folder = written(tmp_path, x_pdf="%PDF", y_md=" ", only__z_png="png")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError) as caught:
        read_documents(
            [
                folder / "x.pdf",
                folder / "y.md",
                folder / "latin.txt",
                folder / "none.md",
                folder / "only",
            ]
        )
    told = {Path(fault.file).name: fault.problem for fault in caught.value.faults}
    assert told == {
        "x.pdf": "cases are written from .md, .markdown or .txt and not from .pdf files",
        "y.md": "there is nothing in it",
        "latin.txt": "it is not UTF-8 text (byte 3)",
        "none.md": "the file does not exist",
        "only": "there is no file in it whose name ends with .md, .markdown or .txt",
    }


def test_a_text_is_cut_before_headings_and_between_paragraphs() -> None:
    assert split_text("# A\nOne.\n# B\nTwo.\n\nThree.", 12) == ["# A\nOne.", "# B\nTwo.", "Three."]
    assert split_text("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]


@given(text=st.text(alphabet=" ab#\n\r\té", max_size=300), limit=st.integers(1, 40))
def test_nothing_is_lost_by_cutting(text: str, limit: int) -> None:
    parts = split_text(text, limit)
    assert all(0 < len(part) <= limit for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())


@given(lengths=st.lists(st.integers(1, 6_000), min_size=1, max_size=30), count=st.integers(1, 60))
def test_as_many_cases_are_shared_out_as_are_wanted(lengths: list[int], count: int) -> None:
    shares = allocate_cases(
        [Piece(str(number), "x" * length) for number, length in enumerate(lengths)], count
    )
    assert sum(share for _, share in shares) == count
    assert all(share > 0 for _, share in shares)
    assert len(shares) == min(len(lengths), count)
    for one, share in shares:
        for other, more in shares:
            assert len(lengths) >= count or len(one.text) <= len(other.text) or share >= more
