"""Print on the standard streams: foreign text safely, and no fault if a stream is closed."""

import os
import sys
from contextlib import nullcontext, suppress

import click

from ai_agent_service.core.text import show_foreign


def echo(text: str = "", *, err: bool = False) -> None:
    """Print `text`, of which parts may be foreign, on standard output or error.

    Standard error that cannot be written to ends no command.
    """
    with suppress(OSError) if err else nullcontext():
        click.echo(show_foreign(text, keep="\n\t"), err=err)


def open_closed_streams() -> None:
    """Open the null device in place of each standard stream that is closed, so that no other file
    takes its number."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
            # It stays open for as long as the process runs.
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115


def release_broken_streams() -> None:
    """Discard what cannot be written, which would change the exit code to 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
