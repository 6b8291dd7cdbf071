"""Packs the files of the configuration into an archive."""

import os
import tarfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import IO

from app.config.settings import Settings


def pack(settings: Settings, file: IO[bytes], *, without: Iterable[Path] = ()) -> tuple[str, ...]:
    """Writes the files and folders that the settings name to a `tar.gz`; gives their names in it.

    In the working folder they are named from there, elsewhere from the root. Links are followed; hidden files, the data folder and
    those of `without` are left out. Raises OSError, also for one that has to be there and is not.
    """
    left_out = {_full(path) for path in (settings.data_dir, *without)}
    names = []
    with tarfile.open(fileobj=file, mode="w:gz", dereference=True) as archive:
        for path in map(_full, _files(settings)):
            base = Path.cwd() if path.is_relative_to(Path.cwd()) else Path(path.anchor)
            names.append(path.relative_to(base).as_posix())
            archive.add(path, names[-1], filter=partial(_kept, base, path, left_out))
    return tuple(names)


def _files(settings: Settings) -> list[Path]:
    always = [settings.agent_config_file, *([settings.plugins_dir] if settings.plugins_dir is not None else [])]
    return [*always, *(path for path in (settings.mcp_config_file, settings.prompts_dir) if path.exists())]


def _full(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))


def _kept(base: Path, top: Path, left_out: set[Path], member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """`member`, which is below `top`, unless it is left out."""
    path = base / member.name
    is_ours = path == top or not (path.name.startswith(".") or path.name == "__pycache__")
    return member if is_ours and path not in left_out else None
