"""Read server-sent events from pieces of bytes that may be cut anywhere (WHATWG HTML, 9.2.6)."""

from ai_agent_service.core.errors import ProviderProtocolError

MAX_EVENT_BYTES = 16 * 1024 * 1024


class EventReader:
    """Turns pieces of a stream into the data of its events; ignores comments and other fields."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0
        self._begun = False
        self._after_cr = False

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the data of each event that `piece` completes; raises ProviderProtocolError for
        one over 16 MiB."""
        if not self._begun:
            piece = self._rest + piece
            self._rest = b""
            if len(piece) < 3 and b"\xef\xbb\xbf".startswith(piece):
                self._rest = piece
                return []
            self._begun = True
            piece = piece.removeprefix(b"\xef\xbb\xbf")
        if self._after_cr and piece:
            piece = piece.removeprefix(b"\n")
            self._after_cr = False
        if b"\r" in piece:
            self._after_cr = piece.endswith(b"\r")
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = piece.split(b"\n")
        if self._rest:
            lines[0] = self._rest + lines[0]
        self._rest = lines.pop()
        events = []
        for line in lines:
            if line:
                if line.startswith(b"data"):
                    self._take(line)
            elif self._data:
                events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                self._data, self._size = [], 0
        if len(self._rest) + self._size > MAX_EVENT_BYTES:
            raise ProviderProtocolError("The provider sent an event of more than 16 MiB.")
        return events

    def close(self) -> list[bytes]:
        """Return the data of an event that the stream's end left without its blank line."""
        if self._rest.startswith(b"data"):
            self._take(self._rest)
        self._rest = b""
        data, self._data = self._data, []
        return [b"\n".join(data)] if data else []

    def _take(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            value = line[6:] if line.startswith(b"data: ") else line[5:]
        elif line == b"data":
            value = b""
        else:
            return  # another field whose name begins with "data"
        self._data.append(value)
        self._size += len(line) + 1
