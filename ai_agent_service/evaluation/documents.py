"""The documents that cases are written about, in pieces that a model can be given."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from ai_agent_service.config.json_files import read_text
from ai_agent_service.core.errors import ConfigError, Fault

SUFFIXES = (".md", ".markdown", ".txt")
MAX_PIECE_CHARACTERS = 6_000
"""Characters of a piece at most, which are about 1500 tokens."""

_BREAK = re.compile(r"\n(?=#{1,6} )|\n[^\S\n]*\n")
"""Where a text may be cut: before a heading, and between paragraphs."""


class Piece(msgspec.Struct, frozen=True):
    """A part of the document `source`, with all of the words in it."""

    source: str
    text: str


def read_documents(paths: Iterable[Path]) -> tuple[list[Piece], list[Path]]:
    """What is in the files of `paths` and of the folders among them, and which files of folders are
    left out.

    Raises ConfigError with all files that cannot be used, and folders without one that can.
    """
    files: dict[Path, bool] = {}
    left_out: list[Path] = []
    faults: list[Fault] = []
    for path in paths:
        if not path.is_dir():
            files[path] = True
            continue
        inside = sorted(_list_files(path))
        usable = [file for file in inside if file.suffix.lower() in SUFFIXES]
        left_out += [file for file in inside if file.suffix.lower() not in SUFFIXES]
        if not usable:
            problem = f"there is no file in it whose name ends with {_format_suffixes()}"
            faults.append(Fault(file=str(path), problem=problem, remedy="Name another"))
        for file in usable:
            files.setdefault(file, False)
    pieces: list[Piece] = []
    for file, is_named in files.items():
        if file.suffix.lower() not in SUFFIXES:
            kind = f"{file.suffix} files" if file.suffix else "files without an ending"
            problem = f"cases are written from {_format_suffixes()} and not from {kind}"
            faults.append(Fault(file=str(file), problem=problem, remedy="Save it as text"))
            continue
        text = read_text(file)
        if isinstance(text, Fault):
            faults.append(text)
        elif text.strip():
            pieces += (Piece(str(file), part) for part in split_text(text))
        elif is_named:
            problem = "there is nothing in it"
            faults.append(Fault(file=str(file), problem=problem, remedy="Name another"))
        else:
            left_out.append(file)
    if not pieces and not faults:
        names, problem = ", ".join(map(str, left_out)), "there is nothing in any of them"
        faults.append(Fault(file=names, problem=problem, remedy="Name others"))
    if faults:
        raise ConfigError(faults)
    return pieces, left_out


def split_text(text: str, limit: int = MAX_PIECE_CHARACTERS) -> list[str]:
    """`text` in parts of at most `limit` characters, cut before headings and between paragraphs
    where that is possible."""
    parts: list[str] = []
    for block in _BREAK.split(text.replace("\r\n", "\n")):
        for start in range(0, len(block), limit):
            piece = block[start : start + limit]
            if parts and start == 0 and len(parts[-1]) + len(piece) + 2 <= limit:
                parts[-1] = f"{parts[-1]}\n\n{piece}"
            else:
                parts.append(piece)
    return [part.strip() for part in parts if part.strip()]


def allocate_cases(pieces: Sequence[Piece], count: int) -> list[tuple[Piece, int]]:
    """How many of `count` cases are to come from each piece, by their lengths; of too many pieces
    those at even distances."""
    if len(pieces) >= count:
        return [(pieces[number * len(pieces) // count], 1) for number in range(count)]
    total = sum(len(piece.text) for piece in pieces)
    shares = [1 + (count - len(pieces)) * len(piece.text) / total for piece in pieces]
    whole = [int(share) for share in shares]
    by_rest = sorted(range(len(pieces)), key=lambda number: whole[number] - shares[number])
    for number in by_rest[: count - sum(whole)]:
        whole[number] += 1
    return list(zip(pieces, whole, strict=True))


def _list_files(folder: Path) -> Iterable[Path]:
    """The files of `folder` and its folders, but for hidden ones."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place) / name for name in names if not name.startswith("."))


def _format_suffixes() -> str:
    return f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
