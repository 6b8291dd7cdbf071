"""Opens the service for an evaluation, apart from the operator's database."""

import tempfile
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from ai_agent_service.runtime.configuration import Configuration
from ai_agent_service.runtime.opening import open_service
from ai_agent_service.runtime.service import Service
from ai_agent_service.tools.toolset import Toolset

CONNECT_SECONDS = 15.0
"""Seconds that an evaluation waits for the agents' MCP servers, before it goes on without them."""


@asynccontextmanager
async def open_isolated_service(
    configuration: Configuration,
    agent_ids: Collection[str],
    toolset: Callable[..., Toolset] | None = None,
) -> AsyncGenerator[tuple[Service, Path], None]:
    """The service with a database of its own and only the MCP servers of `agent_ids`, and a folder
    for what lasts as long as it; `toolset` is as for `open_service`."""
    with tempfile.TemporaryDirectory(
        prefix="ai-agent-service-eval-", ignore_cleanup_errors=True
    ) as name:
        folder = Path(name)
        isolated = configuration.restrict_servers(agent_ids).isolate(folder)
        async with open_service(isolated, toolset) as service:
            yield service, folder
