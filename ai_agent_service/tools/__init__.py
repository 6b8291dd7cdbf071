"""Tools that run in this process, and the execution of all tool calls."""

from ai_agent_service.tools.base import ToolOutput
from ai_agent_service.tools.function import tool

__all__ = ["ToolOutput", "tool"]
