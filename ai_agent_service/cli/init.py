"""ai-agent-service init: writes a starter set of files to edit."""

import os
import shlex
from pathlib import Path

import click

from ai_agent_service.cli.conventions import EXIT_CONFIGURATION
from ai_agent_service.cli.streams import echo
from ai_agent_service.config.env_template import render_env_file
from ai_agent_service.config.locations import STARTER_FOLDER

GITIGNORE = """\
# Keys and conversations belong into no repository.
.env
data/
evaluations/output/
"""


class _WriteError(click.ClickException):
    exit_code = EXIT_CONFIGURATION


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path())
@click.option(
    "--force",
    is_flag=True,
    help="Overwrite files that are there already, .env with the keys in it too.",
)
def init(folder: Path, force: bool) -> None:
    """Write a starter set of agents, prompts, MCP servers and settings, with comments, into FOLDER
    (by default this one)."""
    written = kept = 0
    for name, text in _read_starter_files().items():
        if _write(folder, name, text, force=force):
            written += 1
            echo(f"wrote  {folder / name}")
        else:
            kept += 1
            echo(f"kept   {folder / name}   (it is there already)")
    if kept:
        echo(f"{written} files written, {kept} kept as they were; --force overwrites them.")
    where = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
    echo("\nPut a provider's key into .env, or none to try the demo provider. Then:")
    echo(f"  {where}ai-agent-service check && ai-agent-service serve")


def _read_starter_files() -> dict[str, str]:
    """The texts of the files by their names."""
    names = (
        "agent_config.json",
        "mcp.json",
        *(f"prompts/{path.name}" for path in sorted((STARTER_FOLDER / "prompts").iterdir())),
    )
    texts = {name: (STARTER_FOLDER / name).read_text(encoding="utf-8") for name in names}
    return {**texts, ".env": render_env_file(), ".gitignore": GITIGNORE}


def _write(folder: Path, name: str, text: str, *, force: bool) -> bool:
    """Whether the file was written, which it is not where it is there and `force` is not. What
    cannot be written ends the command."""
    path = folder / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if force:
            path.unlink(missing_ok=True)  # a link is replaced, and what it leads to stays
        descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if name == ".env" else 0o666
        )
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        if error.filename == str(path):
            return False
        raise _build_write_error(path, "a file stands where a folder is needed") from error
    except OSError as error:
        raise _build_write_error(path, error.strerror or str(error)) from error
    return True


def _build_write_error(path: Path, problem: str) -> click.ClickException:
    return _WriteError(
        f"{path} cannot be written: {problem}. Name a folder that can be: ai-agent-service init"
        " FOLDER"
    )
