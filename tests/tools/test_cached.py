"""Results that are used again: for which calls, for how long, and for whom."""

import time
from typing import Any

import pytest

from ai_agent_service.core.errors import ToolError
from ai_agent_service.core.messages import ImagePart
from ai_agent_service.tools import cached as module
from ai_agent_service.tools.base import Tool, ToolOutput
from ai_agent_service.tools.cached import CachedSource, CachedTool
from ai_agent_service.tools.toolset import parse_arguments
from tests.support.tools import CONTEXT, Counting, Source


async def ask(tool: Tool, **arguments: Any) -> str:
    return (await tool.run(arguments, CONTEXT)).content


async def test_a_result_is_used_again_for_the_same_arguments_alone() -> None:
    tool = CachedTool(Counting("look"), seconds=60)
    assert [
        await ask(tool, at="a"),
        await ask(tool, at="a"),
        await ask(tool, at="b"),
        await ask(tool),
        await ask(tool, at="a"),
    ] == [
        *("1", "1", "2", "3"),
        "1",
    ]


async def test_the_order_of_arguments_does_not_matter_at_any_depth() -> None:
    tool = CachedTool(Counting("look"), seconds=60)
    assert await ask(tool, a=1, b={"c": 1, "d": [{"e": 1, "f": 2}]}) == await ask(
        tool, b={"d": [{"f": 2, "e": 1}], "c": 1}, a=1
    )
    assert await ask(tool, b={"d": [1, 2]}) != await ask(tool, b={"d": [2, 1]})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a": 1}', '{"a": "1"}'),
        ('{"a": 1}', '{"a": true}'),
        ('{"a": null}', "{}"),
        ('{"a": 0.1234567890123456789}', '{"a": "0.1234567890123456789"}'),
    ],
)
async def test_arguments_that_differ_only_in_kind_are_not_the_same(one: str, other: str) -> None:
    tool = CachedTool(Counting("look"), seconds=60)
    results = [(await tool.run(parse_arguments(text), CONTEXT)).content for text in (one, other)]
    assert results == ["1", "2"]


async def test_a_result_expires() -> None:
    inner = Counting("look")
    tool = CachedTool(inner, seconds=0.2)
    began = time.monotonic()
    assert await ask(tool) == "1"
    while await ask(tool) == "1":
        assert time.monotonic() - began < 20
    assert time.monotonic() - began >= 0.2
    assert inner.runs == 2


async def test_what_failed_is_not_kept() -> None:
    inner = Counting("look")
    tool = CachedTool(inner, seconds=60)
    inner.error = ToolError("not now")
    with pytest.raises(ToolError, match="not now"):
        await ask(tool)
    inner.error = None
    assert await ask(tool) == "2"


async def test_images_are_kept_with_their_text() -> None:
    inner = Counting("look")
    inner.output = ToolOutput("seen", (ImagePart("data:image/png;base64,AAAA"),))
    tool = CachedTool(inner, seconds=60)
    assert [await tool.run({}, CONTEXT) for _ in range(2)] == [inner.output] * 2
    assert inner.runs == 1


@pytest.mark.parametrize(
    "output",
    [ToolOutput("a" * 11), ToolOutput("ä" * 6), ToolOutput("a" * 6, (ImagePart("data:"),))],
    ids=["letters", "letters of two bytes", "with an image"],
)
async def test_a_large_result_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, output: ToolOutput
) -> None:
    monkeypatch.setattr(module, "MAX_RESULT_BYTES", 10)
    inner = Counting("look")
    inner.output = output
    tool = CachedTool(inner, seconds=60)
    assert [await tool.run({}, CONTEXT) for _ in range(2)] == [output] * 2
    assert inner.runs == 2


async def test_the_results_that_were_unused_for_longest_go_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_RESULTS", 2)
    tool = CachedTool(Counting("look"), seconds=60)
    assert [await ask(tool, at=place) for place in ("a", "b", "a", "c", "a", "b")] == [
        "1",
        "2",
        "1",
        "3",
        "1",
        "4",
    ]


def test_it_is_the_same_tool_to_those_who_look_at_it() -> None:
    inner = Counting("look")
    tool = CachedTool(inner, seconds=60)
    assert (tool.spec, tool.timeout, tool.parallel, tool.max_output) == (
        inner.spec,
        inner.timeout,
        inner.parallel,
        inner.max_output,
    )


async def test_only_the_named_tools_of_a_source_keep_their_results() -> None:
    look, listen = Counting("look"), Counting("listen")
    source = CachedSource(Source(look, listen), {"look": 60, "absent": 60})
    assert [await ask(source.tools[0]), await ask(source.tools[0])] == ["1", "1"]
    assert source.tools[1] is listen


async def test_two_agents_do_not_share_results() -> None:
    source = Source(Counting("look"))
    one, other = CachedSource(source, {"look": 60}), CachedSource(source, {"look": 60})
    assert [await ask(one.tools[0]), await ask(other.tools[0]), await ask(one.tools[0])] == [
        "1",
        "2",
        "1",
    ]


async def test_results_outlive_a_change_of_other_tools_and_go_with_their_own() -> None:
    look, listen = Counting("look"), Counting("listen")
    inner = Source(look)
    source = CachedSource(inner, {"look": 60})
    assert await ask(source.tools[0]) == "1"
    inner.tools = (look, listen)
    assert await ask(source.tools[0]) == "1"
    replaced = Counting("look")
    replaced.runs = 10
    inner.tools = (replaced, listen)
    assert await ask(source.tools[0]) == "11"


def test_the_tools_are_the_same_object_until_the_source_has_others() -> None:
    source = CachedSource(Source(Counting("look")), {"look": 60})
    before = source.tools
    assert source.tools is before


def test_what_the_source_cannot_do_now_is_passed_on() -> None:
    assert (
        CachedSource(Source(unavailable="the tools of eyes"), {}).unavailable == "the tools of eyes"
    )
