"""Finds an agent's prompt file within the prompts folder and reads it."""

from pathlib import Path

from ai_agent_service.config.json_files import read_text
from ai_agent_service.core.errors import Fault


def read_prompt(folder: Path, name: str) -> str | Fault:
    """The text of the prompt file `name` in `folder`, or what is wrong with it; the file lies
    within the folder, links followed."""
    inside = f"Name a file within {folder}"
    if "\x00" in name:
        return Fault(file="(a name with NUL)", problem="no file has such a name", remedy=inside)
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts:
        problem = "a prompt file is named relative to the prompts folder and without '..'"
        return Fault(file=name, problem=problem, remedy=inside)
    path = folder / relative
    try:
        if not path.exists() and relative.parts[:1] == (folder.name,):
            path = folder.parent / relative  # "prompts/name.txt" is taken for "name.txt"
        if not path.resolve().is_relative_to(folder.resolve()):
            problem = "this link leads out of the prompts folder"
            return Fault(file=str(path), problem=problem, remedy=inside)
        if path.exists() and not (path.is_file() or path.is_dir()):
            return Fault(file=str(path), problem="this is not a file", remedy=inside)
    except (OSError, RuntimeError):
        return Fault(file=name[:100], problem="no file can be found under this name", remedy=inside)
    text = read_text(path)
    if isinstance(text, Fault):
        return text
    if not text.strip():
        remedy = "Write what the agent is to do"
        return Fault(file=str(path), problem="the prompt is empty", remedy=remedy)
    return text.strip()
