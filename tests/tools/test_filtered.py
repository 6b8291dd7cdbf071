"""Some of a source's tools."""

from ai_agent_service.tools.filtered import FilteredSource
from tests.support.tools import Counting, Source


def test_only_the_named_tools_are_shown() -> None:
    look, listen = Counting("look"), Counting("listen")
    assert FilteredSource(Source(look, listen), ["listen", "absent"]).tools == (listen,)


def test_no_names_are_no_tools() -> None:
    assert FilteredSource(Source(Counting("look")), []).tools == ()


def test_the_tools_are_the_same_object_until_the_source_has_others() -> None:
    look, listen = Counting("look"), Counting("listen")
    source = Source(look)
    filtered = FilteredSource(source, ["look", "listen"])
    before = filtered.tools
    assert filtered.tools is before
    source.tools = (look, listen)
    assert filtered.tools == (look, listen)


def test_what_the_source_cannot_do_now_is_passed_on() -> None:
    source = Source(unavailable="the tools of eyes")
    filtered = FilteredSource(source, ["look"])
    assert filtered.unavailable == "the tools of eyes"
    source.unavailable = ""
    assert filtered.unavailable == ""
