"""What is read of messages and results that are not what the protocol prescribes."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp.shared.inbound import find_invalid_x_mcp_header, x_mcp_header_map
from mcp_types import (
    CallToolResult,
    InitializeResult,
    JSONRPCError,
    JSONRPCResponse,
    ListToolsResult,
    jsonrpc_message_adapter,
)
from mcp_types.methods import validate_server_result
from mcp_types.version import KNOWN_PROTOCOL_VERSIONS
from pydantic import BaseModel

from ai_agent_service.core.errors import ToolError
from ai_agent_service.core.text import replace_unstorable
from ai_agent_service.mcp.content import to_tool_output
from ai_agent_service.mcp.lenient import (
    dump_json,
    parse_json,
    read_tool,
    repair_messages,
    repair_result,
)
from ai_agent_service.mcp.tool import McpTool
from ai_agent_service.tools.base import ToolOutput
from ai_agent_service.tools.schema import SchemaError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
MODELS: dict[str, type[BaseModel]] = {
    "initialize": InitializeResult,
    "tools/list": ListToolsResult,
    "tools/call": CallToolResult,
}


def find_places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each member of `value`."""
    members: Any = ()
    if isinstance(value, dict):
        members = value.items()
    elif isinstance(value, list):
        members = enumerate(value)
    for key, item in members:
        yield (*place, key)
        yield from find_places(item, (*place, key))


def replace(value: Any, place: tuple[Any, ...], other: Any) -> Any:
    """Return a copy of `value` with `other` at `place`."""
    if not place:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = replace(copy[place[0]], place[1:], other)
    return copy


def validate(method: str, result: dict[str, Any]) -> Any:
    """Read a result as the library does, at every version of the protocol."""
    for version in KNOWN_PROTOCOL_VERSIONS:
        if (method, version) != ("initialize", "2026-07-28"):
            validate_server_result(method, version, result)
    return MODELS[method].model_validate(result, by_name=False)


KEPT = {"name": "kept", "description": "K", "inputSchema": {"type": "object", "properties": {}}}
LISTED: dict[str, Any] = {
    "tools": [
        KEPT,
        {
            "name": "odd",
            "title": "T",
            "description": "D",
            "inputSchema": {
                "$schema": "s",
                "type": "object",
                "properties": {"a": {"type": "array", "items": {}, "x-mcp-header": "A"}},
                "required": ["a"],
            },
            "outputSchema": {"type": "object"},
            "annotations": {"title": "A", "readOnlyHint": True},
            "icons": [{"src": "https://x", "sizes": ["1x1"]}],
            "execution": {"taskSupport": "optional"},
            "_meta": {"a": 1},
        },
    ],
    "nextCursor": "c",
    "ttlMs": 5,
    "resultType": "complete",
    "_meta": {"a": 1},
}


@given(st.sampled_from(sorted(find_places(LISTED), key=str)), JSON)
@settings(max_examples=400, deadline=None)
def test_an_odd_member_of_a_list_of_tools_costs_no_other_tool(
    place: tuple[Any, ...], odd: Any
) -> None:
    raw = replace(LISTED, place, odd)
    page = validate("tools/list", repair_result("tools/list", raw))
    tools = [read_tool(tool) for tool in page.tools]
    for tool in page.tools:
        if find_invalid_x_mcp_header(tool.input_schema) is None:
            x_mcp_header_map(tool.input_schema)
    if place[:2] != ("tools", 0) and place != ("tools",):
        assert (tools[0].name, tools[0].description) == ("kept", "K")
        assert tools[0].parameters == KEPT["inputSchema"]
    if len(place) > 2 and place[1] == 1 and place[2] not in ("name", "inputSchema", "execution"):
        tool = McpTool("s", tools[1], call=None)  # type: ignore[arg-type]
        assert tool.spec.parameters["properties"]
    for tool in tools:
        if not tool.problem:
            try:
                spec = McpTool("s", tool, call=None).spec  # type: ignore[arg-type]
            except SchemaError:
                continue
            assert replace_unstorable(spec.description) == spec.description
            json.dumps(spec.parameters).encode()


STARTED: dict[str, Any] = {
    "protocolVersion": "2025-06-18",
    "capabilities": {"tools": {"listChanged": True}, "logging": {}, "experimental": {"x": {}}},
    "serverInfo": {"name": "s", "version": "1", "icons": [{"src": "x"}]},
    "instructions": "i",
}


@given(st.sampled_from(sorted(find_places(STARTED), key=str)), JSON)
@settings(max_examples=200, deadline=None)
def test_an_odd_member_of_the_handshake_does_not_end_it(place: tuple[Any, ...], odd: Any) -> None:
    raw = replace(STARTED, place, odd)
    result = validate("initialize", repair_result("initialize", raw))
    if place != ("protocolVersion",):
        assert result.protocol_version == "2025-06-18"
    if place[0] != "capabilities":
        assert result.capabilities.tools.list_changed


@pytest.mark.parametrize(
    ("capabilities", "has_tools"),
    [
        *[(None, True), ("x", True), ({"tools": []}, True), ({"tools": True}, True)],
        *[([], False), ({}, False), ({"resources": {}}, False), ({"tools": None}, False)],
    ],
)
def test_a_server_that_does_not_say_what_it_can_do_is_asked(
    capabilities: Any, has_tools: bool
) -> None:
    result = repair_result("initialize", {"capabilities": capabilities})
    assert ("tools" in result["capabilities"]) == has_tools


@pytest.mark.parametrize(
    ("cursor", "read"), [("c", "c"), (7, "7"), ("", None), (None, None), ({}, None), (True, None)]
)
def test_an_odd_cursor_ends_the_list(cursor: Any, read: str | None) -> None:
    result = repair_result("tools/list", {"tools": [KEPT], "nextCursor": cursor})
    assert validate("tools/list", result).next_cursor == read


TEXT = {"type": "text", "text": "the answer is 42"}
BLOCKS: list[dict[str, Any]] = [
    {"type": "text", "text": "x", "annotations": {"priority": 1, "audience": ["user"]}},
    {"type": "image", "data": "iVBORw0KGgo=", "mimeType": "image/png"},
    {"type": "audio", "data": "AAAA", "mimeType": "audio/wav"},
    {"type": "resource_link", "uri": "https://x", "name": "n", "title": "t", "size": 1},
    {"type": "resource", "resource": {"uri": "file:///a", "text": "t", "mimeType": "text/plain"}},
    {"type": "resource", "resource": {"uri": "file:///a", "blob": "AAAA"}},
    {"type": "widget", "url": "https://x"},
]


def read_result(raw: dict[str, Any]) -> ToolOutput:
    """Read the result of a call as it comes from the library."""
    result = validate("tools/call", repair_result("tools/call", raw))
    return to_tool_output(result.structured_content)


@given(st.sampled_from(BLOCKS), st.data())
@settings(max_examples=400, deadline=None)
def test_an_odd_block_costs_no_other_block(block: dict[str, Any], data: st.DataObject) -> None:
    place = data.draw(st.sampled_from([(), *find_places(block)]))
    odd = replace(block, place, data.draw(JSON))
    output = read_result({"content": [odd, TEXT]})
    assert output.content.endswith(TEXT["text"])
    alone = read_result({"content": [odd]})
    is_empty = odd == "" or (isinstance(odd, dict) and odd.get("text") == "")
    assert alone.content or alone.images or is_empty  # nothing is dropped without a word


@given(st.sampled_from(["content", "isError", "_meta", "resultType", "x"]), JSON)
@settings(max_examples=200, deadline=None)
def test_an_odd_member_of_a_result_costs_no_other(name: str, odd: Any) -> None:
    raw = {"content": [TEXT], "structuredContent": {"rest": [1]}, name: odd}
    if odd == "input_required":
        return
    try:
        content = read_result(raw).content
    except ToolError as error:
        content = str(error)
        assert name == "isError"
    assert '{"rest": [1]}' in content
    assert TEXT["text"] in content or name == "content"


ANSWER = {"jsonrpc": "2.0", "id": 1, "result": {"content": [TEXT]}}
FAILURE = {"jsonrpc": "2.0", "id": 1, "error": {"code": -32603, "message": "disk full", "data": 1}}


@given(st.sampled_from([ANSWER, FAILURE]), st.data())
@settings(max_examples=400, deadline=None)
def test_an_odd_member_of_a_message_loses_no_other(
    message: dict[str, Any], data: st.DataObject
) -> None:
    place = data.draw(st.sampled_from(sorted(find_places(message), key=str)))
    odd = replace(message, place, data.draw(JSON))
    [repaired] = repair_messages(parse_json(json.dumps(odd)), request_id=1)
    read = jsonrpc_message_adapter.validate_json(dump_json(repaired), by_name=False)
    if "result" in message:
        assert isinstance(read, JSONRPCResponse)
        if place[0] != "result":
            assert read.result == ANSWER["result"]
    elif isinstance(read, JSONRPCError):
        assert read.error.message
        if "message" not in place and place != ("error",):
            assert read.error.message.startswith("disk full")
    else:
        raise AssertionError(read)
    assert read.id == 1


@given(JSON)
@settings(max_examples=200, deadline=None)
def test_anything_is_read_as_messages_or_as_none(value: Any) -> None:
    for message in repair_messages(value):
        jsonrpc_message_adapter.validate_json(dump_json(message), by_name=False)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("disk full", "disk full"),
        ({"code": -32603}, "the server did not say why"),
        ({"code": "E_FAIL", "message": "disk full"}, "disk full (E_FAIL)"),
        ({"code": "-32602", "message": "disk full"}, "disk full"),
        ({"code": 1.0, "data": {"reason": "full"}}, '{"reason": "full"}'),
        ([1], "[1]"),
        (None, "the answer has neither a result nor an error"),
    ],
)
def test_a_malformed_error_keeps_its_words(error: Any, words: str) -> None:
    [message] = repair_messages({"jsonrpc": "2.0", "id": 1, "error": error})
    assert message["error"]["message"] == words
    assert isinstance(message["error"]["code"], int)
