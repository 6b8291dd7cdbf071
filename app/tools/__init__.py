"""Tools that run here: what a tool is, how a function becomes one, how a call is carried out."""

from app.tools.base import ToolOutput
from app.tools.function import tool

__all__ = ["ToolOutput", "tool"]
