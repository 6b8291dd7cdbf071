"""An agent's tools as they come and go."""

import pytest

from ai_agent_service.core.messages import ToolCall
from ai_agent_service.tools.dynamic import AvailableTools
from ai_agent_service.tools.toolset import Toolset
from tests.support.tools import CONTEXT, Counting, Source


def names(toolset: Toolset) -> list[str]:
    return [spec.name for spec in toolset.specs]


def test_the_fixed_tools_come_first_and_then_those_of_each_source() -> None:
    available = AvailableTools(
        [Counting("add")],
        [Source(Counting("look")), Source(), Source(Counting("listen"))],
        default_timeout=5,
    )
    assert names(available.get_toolset()) == ["add", "look", "listen"]


@pytest.mark.parametrize(
    "sources",
    [[], [Source(Counting("look")), Source(unavailable="the tools of ears")]],
    ids=["none", "two"],
)
def test_the_toolset_is_the_same_object_while_nothing_changes(sources: list[Source]) -> None:
    available = AvailableTools([Counting("add")], sources, default_timeout=5)
    assert available.get_toolset() is available.get_toolset()


def test_a_toolset_that_was_given_out_does_not_change_any_more() -> None:
    source = Source(Counting("look"))
    available = AvailableTools([], [source], default_timeout=5)
    before = available.get_toolset()
    source.tools, source.unavailable = (Counting("listen"),), "the tools of eyes"
    assert (names(before), before.unavailable) == (["look"], ())
    assert (names(available.get_toolset()), available.get_toolset().unavailable) == (
        ["listen"],
        ("the tools of eyes",),
    )


def test_a_source_that_cannot_be_used_any_more_or_again_is_noticed() -> None:
    source = Source(Counting("look"))
    available = AvailableTools(
        [], [source, Source(unavailable="the tools of ears")], default_timeout=5
    )
    seen = []
    for unavailable in ("", "the tools of eyes", ""):
        source.unavailable = unavailable
        seen.append(available.get_toolset().unavailable)
    assert seen == [
        ("the tools of ears",),
        ("the tools of eyes", "the tools of ears"),
        ("the tools of ears",),
    ]


async def test_a_name_that_is_taken_twice_goes_to_the_first_and_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second, third = Counting("look"), Counting("look"), Counting("look")
    available = AvailableTools([first], [Source(second), Source(third)], default_timeout=5)
    toolset = available.get_toolset()
    await toolset.execute(ToolCall("c", "look", "{}"), CONTEXT)
    available.get_toolset()
    assert (names(toolset), [tool.runs for tool in (first, second, third)]) == (["look"], [1, 0, 0])
    assert [
        vars(record)["tool"]
        for record in caplog.records
        if record.getMessage() == "tool.name_taken"
    ] == ["look", "look"]
