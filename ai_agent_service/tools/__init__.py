"""Tools that run here: what a tool is, how a function becomes one, how a call is carried out."""

from ai_agent_service.tools.base import ToolOutput
from ai_agent_service.tools.function import tool

__all__ = ["ToolOutput", "tool"]
