"""Read server-sent events from pieces of bytes that may be cut anywhere (WHATWG HTML, 9.2.6)."""

import msgspec

from ai_agent_service.core.bounds import MAX_EVENT_BYTES
from ai_agent_service.core.errors import ProviderProtocolError

_BOM = b"\xef\xbb\xbf"


class EventReader:
    """Turns pieces of a stream into the data of its events.

    Ignores comments, other fields and events without data, which keep a connection open. A body
    that is JSON in place of events is returned whole by `close`.
    """

    def __init__(self) -> None:
        self._rest = b""  # before anything but blanks
        self._pieces: list[bytes] = []
        self._held = 0
        self._data: list[bytes] = []
        self._size = 0
        self._begun = False
        self._is_json = False
        self._after_cr = False

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the data of each event that `piece` completes; raises ProviderProtocolError for
        one over 16 MiB."""
        if (
            piece.startswith(b"data: ")
            and piece.endswith(b"\n\n")
            and piece.count(b"\n") == 2
            and b"\r" not in piece
            and self._begun
            and not (self._pieces or self._data or self._after_cr)
        ):  # the usual case
            data = piece[6:-2]
            return [data] if data.strip() else []
        if not self._begun:
            piece, self._rest = self._rest + piece, b""
            start = piece.removeprefix(_BOM).lstrip()
            if not start or _BOM.startswith(piece):
                self._rest = piece
                self._check_size()
                return []
            self._begun = True
            self._is_json = start[:1] in (b"{", b"[")
            piece = piece.removeprefix(_BOM)
        if self._is_json:
            self._data.append(piece)
            self._size += len(piece)
            self._check_size()
            return []
        if self._after_cr and piece:
            piece = piece.removeprefix(b"\n")
            self._after_cr = False
        if b"\r" in piece:
            self._after_cr = piece.endswith(b"\r")
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = piece.split(b"\n")
        if self._pieces:  # of a line that is joined once it is complete
            self._pieces.append(lines[0])
            self._held += len(lines[0])
            if len(lines) == 1:
                self._check_size()
                return []
            lines[0] = b"".join(self._pieces)
        rest = lines.pop()
        self._pieces, self._held = [rest] if rest else [], len(rest)
        events = []
        for line in lines:
            if line:
                if line.startswith(b"data"):
                    self._take(line)
            elif self._data:
                events += self._end_event()
        self._check_size()
        return events

    def close(self) -> list[bytes]:
        """Return the data of an event that the stream's end left without its blank line."""
        rest, self._pieces = b"".join(self._pieces), []
        if rest.startswith(b"data"):
            self._take(rest)
        if self._is_json:
            self._data = [b"".join(self._data)]
        return self._end_event()

    def _end_event(self) -> list[bytes]:
        """Return the data of the event, or of several that have no blank line between them."""
        data = self._data
        self._data, self._size = [], 0
        if len(data) > 1 and not all(map(_is_alone, data)):
            data = [b"\n".join(data)]
        return [each for each in data if each.strip()]

    def _check_size(self) -> None:
        if len(self._rest) + self._held + self._size > MAX_EVENT_BYTES:
            raise ProviderProtocolError("The provider sent an event of more than 16 MiB.")

    def _take(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            value = line[6:] if line.startswith(b"data: ") else line[5:]
        elif line == b"data":
            value = b""
        else:
            return  # another field whose name begins with "data"
        self._data.append(value)
        self._size += len(line) + 1


def _is_alone(line: bytes) -> bool:
    """Return whether a line of data is a whole JSON object, or the end of the stream."""
    line = line.strip()
    if line == b"[DONE]":
        return True
    if not (line.startswith(b"{") and line.endswith(b"}")):
        return False
    try:
        msgspec.json.decode(line, type=msgspec.Raw)
    except msgspec.DecodeError:
        return False
    return True
