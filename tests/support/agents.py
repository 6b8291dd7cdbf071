"""Agent types and tools for tests of the API."""

import asyncio
from collections.abc import AsyncGenerator

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.events import RunEvent, TextDelta
from ai_agent_service.core.turn import Turn
from ai_agent_service.tools.function import tool
from tests.support.fake_provider import Script, calls, says
from tests.support.service import AGENT


class CancelsItself(BaseAgent):
    """Agent type that breaks the rules of cancellation."""

    type = "cancels_itself"

    async def run(self, turn: Turn, context: RunContext) -> AsyncGenerator[RunEvent, None]:
        """Yield half an answer, then cancel."""
        yield TextDelta("Half")
        raise asyncio.CancelledError


@tool
async def climb(context: RunContext) -> str:
    """Climbs."""
    context.report_progress(1, 4, "base camp")
    return "at the top"


CLIMBER = {**AGENT, "allowed_regular_tools": ["climb"]}


def climbing() -> Script:
    """Return a model that calls `climb` and then answers."""
    return Script(calls(("climb", {})), says("Done."))
