"""Bound what an MCP server makes this process read and decode."""

import asyncio
import re
import time
from collections import deque

from ai_agent_service.core.bounds import MAX_MCP_VALUES, MCP_BURST_BYTES

BYTES_PER_SECOND = 16 * 1024 * 1024

MESSAGE_COST, VALUE_COST = 4096, 32
"""What a message, and each value in it, count as, in bytes: they cost time beyond their size."""

YIELD_COST = 256 * 1024
"""After so much, other tasks run first."""


PIECE_BYTES = 64 * 1024
"""How much is read at once."""

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
"""A text in JSON. One without an end goes to the end of the message, which would else be searched
again from each quote in it."""


class MessageTooLargeError(Exception):
    """A message is beyond the bounds; the text says which, as `it is longer than ...`."""


class Pace:
    """Slows reading down to `rate` a second once `burst` are used up."""

    def __init__(self, rate: int = BYTES_PER_SECOND, burst: int = MCP_BURST_BYTES) -> None:
        self._rate, self._burst = rate, burst
        self._left, self._spent, self._before = float(burst), 0, time.monotonic()

    def charge(self, cost: int) -> None:
        """Note that something was read."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._before) * self._rate) - cost
        self._before = now
        self._spent += cost

    async def wait(self) -> None:
        """Return when reading may go on."""
        if self._left < 0:
            await asyncio.sleep(-self._left / self._rate)
        elif self._spent >= YIELD_COST:
            await asyncio.sleep(0)
        else:
            return
        self._spent = 0


def check_message(message: bytes) -> int:
    """Return what `message` costs; raises MessageTooLargeError if it has too many values."""
    values = _count_values(message)
    if values > MAX_MCP_VALUES:  # commas and brackets in its texts are none
        values = _count_values(_STRING.sub(b"", message))
        if values > MAX_MCP_VALUES:
            raise MessageTooLargeError(f"it has more than {MAX_MCP_VALUES:,} values")
    return len(message) + MESSAGE_COST + values * VALUE_COST


def describe_limit(limit: int) -> str:
    """Return a number of bytes in words."""
    return f"{limit / 1024 / 1024:g} MiB" if limit >= 1024 * 1024 else f"{limit} bytes"


def _count_values(message: bytes) -> int:
    return message.count(b",") + message.count(b"[") + message.count(b"{")


class LineReader:
    """Reads lines of at most `limit` bytes, in time proportional to their length."""

    def __init__(self, reader: asyncio.StreamReader, limit: int) -> None:
        self._reader, self._limit = reader, limit
        self._pace = Pace()
        self._lines: deque[bytes] = deque()
        self._pieces: list[bytes] = []
        self._held = 0

    async def read_line(self) -> bytes | None:
        """Return the next line, or None at the end; raises MessageTooLargeError."""
        await self._pace.wait()
        while not self._lines:
            piece = await self._reader.read(PIECE_BYTES)
            if not piece:
                return None
            first, *lines = piece.split(b"\n")
            self._pieces.append(first)
            self._held += len(first)
            if self._held > self._limit:
                raise MessageTooLargeError(
                    f"it is longer than {describe_limit(self._limit)} (max_message_bytes)"
                )
            if lines:
                self._lines.append(b"".join(self._pieces))
                self._lines.extend(lines)
                rest = self._lines.pop()
                self._pieces, self._held = [rest], len(rest)
        line = self._lines.popleft()
        self._pace.charge(check_message(line))
        return line
