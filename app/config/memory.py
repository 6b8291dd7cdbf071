"""What an agent's definition says of its memory."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

BUILT_IN = "sql"
"""The backend that keeps conversations in the database of DATABASE_URL."""

DEFAULT_RECENT_MESSAGES = 10
DEFAULT_HISTORY_MESSAGES = 100


class CompressionDefinition(BaseModel):
    """When and how older messages become a summary; `threshold_tokens` None means MEMORY_COMPRESSION_TOKEN_THRESHOLD.

    The summary is made by the agent's own provider with `model` (None: the agent's), or as the agent named in `agent` would be asked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    threshold_tokens: Annotated[int, Field(ge=100, le=10_000_000)] | None = None
    recent_messages_to_keep: Annotated[int, Field(ge=1, le=1000)] = DEFAULT_RECENT_MESSAGES
    model: str | None = None
    agent: str | None = None
    prompt_file: str | None = None
    prompt: str = ""
    # Of ScottRBK/ai-agent-service, where summarised messages were moved away; here they always stay.
    archive_conversations: bool | None = None


class MemoryDefinition(BaseModel):
    """`resource_config.memory`: `backend` is the built-in one or a plug-in's; without `required`, the agent answers without its memory
    while that cannot be used."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: str = BUILT_IN
    required: bool = True
    compression: CompressionDefinition = CompressionDefinition()
    retention_days: Annotated[float, Field(gt=0, le=36_500)] | None = None
    history_messages: Annotated[int, Field(ge=2, le=10_000)] = DEFAULT_HISTORY_MESSAGES

    @field_validator("compression", mode="before")
    @classmethod
    def _null_means_default(cls, value: object) -> object:
        return CompressionDefinition() if value is None else value


class ResourceConfig(BaseModel):
    """`resource_config`: what is not known of here belongs to resources that are not offered."""

    model_config = ConfigDict(extra="allow", frozen=True)

    memory: MemoryDefinition = MemoryDefinition()

    @field_validator("memory", mode="before")
    @classmethod
    def _null_means_default(cls, value: object) -> object:
        return MemoryDefinition() if value is None else value
