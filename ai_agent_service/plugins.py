"""The public façade for plug-ins: every name that a tool, provider, agent type or memory backend needs.

All other modules are internal and may change without notice. Importing this module loads no part of the server: neither the web
framework, nor a database driver, nor an MCP library.
"""

from ai_agent_service.agents.agent import Agent
from ai_agent_service.agents.base import AgentParts, BaseAgent, Turn
from ai_agent_service.config.agent_definition import AgentDefinition
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import (
    ConfigError,
    ContextTooLong,
    Fault,
    MemoryUnavailable,
    ProviderNotConfigured,
    ProviderProtocolError,
    ProviderUnavailable,
    SessionBusy,
    ToolFailed,
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
from ai_agent_service.core.usage import Usage
from ai_agent_service.memory.base import Answer, Asked, Memory, MemorySetup, RememberedTurn, Step
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
    "Answer",
    "Asked",
    "BaseAgent",
    "ConfigError",
    "ContextTooLong",
    "Fault",
    "FinishReason",
    "ImagePart",
    "Link",
    "Memory",
    "MemorySetup",
    "MemorySkipped",
    "MemoryUnavailable",
    "Message",
    "ModelEvent",
    "ModelFinished",
    "ModelRequest",
    "OpenAICompatible",
    "Pingable",
    "Profile",
    "Provider",
    "ProviderNotConfigured",
    "ProviderProtocolError",
    "ProviderSetup",
    "ProviderUnavailable",
    "ReasoningDelta",
    "RefusalDelta",
    "RememberedTurn",
    "RunContext",
    "RunEvent",
    "RunFailed",
    "RunFinished",
    "SessionBusy",
    "Step",
    "StepRecord",
    "TextDelta",
    "TextPart",
    "Tool",
    "ToolCall",
    "ToolFailed",
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
