"""Tool calls from the pieces that real servers stream."""

import json
import time
from itertools import pairwise
from typing import Any

import pytest
from dirty_equals import IsStr
from hypothesis import given
from hypothesis import strategies as st

from ai_agent_service.core.messages import ToolCall
from ai_agent_service.providers.tool_calls import ToolCallAssembler, join_arguments

TOOLS = ("weather", "time", "calculate", "calc")
texts = st.text('a {}"\\é', max_size=4)
NEW_ID: Any = IsStr(regex=r"call_[0-9a-f]{24}")
ROME = '{"city": "Rome"}'


def piece(
    name: Any = None, arguments: Any = None, *, id: Any = None, index: Any = None, **more: Any
) -> dict[str, Any]:
    """Build an entry of `tool_calls`, without what is None."""
    function = {
        key: value
        for key, value in {"name": name, "arguments": arguments}.items()
        if value is not None
    }
    whole = {"index": index, "id": id, "function": function, **more}
    return {key: value for key, value in whole.items() if value is not None}


def build(*chunks: Any, odd: list[str] | None = None) -> list[tuple[ToolCall, dict[str, Any]]]:
    found: list[str] = []
    assembler = ToolCallAssembler(TOOLS, found.append)
    for entries in chunks:
        assembler.add(entries)
    built = assembler.build_calls()
    assert found == (odd or [])
    return built


def read(*chunks: Any, odd: list[str] | None = None) -> list[tuple[str, str]]:
    """Return name and arguments of each call."""
    return [(call.name, call.arguments) for call, _ in build(*chunks, odd=odd)]


@pytest.mark.parametrize(
    "entries",
    [
        [piece("time", ""), piece("weather", ROME)],
        [piece("time", "", index=0, id=""), piece("weather", ROME, index=0, id="")],
        [piece("time", "", id="x", index=0), piece("weather", ROME, id="x", index=0)],
        [piece("time", "", index=0, id="x"), piece("weather", ROME, index=0)],
        [piece("time"), piece("weather", json.loads(ROME))],
    ],
)
def test_two_named_entries_of_one_array_are_two_calls(entries: list[dict[str, Any]]) -> None:
    assert read(entries) == [("time", ""), ("weather", ROME.replace(" ", ""))] or read(entries) == [
        ("time", ""),
        ("weather", ROME),
    ]


def test_equal_calls_of_one_array_are_two_calls() -> None:
    assert read([piece("time", ""), piece("time", "")]) == [("time", "")] * 2
    assert (
        read([piece("time", "{}", index=0), piece("time", "{}", index=0)]) == [("time", "{}")] * 2
    )


def test_calls_in_two_chunks_without_index_and_id_are_two_calls() -> None:
    assert read([piece("time", "")], [piece("weather", ROME)]) == [("time", ""), ("weather", ROME)]
    assert read([piece("time", "", index=0)], [piece("weather", ROME, index=0)]) == [
        ("time", ""),
        ("weather", ROME),
    ]


@pytest.mark.parametrize("index", [0, 3, "7", 12.0, None])
@pytest.mark.parametrize("ids", [("c", None), ("c", "c"), ("", ""), (None, None), (7, 7)])
@pytest.mark.parametrize("repeats_name", [False, True])
def test_pieces_of_arguments_are_one_call(
    index: Any, ids: tuple[Any, Any], repeats_name: bool
) -> None:
    first, second = ids
    name = "weather" if repeats_name else None
    found = build(
        [piece("weather", "", id=first, index=index)],
        [piece(name, '{"city":', id=second, index=index)],
        [piece(name, ' "Rome"}', id=second, index=index)],
    )
    assert [call for call, _ in found] == [
        ToolCall(str(first) if first else NEW_ID, "weather", ROME)
    ]


@pytest.mark.parametrize(
    "pieces",
    [
        ["{}", ROME],
        ["{}", ROME[:5], ROME[5:]],
        ["", "{}", ROME[:5], ROME[5:]],
        ["null", ROME],
        [ROME, ROME],
        [ROME[:5], ROME[5:], ROME],
        [ROME[:3], ROME[:7], ROME],
        ["{}", ROME[:3], ROME[:7], ROME],
        [ROME[:3], ROME[:7], ROME, ROME],
    ],
)
@pytest.mark.parametrize("id", ["c", None])
@pytest.mark.parametrize("named", [False, True])
def test_arguments_may_be_preceded_by_none_cumulative_or_repeated(
    pieces: list[str], id: str | None, named: bool
) -> None:
    if named and id is None and pieces == [ROME, ROME]:
        return  # two equal calls, of a server that sends whole ones
    first, *others = pieces
    found = read(
        [piece("weather", first, id=id, index=0)],
        *([piece("weather" if named else None, other, id=id, index=0)] for other in others),
    )
    assert found == [("weather", ROME)]


@given(
    st.dictionaries(texts, st.none() | texts | st.integers() | st.lists(texts), max_size=3),
    st.lists(st.integers(0, 100), max_size=6),
)
def test_arguments_are_joined_from_any_split_and_any_cumulative_pieces(
    arguments: dict[str, Any], places: list[int]
) -> None:
    text = json.dumps(arguments, ensure_ascii=False)
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    split = [text[start:end] for start, end in pairwise(edges)]
    assert join_arguments(split) == text
    assert join_arguments([*split, text]) == text
    assert join_arguments(["{}", *split]) == text
    assert join_arguments([text[:end] for end in edges[1:]]) == text


def test_arguments_that_break_off_are_never_completed() -> None:
    assert join_arguments(['{"a": ', "{}"]) == '{"a": {}'
    assert join_arguments(["{}", '{"a']) == '{"a'
    assert join_arguments(['{"a": 1}', '{"b']) == '{"a": 1}{"b'


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"city": "Rome"}, '{"city":"Rome"}'),
        pytest.param({}, "{}", id="object"),
        pytest.param([], "{}", id="list"),
        (None, ""),
        (False, ""),
        ([1], "[1]"),
        pytest.param("null", "{}", id="null"),
        pytest.param("[]", "{}", id="list as text"),
        pytest.param('""', "{}", id="empty text"),
        ('"{\\"a\\":1}"', '{"a":1}'),
        ('{"a":"1\n2"}', '{"a":"1\\n2"}'),
        ('{"a":NaN}', '{"a":NaN}'),
        ("{broken", "{broken"),
        ('"text"', '"text"'),
        ({"a": "\ud83d\ude00\ud83d"}, '{"a":"\U0001f600\ufffd"}'),
    ],
)
def test_arguments_need_not_be_text(sent: Any, expected: str) -> None:
    assert read([piece("weather", sent, id="c", index=0)]) == [("weather", expected)]


def test_an_empty_object_may_precede_arguments_that_are_an_object() -> None:
    entries = [piece("weather", {}, id="c", index=0)], [piece(None, {"a": 1}, index=0)]
    assert read(*entries) == [("weather", '{"a":1}')]


@pytest.mark.parametrize("names", [("calc", "ulate"), ("calc", "calculate"), ("c", "alculate")])
def test_a_name_may_come_in_pieces_or_grow(names: tuple[str, str]) -> None:
    one, two = names
    if names == ("calc", "calculate"):
        one = "calcu"  # `calc` is a tool
    assert read([piece(one, "", id="c", index=0)], [piece(two, "{}", index=0)]) == [
        ("calculate", "{}")
    ]


def test_an_index_that_changes_within_a_call_adds_no_call() -> None:
    assert read(
        [piece("weather", "", id="c", index=0)],
        [piece(None, ROME[:5], index=1)],
        [piece(None, ROME[5:], index=2)],
    ) == [("weather", ROME)]


def test_ids_that_change_within_a_call_add_no_call() -> None:
    assert read(
        [piece("weather", "", id="a")], [piece(None, ROME[:5], id="b")], [piece(None, ROME[5:])]
    ) == [("weather", ROME)]


def test_an_id_that_every_call_repeats_does_not_merge_them() -> None:
    assert read([piece("weather", ROME, id="c")], [piece("time", "{}", id="c")]) == [
        ("weather", ROME),
        ("time", "{}"),
    ]


def test_entries_that_are_no_calls_cost_only_themselves() -> None:
    odd: list[Any] = [None, 7, "x", [], {"function": "weather"}, piece("time", "{}"), {"id": "a"}]
    assert read(odd, odd=["tool_calls[]"] * 5) == [("time", "{}")]
    assert read("x", odd=["tool_calls"]) == []
    assert read(piece("time", "{}"), odd=["tool_calls"]) == [("time", "{}")]


def test_a_call_without_a_name_is_left_out() -> None:
    odd = ["tool_calls[].function.name"]
    assert read([piece(None, "{}", id="a", index=0), piece("time", "", index=1)], odd=odd) == [
        ("time", "")
    ]


@pytest.mark.parametrize("name", ["arguments", "parameters", "input"])
def test_a_flat_entry_is_a_call(name: str) -> None:
    (found,) = build([{"type": "tool_use", "name": " time", name: {}, "id": "c"}])
    assert found == (ToolCall("c", "time", "{}"), {"call": {}, "function": {}})


def test_names_and_arguments_have_no_halves_of_surrogate_pairs_and_no_nul() -> None:
    entries = [
        [piece("time\0", '{"a": "\ud83d', id="c\ud83d", index=0)],
        [piece(None, '\ude00\ud83d\0"}', index=0)],
    ]
    ((call, _),) = build(*entries)
    assert call == ToolCall("c\ufffd", "time\ufffd", '{"a": "\U0001f600\ufffd\ufffd"}')


def test_members_that_the_format_does_not_know_are_kept() -> None:
    google = {"google": {"thought_signature": "sig"}}
    found = build(
        [
            piece("weather", "", id="c", index=0, type="function", extra_content=google),
            piece("time", "{}", index=1, signature=None, number=7, thought_signature="b"),
        ],
        [piece(None, ROME, index=0, provider_specific_fields={"thought_signature": "sig"})],
        [{"index": 1, "function": {"arguments": "", "thoughtSignature": "f", "index": 0}}],
    )
    assert [kept for _, kept in found] == [
        {
            "call": {
                "extra_content": google,
                "provider_specific_fields": {"thought_signature": "sig"},
            },
            "function": {},
        },
        {"call": {"thought_signature": "b"}, "function": {"thoughtSignature": "f"}},
    ]


def test_a_member_may_come_in_an_entry_without_a_function() -> None:
    ((_, kept),) = build(
        [piece("time", "{}", id="c", index=0)], [{"index": 0, "extra_content": {"a": "b"}}]
    )
    assert kept["call"] == {"extra_content": {"a": "b"}}


@pytest.mark.parametrize("pieces", [["", ROME], ["{}", ROME], [ROME[:5], ROME[5:]], [ROME, ROME]])
def test_the_old_function_call_is_one_call(pieces: list[str]) -> None:
    assembler = ToolCallAssembler(TOOLS, list[str]().append)
    for arguments in pieces:
        assembler.add_legacy({"name": "weather", "arguments": arguments})
    ((call, _),) = assembler.build_calls()
    assert call == ToolCall(NEW_ID, "weather", ROME)


def test_a_function_call_beside_tool_calls_is_a_repetition() -> None:
    assembler = ToolCallAssembler(TOOLS, list[str]().append)
    assembler.add([piece("weather", ROME, id="c", index=0)])
    assembler.add_legacy({"name": "weather", "arguments": ROME})
    assert [call for call, _ in assembler.build_calls()] == [ToolCall("c", "weather", ROME)]


MANY = 20_000


@pytest.mark.parametrize(
    "chunks",
    [
        [[piece("time", "{}", id=str(n)) for n in range(MANY)]],
        [[piece("time", "}", id="c")] * MANY],
        [[piece("time", ROME, index=0, id="c")]] * MANY,
        [[piece("time", ROME, index=0)]] * MANY,
        [[piece("time", "{}")]] * MANY,
        [[piece("time", "{}", id=str(n))] for n in range(MANY)],
        [[piece("time", "{}", index=n, id=str(n))] for n in range(MANY)],
    ],
    ids=["array", "pieces", "same id", "same index", "same name", "ids", "indexes"],
)
def test_many_entries_take_time_in_proportion_to_their_number(chunks: list[Any]) -> None:
    assembler = ToolCallAssembler(TOOLS, lambda _: None)
    began = time.process_time()
    for entries in chunks:
        assembler.add(entries)
    assembler.build_calls()
    assert time.process_time() - began < 3, "half a second on a machine at rest"


@pytest.mark.parametrize("text", ["{}", "null", '{"a": 1}'])
def test_arguments_that_are_repeated_endlessly_are_joined_at_once(text: str) -> None:
    began = time.process_time()
    joined = join_arguments([text] * MANY)
    assert joined in (text, text * MANY)
    assert time.process_time() - began < 3, "a tenth of a second on a machine at rest"
