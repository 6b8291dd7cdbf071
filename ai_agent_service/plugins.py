"""The public façade for plug-ins: every name that a tool, provider, agent type or memory backend
needs.

All other modules are internal and may change without notice. Importing this module loads no part of
the server: neither the web framework, nor a database driver, nor an MCP library.
"""

from ai_agent_service.agents.agent import Agent
from ai_agent_service.agents.base import AgentParts, BaseAgent
from ai_agent_service.config.agent_definition import AgentDefinition
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import (
    ConfigError,
    ContextTooLongError,
    Fault,
    MemoryUnavailableError,
    ProviderNotConfiguredError,
    ProviderProtocolError,
    ProviderUnavailableError,
    SessionBusyError,
    ToolError,
    UpstreamError,
)
from ai_agent_service.core.events import (
    FinishReason,
    MemorySkipped,
    ReasoningDelta,
    RefusalDelta,
    RunEvent,
    RunFailed,
    RunFinished,
    StepRecord,
    TextDelta,
    ToolFinished,
    ToolProgress,
    ToolsMissing,
    ToolStarted,
)
from ai_agent_service.core.messages import (
    ImagePart,
    Link,
    Message,
    TextPart,
    ToolCall,
    ToolResult,
    ToolSpec,
)
from ai_agent_service.core.turn import Turn
from ai_agent_service.core.usage import Usage
from ai_agent_service.memory.base import (
    Memory,
    MemorySetup,
    RememberedTurn,
    Step,
    TurnAnswer,
)
from ai_agent_service.providers.base import (
    ModelEvent,
    ModelFinished,
    ModelRequest,
    Pingable,
    Provider,
    ProviderSetup,
)
from ai_agent_service.providers.chat_wire import Profile
from ai_agent_service.providers.openai_compatible import OpenAICompatible
from ai_agent_service.tools.base import Tool, ToolOutput
from ai_agent_service.tools.function import tool

__all__ = [
    "Agent",
    "AgentDefinition",
    "AgentParts",
    "TurnAnswer",
    "BaseAgent",
    "ConfigError",
    "ContextTooLongError",
    "Fault",
    "FinishReason",
    "ImagePart",
    "Link",
    "Memory",
    "MemorySetup",
    "MemorySkipped",
    "MemoryUnavailableError",
    "Message",
    "ModelEvent",
    "ModelFinished",
    "ModelRequest",
    "OpenAICompatible",
    "Pingable",
    "Profile",
    "Provider",
    "ProviderNotConfiguredError",
    "ProviderProtocolError",
    "ProviderSetup",
    "ProviderUnavailableError",
    "ReasoningDelta",
    "RefusalDelta",
    "RememberedTurn",
    "RunContext",
    "RunEvent",
    "RunFailed",
    "RunFinished",
    "SessionBusyError",
    "Step",
    "StepRecord",
    "TextDelta",
    "TextPart",
    "Tool",
    "ToolCall",
    "ToolError",
    "ToolFinished",
    "ToolOutput",
    "ToolProgress",
    "ToolResult",
    "ToolSpec",
    "ToolStarted",
    "ToolsMissing",
    "Turn",
    "UpstreamError",
    "Usage",
    "tool",
]
