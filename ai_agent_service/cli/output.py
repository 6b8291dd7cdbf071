"""How far a command is: a bar on a terminal, a line for each thing done elsewhere, both on standard
error."""

from typing import Self

from rich.console import Console
from rich.progress import Progress, TaskID

from ai_agent_service.cli.streams import echo
from ai_agent_service.core.text import show_foreign


class ProgressReporter:
    """Counts `things`, of which there are `total` to be done, and `done` at the beginning."""

    def __init__(self, things: str, total: int, done: int = 0) -> None:
        console = Console(stderr=True)
        self._things, self._total, self._done = things, total, done
        self._bar = Progress(console=console) if console.is_terminal else None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._things, total=self._total, completed=self._done)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, words: str) -> None:
        """Counts one more, of which `words` are shown where there is no bar."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        else:
            echo(f"[{self._done}/{self._total}] {words}", err=True)


def format_table(rows: list[tuple[str, ...]]) -> str:
    """`rows`, the first of which are the columns' names, as lines of columns."""
    rows = [tuple(map(show_foreign, row)) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
