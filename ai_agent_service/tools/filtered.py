"""Shows some of a source's tools and hides the others."""

from collections.abc import Collection

from ai_agent_service.tools.base import Tool, ToolSource


class FilteredSource:
    """The tools of `source` whose names are among `names`; nobody can run the others through it."""

    def __init__(self, source: ToolSource, names: Collection[str]) -> None:
        self._source = source
        self._names = frozenset(names)
        self._all: tuple[Tool, ...] = ()
        self._kept: tuple[Tool, ...] = ()

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools that there are now."""
        if (tools := self._source.tools) is not self._all:
            self._all, self._kept = (
                tools,
                tuple(tool for tool in tools if tool.spec.name in self._names),
            )
        return self._kept

    @property
    def unavailable(self) -> str:
        """What of it cannot be used now."""
        return self._source.unavailable
