"""Combine an agent's fixed tools with those of sources, which change."""

import asyncio
import operator
from collections.abc import Callable, Iterable

from ai_agent_service.tools.base import Tool, ToolOutput, ToolSource
from ai_agent_service.tools.toolset import Toolset


class AvailableTools:
    """The fixed `tools` and the current ones of `sources`, in a `toolset`."""

    def __init__(
        self,
        tools: Iterable[Tool],
        sources: Iterable[ToolSource] = (),
        *,
        default_timeout: float,
        toolset: Callable[..., Toolset] = Toolset,
    ) -> None:
        self._toolset_factory = toolset
        self._fixed = tuple(tools)
        self._sources = tuple(sources)
        self._default_timeout = default_timeout
        self._abandoned: set[asyncio.Task[ToolOutput]] = set()
        self._seen: tuple[tuple[Tool, ...], ...] = ()
        self._toolset = self._build_toolset((), ())

    def get_toolset(self) -> Toolset:
        """Return the current tools: an immutable toolset, the same object until something
        changes."""
        if not self._sources:
            return self._toolset
        seen = tuple(source.tools for source in self._sources)
        unavailable = tuple(words for source in self._sources if (words := source.unavailable))
        if (
            len(seen) != len(self._seen)
            or any(map(operator.is_not, seen, self._seen))
            or unavailable != self._toolset.unavailable
        ):
            self._seen, self._toolset = seen, self._build_toolset(seen, unavailable)
        return self._toolset

    def _build_toolset(
        self, seen: tuple[tuple[Tool, ...], ...], unavailable: tuple[str, ...]
    ) -> Toolset:
        tools = (*self._fixed, *(tool for tools in seen for tool in tools))
        return self._toolset_factory(
            tools,
            default_timeout=self._default_timeout,
            unavailable=unavailable,
            abandoned=self._abandoned,
        )
