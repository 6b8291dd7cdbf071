"""Write lines from a thread, so that a full pipe or a full disk never blocks a request."""

import atexit
import errno
import logging
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from select import PIPE_BUF

BATCH_SECONDS = 0.01
"""How long the thread rests once the queue is empty: waking it for each line costs requests more
than writing the line."""

RETRY_SECONDS = 0.5
"""Between two attempts to write lines that could not be written."""

CLOSE_SECONDS = 2.0
"""How long the end of the process waits for lines that are still queued."""

STDERR = 2
TOO_SLOW = "its reader is too slow"
_READER_GONE = (errno.EPIPE, errno.EBADF)
_Entry = tuple[bytes, Callable[[], None] | None]
_END: _Entry = (b"", None)


class LineFile:
    """An open file, pipe or terminal: `path`, or `descriptor` without one.

    A file is created with mode 0600 and opened again once it was renamed or removed.
    """

    def __init__(self, path: Path | None, descriptor: int = STDERR) -> None:
        self.path = path
        self._descriptor = descriptor
        self._identity: tuple[int, int] | None = None
        if path is not None:
            self._open(path)

    def request_reopen(self) -> None:
        """Open the file again before the next write."""
        self._identity = None

    def write(self, lines: bytes) -> tuple[bytes, OSError | None]:
        """Write whole lines; return those that are left and the error that prevented them."""
        rest = lines
        try:
            if self.path is not None:
                self._reopen_if_moved(self.path)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            done = lines[: len(lines) - len(rest)]
            torn = len(done) - done.rfind(b"\n") - 1
            if torn and self._withdraw(torn):
                rest = lines[len(done) - torn :]
            return rest, error
        return b"", None

    def close(self) -> None:
        """Close the file; a descriptor that was given stays open."""
        if self.path is not None and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor, self._identity = -1, None

    def _open(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)
        found = os.fstat(self._descriptor)
        self._identity = found.st_dev, found.st_ino
        if stat.S_ISREG(found.st_mode) and found.st_mode & 0o077 and found.st_uid == os.geteuid():
            os.fchmod(self._descriptor, 0o600)

    def _reopen_if_moved(self, path: Path) -> None:
        try:
            found = path.stat()
        except FileNotFoundError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != self._identity:
            self.close()
            self._open(path)

    def _withdraw(self, size: int) -> bool:
        """Remove the last `size` bytes, a part of a line, from the end of a regular file."""
        found = os.fstat(self._descriptor)
        end = os.lseek(self._descriptor, 0, os.SEEK_CUR) if stat.S_ISREG(found.st_mode) else -1
        if end != found.st_size:
            return False  # not a file, or another process wrote after us
        os.ftruncate(self._descriptor, end - size)
        os.lseek(self._descriptor, end - size, os.SEEK_SET)
        return True


def find_writers() -> "dict[str, LineWriter]":
    """Return the writers that `log` and `audit` lines go through in this process."""
    return {
        name: handler.stream
        for name, logger in (("log", logging.getLogger()), ("audit", logging.getLogger("audit")))
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and isinstance(handler.stream, LineWriter)
    }


class LineWriter:
    """Writes lines to `file` in a thread, in order; at most `capacity` of them wait.

    Further lines are dropped and counted. `describe_dropped` returns the line that reports how
    many; it is written once lines flow again. `report` is called with the problem when writing
    begins to fail, and with None when it succeeds again; it may run in any thread.
    """

    def __init__(
        self,
        file: LineFile,
        capacity: int,
        describe_dropped: Callable[[int], str],
        report: Callable[[str | None], None] = lambda problem: None,
    ) -> None:
        self.file = file
        self.dropped = 0
        self.failures = 0
        """How often writing began to fail."""

        self.problem: str | None = None
        """Why lines cannot be written now."""

        self._capacity = capacity
        self._describe_dropped = describe_dropped
        self._report = report
        self._lines: SimpleQueue[_Entry] = SimpleQueue()
        self._lock = threading.RLock()  # a signal handler may log
        self._noted = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def put(self, text: str, on_written: Callable[[], None] | None = None) -> bool:
        """Queue `text`, a whole line or several; return False if it was dropped.

        `on_written` is called in the thread once `text` is written.
        """
        if self._lines.qsize() >= self._capacity:
            self._drop(1)
            self._set_problem(self.problem or TOO_SLOW)
            return False
        self._lines.put((text.encode(errors="backslashreplace"), on_written))
        return True

    # A stream's methods, so that a StreamHandler can write here.

    def write(self, text: str) -> None:
        """Queue `text`."""
        self.put(text)

    def flush(self) -> None:
        """Do nothing: the thread writes each line as soon as it can."""

    def close(self, within: float = CLOSE_SECONDS) -> None:
        """Write what is queued, for `within` seconds at most, and end the thread."""
        self._closing.set()
        self._lines.put(_END)
        self._thread.join(within)
        if not self._thread.is_alive():
            self.file.close()

    def _run(self) -> None:
        following: _Entry | None = None
        while (entry := following or self._lines.get()) is not _END:
            batch, following = self._collect(entry)
            self._write(batch)
            self._note_dropped()
            if following is None and self._lines.empty():
                self._closing.wait(BATCH_SECONDS)

    def _collect(self, entry: _Entry) -> tuple[list[_Entry], _Entry | None]:
        """Return what waits, but no more than a pipe takes whole, since processes may share it; and
        an entry that was taken beyond that."""
        batch, size = [entry], len(entry[0])
        while size < PIPE_BUF:
            try:
                following = self._lines.get_nowait()
            except Empty:
                break
            size += len(following[0])
            if following is _END or size > PIPE_BUF:
                return batch, following
            batch.append(following)
        return batch, None

    def _write(self, batch: list[_Entry]) -> None:
        """Write the entries, however often that takes."""
        data = b"".join([entry[0] for entry in batch])
        while True:
            data, error = self.file.write(data)
            if error is None:
                break
            self._set_problem(error.strerror or type(error).__name__)
            if error.errno in _READER_GONE or self._closing.wait(RETRY_SECONDS):
                self._drop(data.count(b"\n"))
                return
        for _, on_written in batch:
            if on_written is not None:
                on_written()
        if self.problem is not None and self._lines.qsize() <= self._capacity // 2:
            self._set_problem(None)

    def _drop(self, lines: int) -> None:
        with self._lock:
            self.dropped += lines

    def _note_dropped(self) -> None:
        """Write how many lines were dropped, once lines flow again."""
        count = self.dropped - self._noted
        if count and self.problem is None:
            self._noted += count
            self._write([(self._describe_dropped(count).encode(), None)])

    def _set_problem(self, problem: str | None) -> None:
        with self._lock:
            begins = problem is not None and self.problem is None
            ends = problem is None and self.problem is not None
            self.problem = problem
            self.failures += begins
        if begins or ends:
            self._report(problem)
