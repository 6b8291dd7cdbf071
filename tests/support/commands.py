"""Runs the commands on the database in this process, as an operator would in theirs."""

import asyncio
import contextlib
import logging
from collections.abc import Generator
from pathlib import Path

import click
import msgspec
from click.testing import CliRunner

_CONFIGURED = (
    "",
    "uvicorn",
    "uvicorn.error",
    "uvicorn.access",
    "aiosqlite",
    "alembic",
    "asyncio",
    "markdown_it",
    "sqlalchemy",
)


class Done(msgspec.Struct, frozen=True):
    """What a command came to."""

    code: int
    stdout: str
    stderr: str


@contextlib.contextmanager
def logging_restored() -> Generator[None, None, None]:
    """Undoes what the commands do to the logging of their process, which here is that of the
    tests."""
    found = {name: logging.getLogger(name) for name in _CONFIGURED}
    before = {
        name: (logger.level, logger.handlers[:], logger.propagate) for name, logger in found.items()
    }
    try:
        yield
    finally:
        for name, (level, handlers, propagate) in before.items():
            found[name].setLevel(level)
            found[name].handlers[:] = handlers
            found[name].propagate = propagate


async def command(called: click.Command, folder: Path, *arguments: str, **environment: str) -> Done:
    """What a command, or one of a group, comes to, with the database in `folder` unless the
    environment says otherwise."""

    def invoke() -> Done:
        result = CliRunner().invoke(
            called, arguments, env={"DATA_DIR": str(folder / "data"), **environment}
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stdout, result.stderr)

    return await asyncio.to_thread(invoke)
