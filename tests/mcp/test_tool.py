"""What models are told of the tools of MCP servers: their names, first of all."""

import hashlib
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ai_agent_service.core.context import RunContext
from ai_agent_service.core.messages import ToolSpec
from ai_agent_service.mcp.base import RemoteTool
from ai_agent_service.mcp.tool import McpTool, build_model_name
from ai_agent_service.tools.base import ToolOutput

LABELS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,63}", fullmatch=True)
"""What mcp.json takes as a label."""

TOOLS = st.one_of(st.text(max_size=100), st.text("ab_-. \n", max_size=70))
AMBIGUOUS_LABELS = st.from_regex(r"a[a_. -]{0,4}", fullmatch=True)
AMBIGUOUS_TOOLS = st.text("a_. ", max_size=4)


@given(LABELS, TOOLS)
@example("a", "look\n")
def test_a_name_is_one_that_every_provider_takes(label: str, tool: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", build_model_name(label, tool))


@given(
    st.one_of(
        st.tuples(LABELS, TOOLS, LABELS, TOOLS),
        st.tuples(AMBIGUOUS_LABELS, AMBIGUOUS_TOOLS, AMBIGUOUS_LABELS, AMBIGUOUS_TOOLS),
    )
)
def test_two_tools_never_have_one_name(four: tuple[str, str, str, str]) -> None:
    label, tool, other_label, other_tool = four
    assert (build_model_name(label, tool) == build_model_name(other_label, other_tool)) == (
        (label, tool) == (other_label, other_tool)
    )


@pytest.mark.parametrize(("label", "tool"), [("a", "b.c"), ("a", "b" * 80), ("a b", "pay")])
def test_no_server_can_call_a_tool_by_the_name_that_another_ones_digest_makes(
    label: str, tool: str
) -> None:
    name = build_model_name(label, tool)
    other_label, _, other_tool = name.partition("__")
    assert build_model_name(other_label, other_tool) != name


@pytest.mark.parametrize(
    ("label", "tool", "name"),
    [
        ("time", "convert_time", "time__convert_time"),
        ("my-server", "Read-File", "my-server__Read-File"),
        ("a_b", "_c__d_", "a_b___c__d_"),
        ("s", "t" * 61, "s__" + "t" * 61),
    ],
)
def test_a_plain_name_stays_readable(label: str, tool: str, name: str) -> None:
    assert build_model_name(label, tool) == name


@pytest.mark.parametrize(
    ("label", "tool", "begins"),
    [
        ("s", "t" * 62, "s__" + "t" * 52),
        ("files", "read.all", "files__read_all"),
        ("my server", "look", "my_server__look"),
        ("a_", "b", "a___b"),
        ("a__b", "c", "a__b__c"),
        ("a", "", "a__"),
    ],
    ids=[
        "long",
        "dotted",
        "spaced",
        "label ends like the separator",
        "label holds the separator",
        "no name",
    ],
)
def test_any_other_name_ends_in_a_digest_of_label_and_tool(
    label: str, tool: str, begins: str
) -> None:
    digest = hashlib.sha256(f"{label}\0{tool}".encode()).hexdigest()[:8]
    assert build_model_name(label, tool) == f"{begins}_{digest}"


def build_spec(description: str, parameters: dict[str, object]) -> ToolSpec:
    async def call(tool: McpTool, arguments: dict[str, object], context: RunContext) -> ToolOutput:
        return ToolOutput("")

    return McpTool("files", RemoteTool("read", description, parameters), call).spec


def test_a_schema_reaches_the_model_without_what_providers_refuse() -> None:
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"path": {"$ref": "#/$defs/path"}},
        "$defs": {"path": {"type": "string", "x-theirs": [1, None]}},
        "additionalProperties": False,
    }
    completed = {
        "type": "object",
        "properties": {"path": {"type": "string"}},
        "additionalProperties": False,
    }
    assert build_spec("Reads.", schema) == ToolSpec("files__read", "Reads.", completed)


@pytest.mark.parametrize(
    "schema",
    [{}, {"type": "object"}, {"type": ["object", "null"], "properties": {}}, {"properties": {}}],
)
def test_a_schema_that_providers_would_refuse_is_completed(schema: dict[str, object]) -> None:
    assert build_spec("Reads.", schema).parameters == {"type": "object", "properties": {}}


def test_unstorable_characters_in_a_description_are_replaced() -> None:
    assert build_spec("a\x00b\ud800", {}).description == "a\ufffdb\ufffd"
