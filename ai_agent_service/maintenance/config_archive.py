"""Packs the files of the configuration into an archive."""

import os
import tarfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import IO

from ai_agent_service.config.locations import locate_files
from ai_agent_service.config.settings import Settings


def pack(settings: Settings, file: IO[bytes], *, without: Iterable[Path] = ()) -> tuple[str, ...]:
    """Writes the files and folders that the settings name to a `tar.gz`; gives their names in it.

    In the working folder they are named from there, elsewhere from the root; where the starter set
    is served, its files are packed by the names that they would have. Links are followed; hidden
    files, the data folder and those of `without` are left out. Raises OSError, also for one that
    has to be there and is not.
    """
    left_out = {_normalize_path(path) for path in (settings.data_dir, *without)}
    names = []
    with tarfile.open(fileobj=file, mode="w:gz", dereference=True) as archive:
        for named, path in _list_files(settings):
            full = _normalize_path(named)
            base = Path.cwd() if full.is_relative_to(Path.cwd()) else Path(full.anchor)
            names.append(full.relative_to(base).as_posix())
            archive.add(
                path,
                names[-1],
                filter=partial(_filter_member, names[-1], _normalize_path(path), left_out),
            )
    return tuple(names)


def _list_files(settings: Settings) -> list[tuple[Path, Path]]:
    """Each as the settings name it, and where it lies."""
    files = locate_files(settings)
    optional = [(settings.mcp_config_file, files.servers), (settings.prompts_dir, files.prompts)]
    plugins = [] if settings.plugins_dir is None else [(settings.plugins_dir, settings.plugins_dir)]
    return [
        (settings.agent_config_file, files.agents),
        *plugins,
        *(pair for pair in optional if pair[1].exists()),
    ]


def _normalize_path(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))


def _filter_member(
    name: str, top: Path, left_out: set[Path], member: tarfile.TarInfo
) -> tarfile.TarInfo | None:
    """`member` of what is packed from `top` as `name`, unless it is left out."""
    path = top / Path(member.name).relative_to(name)
    is_ours = path == top or not (path.name.startswith(".") or path.name == "__pycache__")
    return member if is_ours and path not in left_out else None
