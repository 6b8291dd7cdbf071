"""Agent types that misbehave."""

import asyncio
from collections.abc import AsyncGenerator

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.events import RunEvent, TextDelta
from ai_agent_service.core.turn import Turn


class CancelsItself(BaseAgent):
    """An agent type that breaks the rules of cancellation."""

    type = "cancels_itself"

    async def run(self, turn: Turn, context: RunContext) -> AsyncGenerator[RunEvent, None]:
        """Half an answer."""
        yield TextDelta("Half")
        raise asyncio.CancelledError
