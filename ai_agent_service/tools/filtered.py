"""Show some of a source's tools and hide the others."""

from collections.abc import Collection

from ai_agent_service.tools.base import Tool, ToolSource


class FilteredSource:
    """The tools of `source` that are among `names`; the others cannot be run through it."""

    def __init__(self, source: ToolSource, names: Collection[str]) -> None:
        self._source = source
        self._names = frozenset(names)
        self._all: tuple[Tool, ...] = ()
        self._kept: tuple[Tool, ...] = ()

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The current tools."""
        if (tools := self._source.tools) is not self._all:
            self._all = tools
            self._kept = tuple(tool for tool in tools if tool.spec.name in self._names)
        return self._kept

    @property
    def unavailable(self) -> str:
        """What cannot be used now."""
        return self._source.unavailable
