"""Lines that a thread writes: what happens while their reader or their disk does not take them."""

import contextlib
import json
import os
import resource
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from ai_agent_service.observability.line_writer import TOO_SLOW, LineFile, LineWriter

WAIT = 10.0


class Reports:
    """Problems that a writer reported, and an event for each kind."""

    def __init__(self) -> None:
        self.seen: list[str | None] = []
        self.failed, self.back = threading.Event(), threading.Event()

    def __call__(self, problem: str | None) -> None:
        self.seen.append(problem)
        (self.back if problem is None else self.failed).set()


def describe(count: int) -> str:
    return f"{count} lines were dropped\n"


@contextlib.contextmanager
def writing(
    file: LineFile, capacity: int = 1000
) -> Generator[tuple[LineWriter, Reports], None, None]:
    reports = Reports()
    writer = LineWriter(file, capacity, describe, reports)
    try:
        yield writer, reports
    finally:
        writer.close()


class Pipe:
    """A pipe, and a thread that reads it once it is started."""

    def __init__(self) -> None:
        self.reading_end, self.writing_end = os.pipe()
        self.seen: list[str] = []
        self._reader = threading.Thread(target=self._read)

    def _read(self) -> None:
        with os.fdopen(self.reading_end, encoding="utf-8") as file:
            self.seen += file.read().splitlines()

    def start(self) -> None:
        self._reader.start()

    def finish(self) -> list[str]:
        """Return all lines; nothing writes any more."""
        os.close(self.writing_end)
        self._reader.join(WAIT)
        return self.seen


@contextlib.contextmanager
def file_limit(size: int) -> Generator[None, None, None]:
    """Let no file grow beyond `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_pipe_that_nobody_reads_blocks_no_caller_and_drops_are_counted() -> None:
    pipe = Pipe()
    with writing(LineFile(None, pipe.writing_end), 100) as (writer, reports):
        kept = [number for number in range(2000) if writer.put(f"{number} {'x' * 1000}\n")]
        assert (writer.problem, reports.seen) == (TOO_SLOW, [TOO_SLOW])
        assert writer.dropped == 2000 - len(kept) > 1500
        pipe.start()
        assert reports.back.wait(WAIT)
    lines = pipe.finish()
    assert [int(line.split()[0]) for line in lines if line.endswith("x")] == kept
    assert [line for line in lines if not line.endswith("x")] == [describe(writer.dropped).strip()]


def test_closing_waits_no_longer_than_it_may_for_a_pipe_that_nobody_reads() -> None:
    pipe = Pipe()
    writer = LineWriter(LineFile(None, pipe.writing_end), 1000, describe)
    for _ in range(200):
        writer.put("x" * 1000 + "\n")
    waiting = threading.Thread(target=writer.close, args=(0.1,))
    waiting.start()
    waiting.join(WAIT)
    assert not waiting.is_alive()
    pipe.start()
    writer.close(WAIT)
    assert len(pipe.finish()) == 200


def test_a_reader_that_is_gone_costs_lines_and_nothing_else() -> None:
    pipe = Pipe()
    os.close(pipe.reading_end)
    with writing(LineFile(None, pipe.writing_end)) as (writer, reports):
        writer.put("lost\n")
        assert reports.failed.wait(WAIT)
        assert reports.seen == ["Broken pipe"]
    assert writer.dropped == 1
    os.close(pipe.writing_end)


def test_a_full_disk_tears_no_line_and_what_waits_is_written_once_there_is_room(
    tmp_path: Path,
) -> None:
    file = tmp_path / "log"
    lines = [json.dumps({"number": number, "text": "x" * 90}) for number in range(50)]
    with writing(LineFile(file)) as (writer, reports):
        with file_limit(1000):
            for line in lines:
                writer.put(f"{line}\n")
            assert reports.failed.wait(WAIT)
            text = file.read_text(encoding="utf-8")
            assert text.endswith("\n")
            assert text.splitlines() == lines[: text.count("\n")]
        assert reports.back.wait(WAIT)
    assert reports.seen == ["File too large", None]
    assert file.read_text(encoding="utf-8").splitlines() == lines
    assert (writer.dropped, writer.failures) == (0, 1)


def test_lines_that_waited_for_a_full_disk_at_the_end_are_counted_as_dropped(
    tmp_path: Path,
) -> None:
    with file_limit(10), writing(LineFile(tmp_path / "log")) as (writer, reports):
        writer.put("0123456789\n" * 3)
        assert reports.failed.wait(WAIT)
        writer.close()
    assert writer.dropped == 3
    assert (tmp_path / "log").read_text(encoding="utf-8") == ""


@pytest.mark.parametrize("how", ["renamed", "removed"])
def test_a_file_that_was_moved_is_opened_again(tmp_path: Path, how: str) -> None:
    file, written = tmp_path / "log", threading.Event()
    with writing(LineFile(file)) as (writer, _):
        writer.put("first\n", written.set)
        assert written.wait(WAIT)
        if how == "renamed":
            file.rename(tmp_path / "log.1")
        else:
            file.unlink()
        writer.put("second\n")
    assert file.read_text(encoding="utf-8") == "second\n"
    if how == "renamed":
        assert (tmp_path / "log.1").read_text(encoding="utf-8") == "first\n"


def test_a_folder_that_was_removed_is_an_outage_that_ends_when_it_is_back(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    with writing(LineFile(folder / "log")) as (writer, reports):
        (folder / "log").unlink()
        folder.rmdir()
        writer.put("waits\n")
        assert reports.failed.wait(WAIT)
        folder.mkdir()
        assert reports.back.wait(WAIT)
    assert reports.seen == ["No such file or directory", None]
    assert (folder / "log").read_text(encoding="utf-8") == "waits\n"


def test_only_the_owner_may_read_the_file_also_if_it_was_there(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.touch(mode=0o644)
    for file in (old, tmp_path / "new"):
        LineFile(file).close()
        assert file.stat().st_mode & 0o777 == 0o600


def test_writers_that_share_a_pipe_tear_no_line_of_each_other() -> None:
    pipe = Pipe()
    file = LineFile(None, pipe.writing_end)
    with writing(file, 5000) as (one, _), writing(file, 5000) as (two, _):
        for number in range(1000):
            one.put(f"a{number} {'a' * 300}\n")
            two.put(f"b{number} {'b' * 300}\n")
        pipe.start()
        one.close(WAIT)
        two.close(WAIT)
    seen = pipe.finish()
    for name in "ab":
        found = [line for line in seen if line.startswith(name)]
        assert [line == f"{name}{n} {name * 300}" for n, line in enumerate(found)] == [True] * 1000
