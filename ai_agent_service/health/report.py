"""Build the health report: which parts can be used, which cannot, and why."""

import asyncio
from datetime import UTC, datetime
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from ai_agent_service.auth.access import Access
from ai_agent_service.core.redaction import redact_secrets
from ai_agent_service.health.checks import (
    AgentHealth,
    DatabaseAnswer,
    HealthChecks,
    ProviderHealth,
)
from ai_agent_service.health.probes import DiskHealth
from ai_agent_service.mcp.connection import ServerStatus, State
from ai_agent_service.memory.base import ErasureCounts
from ai_agent_service.memory.housekeeping import Housekeeping
from ai_agent_service.observability.line_writer import find_writers
from ai_agent_service.runtime.service import RejectedReload, Service
from ai_agent_service.runtime.shutdown import ShutdownState
from ai_agent_service.storage.database import Database
from ai_agent_service.storage.migrate import HEAD_REVISION

MAX_LAG_SECONDS = 60.0
"""How far a replica may be behind."""


class McpServerHealth(msgspec.Struct):
    """An MCP server: whether its tools can be used, else why not; `since` is when that began, and
    `problems` are what is left out of its list of tools."""

    state: State
    transport: str
    tools: list[str]
    error: str | None
    since: datetime
    restarts: int
    schema_changes: int
    quarantined_tools: list[str]
    problems: list[str]


class DatabaseHealth(msgspec.Struct):
    """The database of conversations and keys: whether it can be used, else why not; what was done
    in it since the start.

    `revision` is that of its tables, `expected_revision` the one of this version;
    `replica_lag_seconds` is how far the replica is behind, if known.
    """

    state: Literal["ready", "down", "timeout"]
    kind: str
    error: str | None
    round_trip_ms: float | None
    connections: int
    connections_in_use: int
    revision: str | None
    expected_revision: str
    replica: Literal["none", "ready", "down"]
    replica_error: str | None
    replica_lag_seconds: float | None
    cleaned_up_sessions: int
    cleaned_up_messages: int
    ended_runs: int


class IdentityHealth(msgspec.Struct):
    """The identification of users by IDENTITY_MODE; `keys` and the following fields are those of an
    OpenID Connect provider."""

    mode: str
    state: Literal["ready", "down"]
    keys: int | None
    keys_age_seconds: float | None
    error: str | None


class LogHealth(msgspec.Struct):
    """The log or the audit log: its file, or standard error; why lines cannot be written now, and
    how many were dropped since the start."""

    state: Literal["ready", "down"]
    file: str
    error: str | None
    dropped: int


class Health(msgspec.Struct):
    """The service is up. Only the detailed form has the parts and a `status` that depends on them:
    `degraded` if a part cannot be used, `unavailable` if nothing can be served; `reasons` say why.

    `access` is `open` if callers need no key. `rejected_reload` is the last reload, if its files
    had faults: the service goes on as it was.
    """

    status: Literal["healthy", "degraded", "unavailable"]
    timestamp: datetime
    service: str
    version: str
    access: Literal["keys", "open"]
    reasons: list[str] | UnsetType = UNSET
    agents: dict[str, AgentHealth] | UnsetType = UNSET
    providers: dict[str, ProviderHealth] | UnsetType = UNSET
    mcp_servers: dict[str, McpServerHealth] | UnsetType = UNSET
    database: DatabaseHealth | UnsetType = UNSET
    identity: IdentityHealth | UnsetType = UNSET
    disk: dict[str, DiskHealth] | UnsetType = UNSET
    rejected_reload: RejectedReload | UnsetType = UNSET
    logs: dict[str, LogHealth] | UnsetType = UNSET


async def find_readiness_problem(stopping: ShutdownState, checks: HealthChecks) -> str | None:
    """Return why requests should not be sent here."""
    return "The service is being stopped." if stopping.has_begun else await checks.find_problem()


async def add_details(
    body: Health, service: Service, access: Access, checks: HealthChecks, stopping: ShutdownState
) -> None:
    """Add the state of each part, all asked at once, and the reasons for the status."""
    not_ready, body.agents, body.providers, body.disk, answer = await asyncio.gather(
        find_readiness_problem(stopping, checks),
        checks.check_agents(),
        checks.check_providers(),
        checks.check_disks(),
        checks.check_database(),
    )
    body.mcp_servers = {
        status.label: _describe_server(status) for status in service.servers.statuses
    }
    if answer is not None and (database := checks.target_database) is not None:
        housekeeping = None if service.memories is None else service.memories.housekeeping
        body.database = _describe_database(database, answer, housekeeping)
    body.logs = {
        name: LogHealth(
            "ready" if writer.problem is None else "down",
            str(writer.file.path or "standard error"),
            writer.problem,
            writer.dropped,
        )
        for name, writer in find_writers().items()
    }
    body.identity = _describe_identity(service.settings.identity_mode, access)
    if (rejected := service.rejected_reload) is not None:
        fault = redact_secrets(rejected.fault, service.secrets)
        body.rejected_reload = msgspec.structs.replace(rejected, fault=fault)
    body.reasons = [*([not_ready] if not_ready else ()), *_collect_reasons(body)]
    body.status = "unavailable" if not_ready else "degraded" if body.reasons else "healthy"


def _collect_reasons(body: Health) -> list[str]:
    """Return what is wrong with each part, in a sentence."""
    found: list[str] = []
    for agent_id, agent in (body.agents or {}).items():
        if agent.state != "ready":
            found.append(f"The agent {agent_id} cannot answer: {agent.problem}")
    for name, provider in (body.providers or {}).items():
        if provider.state not in ("ready", "unknown"):
            found.append(f"The provider {name} cannot be used: {provider.error}")
        for breaker in provider.breakers:
            if breaker.state != "closed":
                found.append(
                    f"The model {breaker.model} of {name} failed {breaker.failures} times in a row"
                    " and is not asked for a time."
                )
    for label, server in (body.mcp_servers or {}).items():
        if server.state in ("starting", "down"):
            found.append(
                f"The MCP server {label} cannot be used:"
                f" {server.error or 'it is being connected to.'}"
            )
    if body.database:
        found += _collect_database_reasons(body.database)
    if body.identity and body.identity.error is not None:
        found.append(f"The keys of the identity provider cannot be fetched: {body.identity.error}")
    if body.rejected_reload:
        found.append(f"The last reload was rejected: {body.rejected_reload.fault}")
    for name, log in (body.logs or {}).items():
        if log.error is not None:
            found.append(f"Lines of the {name} cannot be written to {log.file}: {log.error}")
    for path, disk in (body.disk or {}).items():
        if disk.state == "low":
            found.append(
                f"There is little room at {path}: {(disk.free_bytes or 0) // 1024**2} MiB."
            )
        elif disk.state != "ready":
            found.append(f"How much room there is at {path} cannot be told: {disk.error}")
    return found


def _collect_database_reasons(database: DatabaseHealth) -> list[str]:
    if database.state != "ready":
        return [f"The database cannot be used: {database.error}"]
    found = []
    if database.revision not in (None, HEAD_REVISION):
        found.append(
            f"The tables have the revision {database.revision}, and this version works with"
            f" {HEAD_REVISION}."
        )
    if database.replica == "down":
        found.append(f"The replica cannot be used: {database.replica_error}")
    elif (
        database.replica_lag_seconds is not None and database.replica_lag_seconds > MAX_LAG_SECONDS
    ):
        found.append(f"The replica is {database.replica_lag_seconds:.0f} seconds behind.")
    return found


def _describe_database(
    database: Database, answer: DatabaseAnswer, housekeeping: Housekeeping | None
) -> DatabaseHealth:
    error = database.problem or answer.error
    replica_error = database.replica_problem or answer.replica_error
    state: Literal["ready", "down", "timeout"] = "ready" if error is None else "down"
    if database.problem is None and answer.is_late:
        state = "timeout"
    replica: Literal["none", "ready", "down"] = "ready" if replica_error is None else "down"
    erased = ErasureCounts() if housekeeping is None else housekeeping.erased
    return DatabaseHealth(
        state,
        database.kind,
        error and redact_secrets(error),
        answer.round_trip_ms,
        *database.primary.pool,
        answer.revision,
        HEAD_REVISION,
        "none" if database.replica is None else replica,
        replica_error and redact_secrets(replica_error),
        answer.replica_lag_seconds,
        erased.sessions,
        erased.messages,
        0 if housekeeping is None else housekeeping.ended_runs,
    )


def _describe_identity(mode: str, access: Access) -> IdentityHealth:
    source = access.identity.source
    if source is None:
        return IdentityHealth(mode, "ready", None, None, None)
    error = source.error and redact_secrets(source.error)
    return IdentityHealth(
        mode, "ready" if source.is_usable else "down", source.keys, source.age_seconds, error
    )


def _describe_server(status: ServerStatus) -> McpServerHealth:
    return McpServerHealth(
        status.state,
        status.transport,
        list(status.tools),
        status.error,
        datetime.fromtimestamp(status.since, UTC),
        status.restarts,
        status.schema_changes,
        list(status.quarantined),
        list(status.problems),
    )
