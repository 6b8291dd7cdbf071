"""Define the session class of all transports."""

from mcp import ClientSession
from mcp_types import CallToolResult


class UncheckedSession(ClientSession):
    """A session that takes a tool's structured content as it is.

    The library would fail a call whose result does not match the tool's output schema, and would
    list the tools in the middle of it; the result is read by a model, which is not so particular.
    """

    async def validate_tool_result(self, name: str, result: CallToolResult) -> None:
        """Accept it."""
