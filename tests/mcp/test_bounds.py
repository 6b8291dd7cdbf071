"""Bounds of what a server writes: lines as they were, up to a size, in linear time."""

import asyncio
import json
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_agent_service.mcp import bounds
from ai_agent_service.mcp.bounds import LineReader, MessageTooLargeError, Pace, check_message

LIMIT = 1000


async def read_lines(pieces: list[bytes], limit: int = LIMIT) -> list[bytes]:
    """Read everything from `pieces`, each of which is read at once."""
    source = asyncio.StreamReader()
    reader = LineReader(source, limit)

    async def feed() -> None:
        for piece in pieces:
            source.feed_data(piece)
            await asyncio.sleep(0)
        source.feed_eof()

    feeding = asyncio.create_task(feed())
    lines = []
    while (line := await reader.read_line()) is not None:
        lines.append(line)
    await feeding
    return lines


@given(st.lists(st.binary(max_size=40).map(lambda text: text.replace(b"\n", b""))), st.data())
def test_lines_are_the_same_however_they_are_cut(lines: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)))))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True) if a < b]
    assert asyncio.run(read_lines(pieces)) == lines


async def test_a_line_beyond_the_limit_is_refused_before_its_end() -> None:
    assert await read_lines([b"x" * LIMIT, b"\n"]) == [b"x" * LIMIT]
    with pytest.raises(MessageTooLargeError, match="longer than 1000 bytes"):
        await read_lines([b"x" * 600, b"x" * 600])


async def test_a_large_line_takes_time_in_proportion_to_its_length() -> None:
    async def measure(pieces: int) -> float:
        began = time.process_time()
        await read_lines([b"x" * 1024] * pieces + [b"\n"], 1 << 30)
        return time.process_time() - began

    await measure(1000)
    small, large = await measure(2_000), await measure(20_000)
    assert large < 40 * small  # 100 times, if what was read is copied for each piece


@pytest.mark.parametrize("value", [[[]] * 300_000, {str(n): n for n in range(300_000)}])
def test_a_message_with_too_many_values_is_refused(value: object) -> None:
    with pytest.raises(MessageTooLargeError, match="more than 250,000 values"):
        check_message(json.dumps(value).encode())


def test_commas_and_quotes_in_a_text_are_no_values() -> None:
    check_message(json.dumps({"text": 'a,"[{\\' * 300_000}).encode())


@pytest.mark.parametrize(
    "text", [b'"' + b'\\"' * 300_000, b"," * 300_000 + b'"\\' + b'"' * 300_000]
)
def test_a_message_with_a_text_without_end_is_checked_at_once(text: bytes) -> None:
    began = time.process_time()
    with suppress(MessageTooLargeError):
        check_message(b"," * 300_000 + text)
    assert time.process_time() - began < 2


async def test_reading_yields_to_other_tasks_and_slows_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    pace = Pace(rate=1024 * 1024, burst=1024 * 1024)
    pace.charge(bounds.YIELD_COST)
    await pace.wait()
    await pace.wait()
    assert slept == [0]
    pace.charge(2 * 1024 * 1024)
    await pace.wait()
    assert slept[1] == pytest.approx(1.25, abs=0.1)
