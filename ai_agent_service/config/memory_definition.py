"""What an agent's definition says of its memory."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

BUILT_IN = "sql"
"""The backend that keeps conversations in the database of DATABASE_URL."""

DEFAULT_RECENT_MESSAGES = 10
DEFAULT_HISTORY_MESSAGES = 100


class CompressionDefinition(BaseModel):
    """When and how older messages become a summary; `threshold_tokens` None means
    MEMORY_COMPRESSION_TOKEN_THRESHOLD.

    The summary is made by the agent's own provider with `model` (None: the agent's), or as the
    agent named in `agent` would be asked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(default=True, description="Whether older messages become a summary.")
    threshold_tokens: Annotated[int, Field(ge=100, le=10_000_000)] | None = Field(
        default=None,
        description=(
            "Tokens that the model may be sent before they do; unset means"
            " `MEMORY_COMPRESSION_TOKEN_THRESHOLD`."
        ),
    )
    recent_messages_to_keep: int = Field(
        default=DEFAULT_RECENT_MESSAGES,
        ge=1,
        le=1000,
        description="How many messages stay as they are.",
    )
    model: str | None = Field(
        default=None,
        description=(
            "The model that makes summaries, of the agent's provider; unset means the agent's."
        ),
    )
    agent: str | None = Field(
        default=None,
        description=(
            "The agent as which to make them: its provider, model and settings; unset means the"
            " agent itself."
        ),
    )
    prompt_file: str | None = Field(
        default=None,
        description="The prompt for summaries, in `PROMPTS_DIR`; unset means a built-in one.",
    )
    prompt: str = ""
    # Of ScottRBK/ai-agent-service, where summarised messages were moved away; here they always
    # stay.
    archive_conversations: bool | None = Field(
        default=None, description="Has no effect, and is warned of: messages always stay."
    )


class MemoryDefinition(BaseModel):
    """`resource_config.memory`: `backend` is the built-in one or a plug-in's; without `required`,
    the agent answers without its memory while that cannot be used."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: str = Field(
        default=BUILT_IN, description="Where conversations are kept: `sql`, or a plug-in's."
    )
    required: bool = Field(
        default=True,
        description=(
            "While the database cannot be used the agent answers 503 with Retry-After; with"
            " `false`, without its memory."
        ),
    )
    compression: CompressionDefinition = Field(
        default=CompressionDefinition(), description="When and how older messages become a summary."
    )
    retention_days: Annotated[float, Field(gt=0, le=36_500)] | None = Field(
        default=None,
        description=(
            "Days after its last use that a conversation is kept; unset means"
            " `MEMORY_RETENTION_DAYS`."
        ),
    )
    history_messages: int = Field(
        default=DEFAULT_HISTORY_MESSAGES,
        ge=2,
        le=10_000,
        description="How many messages of the server's history a model is shown.",
    )

    @field_validator("compression", mode="before")
    @classmethod
    def _replace_null(cls, value: object) -> object:
        return CompressionDefinition() if value is None else value


class ResourceConfig(BaseModel):
    """`resource_config`: what is not known of here belongs to resources that are not offered."""

    model_config = ConfigDict(extra="allow", frozen=True)

    memory: MemoryDefinition = Field(
        default=MemoryDefinition(),
        description='How the agent remembers, with `"resources": ["memory"]`.',
    )

    @field_validator("memory", mode="before")
    @classmethod
    def _replace_null(cls, value: object) -> object:
        return MemoryDefinition() if value is None else value
