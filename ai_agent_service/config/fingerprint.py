"""Tells whether the operator's files have changed, by reading them: that works on every file
system, and for links that are switched."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ai_agent_service.config.json_files import strip_comments

_PROMPT_FILE_FIELDS = frozenset({"system_prompt_file", "prompt_file"})


def hash_files(agents: Path, servers: Path, prompts: Path) -> bytes:
    """A digest of what the two files and the prompts hold that `agents` names. A file that is not
    there, or cannot be read, counts too."""
    digest = hashlib.sha256()
    first = _read(agents)
    for content in (
        first,
        _read(servers),
        *(
            _read(folder / name)
            for name in _find_prompt_files(first)
            for folder in (prompts, prompts.parent)
        ),
    ):
        digest.update(b"-" if content is None else b"+%d:%b" % (len(content), content))
    return digest.digest()


def _find_prompt_files(agents: bytes | None) -> list[str]:
    """The names of prompt files in agent_config.json; none while that is not JSON."""
    with suppress(ValueError, RecursionError):
        return sorted(
            set(_find_names(json.loads(strip_comments((agents or b"null").decode("utf-8-sig")))))
        )
    return []


def _find_names(value: object) -> Iterator[str]:
    for inner in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        yield from _find_names(inner)
    if isinstance(value, dict):
        yield from (
            name for field in _PROMPT_FILE_FIELDS if isinstance(name := value.get(field), str)
        )


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes() if path.is_file() else None
    except (OSError, ValueError):
        return None
