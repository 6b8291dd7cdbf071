"""Reads agent_config.json into agent definitions, all faults of the file at once."""

from types import UnionType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from ai_agent_service.config.definition import Definition, use_default_for_null
from ai_agent_service.config.display_definition import DisplayDefinition
from ai_agent_service.config.memory_definition import MemoryDefinition, ResourceConfig

DEFAULT_MAX_STEPS = 12
DEFAULT_CACHE_SECONDS = 300.0
RESERVED_MODEL_SETTINGS = frozenset(
    {
        *("messages", "model", "stream", "stream_options"),
        *("tools", "tool_choice", "functions", "function_call"),
        *("n", "logprobs", "top_logprobs", "modalities", "audio"),
    }
)
"""Fields of a request that are the service's own, and those that ask for what agents do not
give."""
_SETTING_TYPES: dict[str, tuple[type | UnionType, str]] = {
    "temperature": (int | float, "a number, such as 0.2"),
    "top_p": (int | float, "a number, such as 0.9"),
    "max_tokens": (int, "an integer, such as 2000"),
    "max_completion_tokens": (int, "an integer, such as 2000"),
    "response_format": (dict, 'an object, such as {"type": "json_object"}'),
    "reasoning": (dict, 'an object, such as {"effort": "low", "summary": "auto"}'),
    "reasoning_effort": (str, "a string, such as 'low'"),
    "verbosity": (str, "a string, such as 'low'"),
    "service_tier": (str, "a string, such as 'flex'"),
    "prompt_cache_key": (str, "a string"),
    "parallel_tool_calls": (bool, "true or false"),
    "include": (list, "a list of strings"),
    "text": (dict, 'an object, such as {"verbosity": "low"}'),
}
"""The types of settings; providers check their values."""
AUTO = "auto"
ApiName = Literal["auto", "chat_completions", "responses"]
"""The API through which a model is asked."""
PROVIDER_ALIASES = {"azure_openai_cc": "azure_openai"}
ProviderName = Annotated[str, AfterValidator(lambda name: PROVIDER_ALIASES.get(name, name))]
_NO_EFFECT = (
    "Has no effect, and is warned of; it is read so that files of ScottRBK/ai-agent-service load."
)


class AllowedTools(Definition):
    """What an agent may use of one MCP server: the named tools, or all of them (None).

    `cached_mcp_tools` maps tools to the seconds that a result of theirs is used again for the same
    arguments; a list means DEFAULT_CACHE_SECONDS for each.
    """

    allowed_mcp_tools: tuple[str, ...] | None = None
    """The tools that the agent may use; null means all of the server."""
    cached_mcp_tools: dict[str, Annotated[float, Field(gt=0, le=86_400)]] = Field(
        default={},
        description=(
            "Tools, and the seconds for which a result of theirs is used again for the same"
            f" arguments; a list of names means {DEFAULT_CACHE_SECONDS:g} for each."
        ),
    )

    @field_validator("cached_mcp_tools", mode="before")
    @classmethod
    def _convert_name_list(cls, value: object) -> object:
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return dict.fromkeys(value, DEFAULT_CACHE_SECONDS)
        return {} if value is None else value


class FallbackDefinition(Definition):
    """Another provider to ask when the agent's own fails, and its model: None is that provider's
    default."""

    provider: ProviderName
    """A provider, as in the agent's own `provider`."""
    model: str | None = None
    """Its model; unset means the provider's default."""
    api: ApiName = "auto"
    """Its API, as in the agent's own `api`."""


class AccessDefinition(Definition):
    """Who may use an agent: verified users that are in one of the groups and have one of the roles;
    an empty list asks for nothing."""

    groups: tuple[str, ...] = ()
    """The user has to be in one of these groups; an empty list asks for none."""
    roles: tuple[str, ...] = ()
    """The user has to have one of these roles; an empty list asks for none."""


class AgentDefinition(Definition):
    """One entry of agent_config.json, with its prompt read and its defaults filled in."""

    agent_id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$")
    """The model's name to clients: 1 to 128 letters, digits and `. _ : @ -`, of which the first is
    a letter or a digit."""
    description: str = ""
    """What the agent is for, in `/agents`."""
    type: str = "agent"
    """The agent class: `agent`, or one of a plug-in."""
    system_prompt: str = ""
    """The prompt itself; it or `system_prompt_file` is needed."""
    system_prompt_file: str | None = None
    """The prompt's file, within `PROMPTS_DIR`; in place of `system_prompt`."""
    provider: ProviderName = AUTO
    """Who is asked: `azure_openai` (also `azure_openai_cc`), `openrouter`, `openai`, `ollama`,
    `demo`, `auto`, or one of a plug-in."""
    model: str | None = None
    """The model, or Azure's deployment; unset means the provider's default."""
    api: ApiName = "auto"
    """The API of OpenAI that the provider is asked through: `responses`, `chat_completions`, or
    `auto`, which is Responses for OpenAI and Azure OpenAI, chat completions for other servers, and
    the other one where the server refuses that."""
    fallback: tuple[FallbackDefinition, ...] = Field(default=(), max_length=8)
    """Other providers that are asked, in this order, when the agent's own fails before its answer
    has begun."""
    model_settings: dict[str, Any] = Field(default={})
    """Fields of the request to the provider, such as `temperature`, `max_tokens`,
    `reasoning_effort`, `verbosity` or Ollama's `num_ctx`; those of the service itself, such as
    `messages`, `tools`, `stream` and `n`, are faults."""
    allowed_regular_tools: tuple[str, ...] = ()
    """The tools that the agent may use, built in or of plug-ins."""
    allowed_mcp_servers: dict[str, AllowedTools] = Field(default={})
    """The MCP servers that the agent may use, by their labels, and which of their tools."""
    client_tools: Literal["accept", "ignore"] | tuple[str, ...] = "accept"
    """What becomes of the tools that a client sends: `accept`, `ignore`, or a list of the names to
    accept."""
    resources: tuple[str, ...] = ()
    """`["memory"]` has the agent remember; a knowledge base is not offered."""
    resource_config: ResourceConfig = ResourceConfig()
    """How it remembers."""
    access: AccessDefinition = AccessDefinition()
    """Which verified users may use the agent; by default all callers."""
    display: DisplayDefinition = DisplayDefinition()
    """How clients show the agent."""
    max_steps: int = Field(default=DEFAULT_MAX_STEPS, ge=1, le=1000)
    """How often the model may be asked in one run."""

    # Fields of ScottRBK/ai-agent-service that ask for what this service does not do; read so that
    # its files load, and warned of.
    embedding_provider: str | None = Field(default=None, description=_NO_EFFECT)
    embedding_model: str | None = Field(default=None, description=_NO_EFFECT)
    rerank_provider: str | None = Field(default=None, description=_NO_EFFECT)
    rerank_model: str | None = Field(default=None, description=_NO_EFFECT)

    @property
    def memory(self) -> MemoryDefinition | None:
        """How the agent remembers; None if it does not."""
        return self.resource_config.memory if "memory" in self.resources else None

    @model_validator(mode="before")
    @classmethod
    def _convert_list_form(cls, value: object) -> object:
        """The older form of that project: a list of servers, and their tools in `allowed_mcp_tools`
        beside it."""
        if not isinstance(value, dict) or not isinstance(value.get("allowed_mcp_servers"), list):
            return value
        value = dict(value)
        tools = value.pop("allowed_mcp_tools", None) or {}
        servers = value["allowed_mcp_servers"]
        if not isinstance(tools, dict) or not all(isinstance(label, str) for label in servers):
            raise ValueError(
                "allowed_mcp_servers lists labels, and allowed_mcp_tools maps them to lists of"
                " tools"
            )
        value["allowed_mcp_servers"] = {
            label: {"allowed_mcp_tools": tools.get(label)} for label in servers
        }
        return value

    _replace_null = field_validator(
        *("fallback", "model_settings", "resource_config", "access", "display", "resources"),
        *("allowed_mcp_servers", "allowed_regular_tools"),
        mode="before",
    )(use_default_for_null)

    @field_validator("model_settings")
    @classmethod
    def _reject_reserved(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(RESERVED_MODEL_SETTINGS & value.keys())
        if taken:
            raise ValueError(
                f"{', '.join(taken)} cannot be set here: the service decides on it for each request"
            )
        return value

    @field_validator("model_settings")
    @classmethod
    def _check_types(cls, value: dict[str, Any]) -> dict[str, Any]:
        faults = [
            f"{name} must be {words}"
            for name, (kind, words) in _SETTING_TYPES.items()
            if value.get(name) is not None and not isinstance(value[name], kind)
        ]
        reasoning = value.get("reasoning")
        if isinstance(reasoning, dict):
            faults += [
                f"reasoning.{name} must be a string"
                for name in ("effort", "summary")
                if not isinstance(reasoning.get(name), str | None)
            ]
        if faults:
            raise ValueError("; ".join(faults))
        return value

    @field_validator("client_tools", mode="before")
    @classmethod
    def _check_client_tools(cls, value: object) -> object:
        if value in ("accept", "ignore") or (
            isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
        ):
            return value
        raise ValueError("this is neither 'accept' nor 'ignore' nor a list of names of tools")
