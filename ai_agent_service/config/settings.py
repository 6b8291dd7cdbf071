"""The service's settings, read from the environment and from `.env`."""

import os
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote, urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ai_agent_service import __version__
from ai_agent_service.config.addresses import normalize_base_url, normalize_ollama_url
from ai_agent_service.config.json_files import read_text
from ai_agent_service.core.errors import ConfigError, Fault


def _split_names(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(name for part in value.replace("|", ",").split(",") if (name := part.strip()))


def _check_url(value: str) -> str:
    value = value.strip()
    if not value.startswith(("http://", "https://")):
        raise ValueError("an address beginning with http:// or https:// is needed")
    if not urlsplit(value).hostname:
        raise ValueError("the address names no host")
    return value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names)]
Url = Annotated[str, AfterValidator(_check_url)]
BaseUrl = Annotated[Url, AfterValidator(normalize_base_url)]
OllamaUrl = Annotated[Url, AfterValidator(normalize_ollama_url)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Settings(BaseSettings):
    """One field per environment variable, of the same name in capitals; `.env.example` tells what
    each is for."""

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    service_name: str = "ai-agent-service"
    """The name the service gives itself, in / and /health and as owner of its models."""
    service_version: str = __version__
    """The version that / and /health report; by default that of the program."""
    host: str = "127.0.0.1"
    """The address to listen on; 127.0.0.1 is reachable from this machine only."""
    port: int = Field(8000, ge=0, le=65_535)
    """The port to listen on; 0 takes a free one."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    """The least severe log lines to write: DEBUG, INFO, WARNING, ERROR or CRITICAL."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """The form of log lines: json, text, or auto, which is text on a terminal and json
    elsewhere."""
    log_queue_lines: int = Field(10_000, ge=100, le=1_000_000)
    """Log lines, and audit lines, that wait at most for a reader or a disk that is slow; further
    ones are dropped and counted."""

    agent_config_file: Path = Path("agent_config.json")
    """The file that defines the agents."""
    mcp_config_file: Path = Path("mcp.json")
    """The file that defines the MCP servers; it may be absent."""
    prompts_dir: Path = Path("prompts")
    """The folder that an agent's system_prompt_file is looked up in."""
    plugins_dir: Path | None = None
    """A folder whose .py files add tools, providers, agent types and memories; unset means none."""
    reload_config: bool = False
    """Read agents, MCP servers and prompts anew as soon as their files change; else when the
    service is told to."""

    default_provider: str | None = None
    """The provider of agents that say auto; unset takes the first that is configured, else demo."""
    task_provider: str | None = None
    """The provider that finds titles, tags and the like for Open WebUI; unset means that of the
    agent."""
    task_model: str | None = None
    """The model that does so; unset means the agent's, or with TASK_PROVIDER the default of that
    provider."""

    azure_openai_api_key: SecretStr | None = None
    """The key of the Azure OpenAI resource."""
    azure_openai_endpoint: Url | None = None
    """The address of the Azure OpenAI resource, such as https://NAME.openai.azure.com/, or the
    Target URI of a deployment."""
    azure_openai_api_version: str | None = None
    """A dated API version selects the /openai/deployments addresses; unset selects /openai/v1/."""
    azure_openai_default_model: str | None = None
    """The Azure deployment of agents that name no model."""
    azure_openai_model_list: Names = ()
    """Azure deployments, separated by commas, that a caller may ask for instead of the agent's
    own."""

    openrouter_api_key: SecretStr | None = None
    """The key for OpenRouter."""
    openrouter_base_url: BaseUrl = "https://openrouter.ai/api/v1"
    """The address of OpenRouter's API."""
    openrouter_default_model: str = "openrouter/auto"
    """The OpenRouter model of agents that name none."""
    openrouter_model_list: Names = ()
    """OpenRouter models, separated by commas, that a caller may ask for instead of the agent's
    own."""

    openai_api_key: SecretStr | None = None
    """The key for OpenAI or the compatible server at OPENAI_BASE_URL; a server without keys needs
    none."""
    openai_base_url: BaseUrl | None = None
    """The address of any OpenAI-compatible server, up to and with /v1; unset means OpenAI
    itself."""
    openai_default_model: str | None = None
    """The model of agents with the provider openai that name none."""
    openai_model_list: Names = ()
    """Models, separated by commas, that a caller may ask for instead of the agent's own."""

    ollama_base_url: OllamaUrl = "http://localhost:11434"
    """The address of the Ollama server."""
    ollama_default_model: str | None = None
    """The Ollama model of agents that name none; unset takes the first one installed there."""
    ollama_model_list: Names = ()
    """Ollama models, separated by commas, that a caller may ask for instead of the agent's own."""

    data_dir: Path = Path("data")
    """The folder of the SQLite database, which is made when it is needed."""
    database_url: SecretStr | None = None
    """The database of conversations: postgresql://USER:PASSWORD@HOST:5432/DATABASE or
    sqlite:///FILE; unset means POSTGRES_* if they are set, else ai-agent-service.db in DATA_DIR."""
    database_replica_url: SecretStr | None = None
    """A streaming replica of the PostgreSQL database, from which the history of conversations is
    read."""
    postgres_user: str | None = None
    """The user of the PostgreSQL database, where DATABASE_URL is not set."""
    postgres_password: SecretStr | None = None
    """The password of POSTGRES_USER."""
    postgres_db: str | None = None
    """The name of the PostgreSQL database; unset means that of POSTGRES_USER."""
    postgres_host: str = "localhost"
    """The machine of the PostgreSQL server."""
    postgres_port: int = Field(5432, ge=1, le=65_535)
    """The port of the PostgreSQL server."""
    database_pool_size: int = Field(10, ge=1, le=1000)
    """Connections to PostgreSQL that one process holds at most."""
    database_timeout: Seconds = 5
    """Seconds that a connection, a statement and a transaction may take; past them the database
    counts as away."""
    database_migrate: bool = True
    """Make and change the tables at start; else run: ai-agent-service db upgrade."""

    memory_compression_token_threshold: int = Field(8000, ge=100)
    """Tokens that a model may be sent before the older messages of a conversation become a
    summary."""
    memory_retention_days: float | None = Field(None, gt=0, le=36_500)
    """Days after which a conversation that is not used any more is deleted; unset keeps it."""
    memory_cleanup_interval_hours: float = Field(24, gt=0, le=8760)
    """Hours from one deletion of old conversations to the next."""
    memory_encryption_keys: SecretStr | None = None
    """Keys that what users and agents say is encrypted with in the database: 32 bytes in base64
    each, separated by commas, newest first."""

    api_keys: SecretStr | None = None
    """Keys that may do everything, separated by commas, of at least 20 characters each; they need
    no database."""
    api_key_pepper: SecretStr | None = None
    """32 or more characters that digests of keys are made with; unset means some that are kept in
    the database."""
    allow_unauthenticated: bool = False
    """Let callers without a key do everything, on every address that is listened on."""
    allowed_hosts: Names = ()
    """Names, separated by commas, that callers without a key may call this service by, besides
    those of this machine."""
    identity_mode: Literal["none", "open_webui_jwt", "trusted_proxy", "oidc"] = "none"
    """Who says which user is behind a key: none (callers themselves), open_webui_jwt, trusted_proxy
    or oidc."""
    open_webui_jwt_secret: SecretStr | None = None
    """The FORWARD_USER_INFO_HEADER_JWT_SECRET of Open WebUI, of 32 or more bytes, for
    open_webui_jwt."""
    trusted_proxy_cidrs: Names = ()
    """Networks such as 10.0.0.0/8, separated by commas, from which a trusted_proxy may tell its
    users."""
    trusted_proxy_secret: SecretStr | None = None
    """20 or more characters that a trusted_proxy sends with each request."""
    trusted_proxy_secret_header: str = "X-Proxy-Secret"  # noqa: S105 - the name of a header
    """The header with TRUSTED_PROXY_SECRET."""
    trusted_proxy_user_header: str = "X-Forwarded-User"
    """The header with the user's id."""
    trusted_proxy_groups_header: str = "X-Forwarded-Groups"
    """The header with the user's groups, separated by commas."""
    trusted_proxy_roles_header: str = "X-Forwarded-Roles"
    """The header with the user's roles, separated by commas."""
    oidc_issuer: str | None = None
    """The issuer of users' tokens, for oidc: an https address."""
    oidc_audience: str | None = None
    """The audience that users' tokens must be for."""
    oidc_algorithms: Names = ()
    """The algorithms, separated by commas, that tokens may be signed by; unset means RS256."""
    oidc_jwks_url: str | None = None
    """Where the issuer's keys are; unset means where its discovery document says."""
    oidc_token_header: str = "Authorization"  # noqa: S105 - the name of a header
    """The header with the user's token; with Authorization, the API key goes into x-api-key."""
    oidc_user_claim: str = "sub"
    """The claim with the user's id."""
    oidc_groups_claim: str = "groups"
    """The claim with the user's groups."""
    oidc_roles_claim: str = "roles"
    """The claim with the user's roles."""
    audit_log_file: Path | None = None
    """Where audit lines go; unset means standard error."""
    audit_required: bool = False
    """Write the audit line of a run's start before the run is answered; refuse runs with 503 while
    that is impossible."""
    tls_cert_file: Path | None = None
    """The certificate, and those between it and its root, as PEM; unset means HTTP."""
    tls_key_file: Path | None = None
    """The private key of TLS_CERT_FILE, as PEM."""

    protect_process_memory: bool = True
    """Keep other processes of the same user from reading keys in the memory of this one, on Linux;
    false permits debuggers and core dumps."""

    request_timeout: Seconds = 300
    """Seconds that a whole run may take."""
    tool_execution_timeout: Seconds = 30
    """Seconds that one tool call may take, unless the tool has its own limit."""
    max_concurrent_requests: int = Field(100, ge=1)
    """Runs under way at once in one process; more are answered 429."""
    max_connections_per_address: int | None = Field(None, ge=1)
    """Connections of one address to one process, before a key is seen; unset means ten times
    MAX_CONCURRENT_REQUESTS. Those of this machine and of TRUSTED_PROXY_CIDRS are not counted."""
    max_answer_characters: int = Field(1_000_000, ge=1000)
    """Characters of text and reasoning that a run may have; a longer answer ends there, with the
    finish reason `length`."""
    max_request_bytes: int = Field(32 * 1024 * 1024, ge=1024)
    """The largest request body, in bytes."""
    drain_seconds: float | None = Field(None, ge=0, le=3600)
    """Seconds that requests are served as before after the service is asked to stop, so that load
    balancers notice; unset means 4, but 0 in a terminal and where no request came within the last
    minute."""
    shutdown_timeout: Seconds = 30
    """Seconds after that which open requests have to end."""

    mcp_tool_cache_ttl: Seconds = 3600
    """Seconds that an MCP server's list of tools is used before it is asked for again in the
    background."""
    mcp_connect_timeout: Seconds = 60
    """Seconds that an MCP server may take to start and to answer; one run by uvx or npx downloads
    its package first."""

    provider_connect_timeout: Seconds = 10
    """Seconds to connect to a provider."""
    provider_first_byte_timeout: Seconds = 120
    """Seconds from asking a provider to the first byte of its answer."""
    provider_idle_timeout: Seconds = 60
    """Seconds that a provider may pause within its answer."""
    provider_max_retries: int = Field(2, ge=0, le=10)
    """How often a failed call is tried again before its answer has begun."""
    provider_breaker_failures: int = Field(5, ge=0, le=10_000)
    """Failures in a row after which a provider's model is not asked for a time; 0 asks it
    always."""
    provider_breaker_seconds: Seconds = 30
    """Seconds for which it is not asked; then one request finds out."""

    evaluation_output_dir: Path = Path("evaluations/output")
    """The folder in which eval keeps datasets, results and reports."""
    deepeval_telemetry_opt_out: str = "YES"
    """Only NO has DeepEval, the extra for judged metrics, tell its makers anonymously what is
    measured."""
    confident_tracing_enabled: bool = False
    """Whether judged answers go to Confident AI as traces; it takes a key too."""
    confident_api_key: SecretStr | None = None
    """The key for traces at Confident AI."""

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the address that is listened on."""
        return is_loopback(self.host)

    @property
    def postgres_url(self) -> str | None:
        """The address that POSTGRES_* make up; None where POSTGRES_USER is not set."""
        if self.postgres_user is None:
            return None
        password = (
            f":{quote(self.postgres_password.get_secret_value(), safe='')}"
            if self.postgres_password
            else ""
        )
        host = f"[{self.postgres_host}]" if ":" in self.postgres_host else self.postgres_host
        database = quote(self.postgres_db or self.postgres_user, safe="")
        user = quote(self.postgres_user, safe="")
        return f"postgresql://{user}{password}@{host}:{self.postgres_port}/{database}"

    @field_validator("log_level", mode="before")
    @classmethod
    def _to_upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("log_format", mode="before")
    @classmethod
    def _to_lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value


def is_loopback(host: str) -> bool:
    """Return whether this host name or address is that of this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_settings(**overrides: object) -> tuple[Settings, list[Fault]]:
    """The settings of this process, and a fault for each variable that is wrong, which has its
    default then.

    `overrides`, by field name, win over the environment. Values are not repeated in faults, for
    they may be secrets. Raises ConfigError where there is a .env that cannot be read.
    """
    file = Settings.model_config.get("env_file")
    if (
        isinstance(file, str)
        and os.path.lexists(file)
        and isinstance(fault := read_text(Path(file)), Fault)
    ):
        raise ConfigError([fault])
    try:
        return Settings.model_validate(overrides), []
    except ValidationError as error:
        wrong = error.errors(include_input=False, include_url=False)
    defaults = {
        name: Settings.model_fields[name].default for part in wrong if (name := str(part["loc"][0]))
    }
    faults = [
        Fault.in_environment(
            str(part["loc"][0]).upper(),
            part["msg"].removeprefix("Value error, "),
            "Correct it in the environment or in .env",
        )
        for part in wrong
    ]
    return Settings.model_validate({**overrides, **defaults}), faults


def load_settings(**overrides: object) -> Settings:
    """As `read_settings`, but raises ConfigError for faults."""
    settings, faults = read_settings(**overrides)
    if faults:
        raise ConfigError(faults)
    return settings
