"""Opens the service for an evaluation, with a temporary database in place of the operator's."""

import tempfile
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from ai_agent_service.runtime.configuration import Configuration
from ai_agent_service.runtime.opening import open_service
from ai_agent_service.runtime.service import Service
from ai_agent_service.tools.toolset import Toolset


@asynccontextmanager
async def open_isolated_service(
    configuration: Configuration,
    agent_ids: Collection[str],
    toolset: Callable[..., Toolset] | None = None,
) -> AsyncGenerator[tuple[Service, Path], None]:
    """Open the service with a temporary database and only the MCP servers of `agent_ids`.

    Yields it with the temporary folder, which is deleted at the end. `toolset` is as for
    `open_service`.
    """
    with tempfile.TemporaryDirectory(
        prefix="ai-agent-service-eval-", ignore_cleanup_errors=True
    ) as name:
        folder = Path(name)
        isolated = configuration.restrict_servers(agent_ids).isolate(folder)
        async with open_service(isolated, toolset) as service:
            yield service, folder
