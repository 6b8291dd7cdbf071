"""Runs commands in the tests' own process, which is twenty times faster than starting one."""

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import click
import msgspec
from click.testing import CliRunner

from ai_agent_service.main import main
from tests.support.processes import environment

_CONFIGURED = (
    "",
    "uvicorn",
    "uvicorn.error",
    "uvicorn.access",
    "aiosqlite",
    "alembic",
    "asyncio",
    "audit",
    "markdown_it",
    "sqlalchemy",
)


class Done(msgspec.Struct, frozen=True):
    """Result of a command."""

    code: int
    stdout: str
    stderr: str


@contextlib.contextmanager
def logging_restored() -> Generator[None, None, None]:
    """Restore the process's logging, which commands configure, at the end of the block."""
    found = {name: logging.getLogger(name) for name in _CONFIGURED}
    before = {
        name: (logger.level, logger.handlers[:], logger.propagate) for name, logger in found.items()
    }
    try:
        yield
    finally:
        for name, (level, handlers, propagate) in before.items():
            for handler in {*found[name].handlers} - {*handlers}:
                handler.close()
            found[name].setLevel(level)
            found[name].handlers[:] = handlers
            found[name].propagate = propagate


async def command(called: click.Command, folder: Path, *arguments: str, **environment: str) -> Done:
    """Run a command, or one of a group, with the database in `folder` unless the environment names
    another."""

    def invoke() -> Done:
        result = CliRunner().invoke(
            called, arguments, env={"DATA_DIR": str(folder / "data"), **environment}
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stdout, result.stderr)

    return await asyncio.to_thread(invoke)


def invoke(
    folder: Path, *arguments: str, stdin: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Do in this process what `processes.run` does in a new one, but read no .env file.

    A command that starts MCP servers leaves pipes open, which only the end of its process closes.
    """
    own, before, there = environment(**variables), dict(os.environ), Path.cwd()
    runner, code = CliRunner(), 0
    with logging_restored(), runner.isolation(input=stdin) as (stdout, stderr, _):
        os.chdir(folder)
        os.environ.update(own)
        argv, sys.argv = sys.argv, ["ai-agent-service", *arguments]
        try:
            main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        finally:
            sys.argv = argv
            os.environ.clear()
            os.environ.update(before)
            os.chdir(there)
        sys.stdout.flush()
        sys.stderr.flush()
    return subprocess.CompletedProcess(
        arguments, code, stdout.getvalue().decode(), stderr.getvalue().decode()
    )


def unpacked(archive: Path, folder: Path) -> Path:
    """Unpack an archive with tar into a new folder; return the folder."""
    folder.mkdir()
    subprocess.run(["tar", "-xzf", str(archive)], cwd=folder, check=True, timeout=20)
    return folder
