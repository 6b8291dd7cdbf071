"""The agents API's requests and responses."""

from datetime import datetime
from typing import Annotated, ClassVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ai_agent_service.api.http.json_limits import WithTexts
from ai_agent_service.api.openai.chat_schema import CallersSettings, ChatMessage, CompletionUsage


class AgentView(msgspec.Struct):
    """An agent; `problem` is what keeps it from answering, `unavailable` what it answers without
    for now. `version` is another one whenever its definition is.

    `api` is the API through which its model is asked, such as `auto: responses`; null for a
    provider with one API."""

    agent_id: str
    description: str
    type: str
    provider: str
    model: str | None
    api: str | None
    tools_available: list[str]
    mcp_servers: list[str]
    resources: list[str]
    max_steps: int
    available: bool
    problem: str | None
    unavailable: list[str]
    version: str


class AgentChatRequest(WithTexts):
    """One message to an agent, or a whole conversation in `messages`."""

    texts: ClassVar = frozenset({"message"})
    message: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=20_000)] | None = None
    user_id: str | None = None
    session_id: str | None = None
    model: str | None = None
    model_settings: CallersSettings | None = None
    stream: bool = False


class ToolRun(msgspec.Struct):
    """One call of a tool: its arguments as JSON text, its result, how long it took."""

    id: str
    name: str
    arguments: str
    result: str
    is_error: bool
    seconds: float


class AgentChatResponse(msgspec.Struct):
    """The agent's answer and the tools it used."""

    response: str
    agent_id: str
    user_id: str
    session_id: str | None
    run_id: str
    timestamp: datetime
    model_used: str
    finish_reason: str
    tools_available: int
    tool_calls: list[ToolRun]
    steps: int
    reasoning: str | None = None
    usage: CompletionUsage | UnsetType = UNSET
