"""Make a tool of an MCP server a tool of an agent."""

import hashlib
import re
from collections.abc import Awaitable, Callable, Iterable

from ai_agent_service.core.context import RunContext
from ai_agent_service.core.messages import ToolSpec
from ai_agent_service.core.text import replace_unstorable
from ai_agent_service.mcp.base import RemoteTool
from ai_agent_service.tools.base import DEFAULT_MAX_OUTPUT, ToolOutput
from ai_agent_service.tools.schema import complete_schema

MAX_NAME = 64
_DIGEST = 8
_PLAIN_LABEL = re.compile(r"[A-Za-z0-9-]+(_[A-Za-z0-9-]+)*")
_PLAIN_TOOL = re.compile(r"[A-Za-z0-9_-]+")
_DIGEST_SUFFIX = re.compile(rf".*_[0-9a-f]{{{_DIGEST}}}")
_INVALID_CHARACTER = re.compile(r"[^A-Za-z0-9_-]")

ToolCaller = Callable[["McpTool", dict[str, object], RunContext], Awaitable[ToolOutput]]


class McpTool:
    """The tool `remote` of the server `label`; `call` executes its calls. Raises SchemaError for a
    tool that no provider accepts."""

    timeout: float | None = None
    parallel = True
    max_output = DEFAULT_MAX_OUTPUT

    def __init__(self, label: str, remote: RemoteTool, call: ToolCaller) -> None:
        self.label = label
        self.remote = remote
        self.spec = ToolSpec(
            build_model_name(label, remote.name),
            replace_unstorable(remote.description),
            complete_schema(remote.parameters),
        )
        self._call = call

    async def run(self, arguments: dict[str, object], context: RunContext) -> ToolOutput:
        """Run the tool on its server; raises ToolError with the server's words, or with ours if it
        cannot be reached."""
        return await self._call(self, arguments, context)


def build_model_name(label: str, tool: str) -> str:
    """The name by which models know the tool `tool` of the server `label`: `label__tool`, in at
    most 64 letters, digits, `_` and `-`.

    What does not fit that, or could be read in two ways, ends in a digest of both, so that no two
    tools are alike.
    """
    name = f"{label}__{tool}"
    if (
        len(name) <= MAX_NAME
        and _PLAIN_LABEL.fullmatch(label)
        and _PLAIN_TOOL.fullmatch(tool)
        and not _DIGEST_SUFFIX.fullmatch(tool)
    ):
        return name
    digest = hashlib.sha256(f"{label}\0{tool}".encode(errors="surrogatepass")).hexdigest()[:_DIGEST]
    return f"{_INVALID_CHARACTER.sub('_', name)[: MAX_NAME - _DIGEST - 1]}_{digest}"


def build_model_names(label: str, tools: Iterable[str]) -> frozenset[str]:
    """Return `build_model_name` of each of `tools`."""
    return frozenset(build_model_name(label, tool) for tool in tools)
