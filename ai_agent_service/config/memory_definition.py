"""What an agent's definition says of its memory."""

from typing import Annotated

from pydantic import ConfigDict, Field, field_validator

from ai_agent_service.config.definition import Definition, use_default_for_null

BUILT_IN = "sql"
"""The backend that keeps conversations in the database of DATABASE_URL."""

DEFAULT_RECENT_MESSAGES = 10
DEFAULT_HISTORY_MESSAGES = 100


class CompressionDefinition(Definition):
    """When and how older messages become a summary; `threshold_tokens` None means
    MEMORY_COMPRESSION_TOKEN_THRESHOLD.

    The summary is made by the agent's own provider with `model` (None: the agent's), or as the
    agent named in `agent` would be asked.
    """

    enabled: bool = True
    """Whether older messages become a summary."""
    threshold_tokens: Annotated[int, Field(ge=100, le=10_000_000)] | None = None
    """Tokens that the model may be sent before they do; unset means
    `MEMORY_COMPRESSION_TOKEN_THRESHOLD`."""
    recent_messages_to_keep: int = Field(default=DEFAULT_RECENT_MESSAGES, ge=1, le=1000)
    """How many messages stay as they are."""
    model: str | None = None
    """The model that makes summaries, of the agent's provider; unset means the agent's."""
    agent: str | None = None
    """The agent as which to make them: its provider, model and settings; unset means the agent
    itself."""
    prompt_file: str | None = None
    """The prompt for summaries, in `PROMPTS_DIR`; unset means a built-in one."""
    prompt: str = ""
    # Of ScottRBK/ai-agent-service, where summarised messages were moved away; here they always
    # stay.
    archive_conversations: bool | None = None
    """Has no effect, and is warned of: messages always stay."""


class MemoryDefinition(Definition):
    """`resource_config.memory`: `backend` is the built-in one or a plug-in's; without `required`,
    the agent answers without its memory while that cannot be used."""

    backend: str = BUILT_IN
    """Where conversations are kept: `sql`, or a plug-in's."""
    required: bool = True
    """While the database cannot be used the agent answers 503 with Retry-After; with `false`,
    without its memory."""
    compression: CompressionDefinition = CompressionDefinition()
    """When and how older messages become a summary."""
    retention_days: Annotated[float, Field(gt=0, le=36_500)] | None = None
    """Days after its last use that a conversation is kept; unset means `MEMORY_RETENTION_DAYS`."""
    history_messages: int = Field(default=DEFAULT_HISTORY_MESSAGES, ge=2, le=10_000)
    """How many messages of the server's history a model is shown."""

    _replace_null = field_validator("compression", mode="before")(use_default_for_null)


class ResourceConfig(Definition):
    """`resource_config`: what is not known of here belongs to resources that are not offered."""

    model_config = ConfigDict(extra="allow")

    memory: MemoryDefinition = MemoryDefinition()
    """How the agent remembers, with `"resources": ["memory"]`."""

    _replace_null = field_validator("memory", mode="before")(use_default_for_null)
