"""Server-sent events, cut anywhere."""

import re
import time
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_agent_service.core.bounds import MAX_EVENT_BYTES
from ai_agent_service.core.errors import ProviderProtocolError
from ai_agent_service.providers.sse import EventReader
from tests.support.provider_requests import cut

BOM = b"\xef\xbb\xbf"


def read(pieces: Iterable[bytes]) -> list[bytes]:
    reader = EventReader()
    found = [data for piece in pieces for data in reader.feed(piece)]
    return found + reader.close()


def specified(stream: bytes) -> list[bytes]:
    """What WHATWG's algorithm makes of the whole stream, except that the last event needs no blank
    line, blank events are left out, and a body of JSON is given whole."""
    body = stream.removeprefix(BOM)
    if body.lstrip()[:1] in (b"{", b"["):
        return [body]
    found: list[bytes] = []
    data: list[bytes] = []
    for line in [*re.split(rb"\r\n|\r|\n", stream.removeprefix(BOM)), b""]:
        if line:
            field, _, value = line.partition(b":")
            data += [value.removeprefix(b" ")] if field == b"data" else []
        elif data:
            found.append(b"\n".join(data))
            data = []
    return [event for event in found if event.strip()]


streams = st.builds(
    lambda bom, parts: bom + b"".join(parts),
    st.sampled_from([b"", BOM]),
    st.lists(
        st.one_of(
            st.sampled_from(
                [
                    b"\n",
                    b"\r",
                    b"\r\n",
                    b"data: one",
                    b"data:two",
                    b"data",
                    b"data:",
                    b"data:  three",
                    b"database: x",
                    b": comment",
                    b"id: 7",
                    BOM,
                ]
            ),
            st.binary(max_size=4),
        ),
        max_size=24,
    ),
)


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([b"data: one", b"", b"data: two", b""], [b"one", b"two"]),
        ([b"data:one", b"", b"data:  two", b""], [b"one", b" two"]),
        ([b"data: one", b"data: two", b"data:", b"data: three", b""], [b"one\ntwo\n\nthree"]),
        ([b"data", b"", b"data:", b"", b"data: ", b"", b"event: ping", b"data:", b""], []),
        ([b": keep-alive", b"", b":", b"data: one", b": within", b""], [b"one"]),
        ([b"event: error", b"id: 1", b"retry: 9", b"database: x", b"data: one", b""], [b"one"]),
        ([b"database: x", b"datax", b""], []),
        ([b"data: a: b", b""], [b"a: b"]),
        ([b'data: {"a":1}', b"data: {}", b"data: [DONE]"], [b'{"a":1}', b"{}", b"[DONE]"]),
        ([b"data: {", b"data: }", b""], [b"{\n}"]),
        ([b"", b"", b"data: one", b"", b"", b""], [b"one"]),
    ],
)
def test_an_event_is_its_data_lines_whatever_ends_them(
    ending: bytes, lines: list[bytes], expected: list[bytes]
) -> None:
    stream = b"".join(line + ending for line in lines)
    assert read([stream]) == expected
    assert read(stream[at : at + 1] for at in range(len(stream))) == expected


def test_an_event_is_given_as_soon_as_its_blank_line_begins() -> None:
    reader = EventReader()
    assert reader.feed(b"data: one\r\n") == []
    assert reader.feed(b"\r") == [b"one"]
    assert reader.feed(b"\ndata: two\n\n") == [b"two"]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_byte_order_mark_is_passed_over_at_the_start_alone(size: int) -> None:
    stream = BOM + b"data: one\n\n" + BOM + b"data: two\n\ndata: three\n\n"
    assert read(stream[at : at + size] for at in range(0, len(stream), size)) == [b"one", b"three"]


def test_the_last_event_needs_no_blank_line() -> None:
    assert read([b"data: one\n\ndata: two"]) == [b"one", b"two"]
    assert read([b"data: one\n\ndata: two\ndata: three\n"]) == [b"one", b"two\nthree"]


@given(streams, st.lists(st.integers(0, 1000), max_size=12))
def test_any_split_of_a_stream_gives_the_events_of_the_whole(
    stream: bytes, places: list[int]
) -> None:
    assert read(cut(stream, places)) == read([stream]) == specified(stream)


@given(
    st.lists(
        st.lists(st.from_regex(rb"[ -~\xc3\xa9]{0,8}", fullmatch=True), min_size=1, max_size=3),
        max_size=4,
    ),
    st.lists(st.sampled_from([b"\n", b"\r\n", b"\r"]), min_size=1, max_size=8),
    st.lists(st.integers(0, 1000), max_size=12),
)
def test_any_mix_of_line_endings_gives_the_same_events(
    events: list[list[bytes]], endings: list[bytes], places: list[int]
) -> None:
    stream = b""
    for number, line in enumerate(
        part for event in events for part in [*(b"data: " + data for data in event), b""]
    ):
        ending = endings[number % len(endings)]
        if stream.endswith(b"\r") and not line and ending == b"\n":
            ending = b"\r"  # a blank line's own LF would make one CRLF with the CR before it
        stream += line + ending
    expected = [b"\n".join(event) for event in events]
    assert read(cut(stream, places)) == [data for data in expected if data.strip()]


@given(
    st.sampled_from([b"", BOM, b"\r\n \n"]),
    st.sampled_from([b'{"a": 1}', b'{\n  "data": [\n\n]\n}\n', b'[\r{"error": 1}]']),
    st.lists(st.integers(0, 1000), max_size=12),
)
def test_a_body_of_json_in_place_of_events_is_given_whole(
    before: bytes, body: bytes, places: list[int]
) -> None:
    assert [data.strip() for data in read(cut(before + body, places))] == [body.strip()]


@pytest.mark.parametrize("beginning", [b"data: ", b": ", b"data: x\ndata: ", b"{"])
def test_an_event_over_16_mib_is_refused(beginning: bytes) -> None:
    reader = EventReader()
    reader.feed(beginning)
    piece = b"x" * (MAX_EVENT_BYTES // 8)
    for _ in range(7):
        reader.feed(piece)
    with pytest.raises(ProviderProtocolError, match="more than 16 MiB"):
        reader.feed(piece)


def test_an_event_of_endless_empty_lines_is_refused() -> None:
    reader = EventReader()
    reader.feed(b"data: " + b"x" * (MAX_EVENT_BYTES - 1000) + b"\n")
    with pytest.raises(ProviderProtocolError, match="more than 16 MiB"):
        reader.feed(b"data\n" * 1000)


@pytest.mark.parametrize("piece", [b"\n" * 1024, b" " * 1024])
def test_a_stream_of_endless_blanks_is_refused(piece: bytes) -> None:
    reader = EventReader()
    reader.feed(piece * (MAX_EVENT_BYTES // 1024))
    with pytest.raises(ProviderProtocolError, match="more than 16 MiB"):
        reader.feed(piece)


def test_a_long_event_takes_time_in_proportion_to_its_length() -> None:
    pieces = [b"data: ", *[b"x" * 256] * 60_000, b"\n\n"]
    began = time.process_time()
    assert len(read(pieces)[0]) == 256 * 60_000
    assert time.process_time() - began < 3, "a tenth of a second on a machine at rest"


def test_an_event_of_nearly_16_mib_is_read() -> None:
    data = b"x" * (MAX_EVENT_BYTES - 100)
    half = len(data) // 2
    assert read([b"data: " + data[:half], data[half:], b"\n\ndata: next\n\n"]) == [data, b"next"]
