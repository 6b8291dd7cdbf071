"""GET /health, /health/live, /health/ready and GET /: how the service is, and where to go from here."""

import asyncio
import html
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from ai_agent_service.api.http.access import OpenToAll, admitted
from ai_agent_service.api.http.body import ServiceDependency, access_in
from ai_agent_service.api.http.openapi import documented
from ai_agent_service.auth.access import Access
from ai_agent_service.core.errors import InvalidRequest
from ai_agent_service.core.text import without_secrets
from ai_agent_service.health.checks import LOW_DISK_BYTES, MAX_LAG_SECONDS, AgentAnswer, Checks, DatabaseAnswer, DiskAnswer, ProviderAnswer
from ai_agent_service.mcp.connection import ServerStatus, State
from ai_agent_service.memory.housekeeping import Keeper
from ai_agent_service.providers.breaker import Breakers
from ai_agent_service.providers.breaker import State as BreakerState
from ai_agent_service.runtime.service import Service
from ai_agent_service.runtime.shutdown import Stopping
from ai_agent_service.storage.database import Database
from ai_agent_service.storage.migrate import HEAD

router = APIRouter(tags=["Service"])

_LINKS = {
    "/v1/models": "the agents as OpenAI models",
    "/v1/chat/completions": "POST: ask an agent, as OpenAI clients do",
    "/agents": "the agents, their tools and whether they can answer",
    "/health": "that the service is up",
    "/health/live": "that the process is alive",
    "/health/ready": "whether requests should be sent here",
    "/metrics": "what was counted, for Prometheus",
    "/docs": "the API, to try out",
    "/redoc": "the API, to read",
}


class McpServerHealth(msgspec.Struct):
    """An MCP server: whether its tools can be used, else why not; `since` is when it came to that."""

    state: State
    transport: str
    tools: list[str]
    error: str | None
    since: datetime
    restarts: int
    schema_changes: int
    quarantined_tools: list[str]


class DatabaseHealth(msgspec.Struct):
    """The database of conversations and keys: whether it can be used, else why not; what was done in it since the start.

    `revision` is that of its tables, `expected_revision` what this version works with; `replica_lag_seconds` is how far the replica is
    behind, where that can be told.
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


class AgentHealth(msgspec.Struct):
    """An agent: whether it can answer, else what keeps it from that."""

    state: Literal["ready", "not_ready", "timeout"]
    problem: str | None


class IdentityHealth(msgspec.Struct):
    """What tells users by IDENTITY_MODE; `keys` and what follows are those of an OpenID Connect provider."""

    mode: str
    state: Literal["ready", "down"]
    keys: int | None
    keys_age_seconds: float | None
    error: str | None


class DiskHealth(msgspec.Struct):
    """A folder that the service writes to, and the room that is left there."""

    state: Literal["ready", "low", "unknown", "timeout"]
    free_bytes: int | None
    total_bytes: int | None
    error: str | None


class BreakerHealth(msgspec.Struct):
    """How a model of a provider does: `open` is one that is not asked for another `seconds_left`; `last_error` is a code."""

    model: str
    state: BreakerState
    failures: int
    last_error: str | None
    seconds_left: float | None
    openings: int


class ProviderHealth(msgspec.Struct):
    """A provider: whether it can be used, else why not; `unknown` where that cannot be asked without cost. `breakers` are of the models
    that were asked since the start."""

    state: Literal["ready", "down", "timeout", "not_configured", "unknown"]
    error: str | None
    round_trip_ms: float | None
    breakers: list[BreakerHealth]


class Health(msgspec.Struct):
    """That the service is up. The parts, and a `status` that counts them, stand only in the detailed form: `degraded` when a part cannot be
    used, `unavailable` when nothing can be served; `reasons` say why.

    `access` is `open` where callers need no key.
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


class Liveness(msgspec.Struct):
    """That the process answers."""

    status: Literal["alive"] = "alive"


class Readiness(msgspec.Struct):
    """Whether requests should be sent here; `problems` says why not."""

    status: Literal["ready", "not_ready"]
    problems: list[str]


class Welcome(msgspec.Struct):
    """What this is and where to go; `agents` are told where callers need no key."""

    service: str
    version: str
    description: str
    agents: list[str]
    links: dict[str, str]


@router.get(
    "/health",
    summary="Is the service up?",
    dependencies=[OpenToAll],
    openapi_extra=documented(None, Health, flag="detailed", flag_help="Tell of each part whether it can be used."),
)
async def health(request: Request, service: ServiceDependency) -> Response:
    """Answers when the service does; with `detailed=true`, tells those who may know of its parts."""
    settings, access = service.settings, access_in(request)
    body = Health("healthy", datetime.now(UTC), settings.service_name, settings.service_version, "open" if access.is_open else "keys")
    if _flag(request, "detailed"):
        await admitted(request, "admin")
        await _detail(body, service, access, _checks_in(request), _stopping_in(request))
    return Response(msgspec.json.encode(body), media_type="application/json")


@router.get("/health/live", summary="Is the process alive?", dependencies=[OpenToAll], openapi_extra=documented(None, Liveness))
async def live() -> Response:
    """200 as long as the process answers at all, also while it stops."""
    return Response(msgspec.json.encode(Liveness()), media_type="application/json")


@router.get("/health/ready", summary="Should requests be sent here?", dependencies=[OpenToAll], openapi_extra=documented(None, Readiness))
async def ready(request: Request) -> Response:
    """200 if so. 503 while the service stops, while nobody can be let in, and while no agent can answer."""
    problem = await _not_ready(_stopping_in(request), _checks_in(request))
    body = msgspec.json.encode(Readiness("not_ready" if problem else "ready", [problem] if problem else []))
    return Response(body, 503 if problem else 200, {"Retry-After": "2"} if problem else None, "application/json")


async def _not_ready(stopping: Stopping, checks: Checks) -> str | None:
    return "The service is being stopped." if stopping.has_begun else await checks.problem()


async def _detail(body: Health, service: Service, access: Access, checks: Checks, stopping: Stopping) -> None:
    """Adds the parts and what is to be said of them; all are asked at once."""
    database = checks.asked_database
    not_ready, agents, providers, disks, answer = await asyncio.gather(
        _not_ready(stopping, checks),
        checks.agents(),
        checks.providers(),
        checks.disks(),
        _nothing() if database is None else checks.database(),
    )
    body.agents = {agent_id: _of_agent(agent) for agent_id, agent in agents.items()}
    body.providers = {name: _of_provider(name, provider, service.breakers) for name, provider in providers.items()}
    body.mcp_servers = {status.label: _of_server(status) for status in service.servers.statuses}
    if database is not None and answer is not None:
        body.database = _of_database(database, answer, None if service.memories is None else service.memories.keeper)
    body.identity = _of_identity(service.settings.identity_mode, access)
    body.disk = _of_disks(disks)
    body.reasons = [not_ready] if not_ready else []
    body.reasons += _reasons(body)
    body.status = "unavailable" if not_ready else "degraded" if body.reasons else "healthy"


def _reasons(body: Health) -> list[str]:
    """What is wrong with each part, in a sentence."""
    found: list[str] = []
    for agent_id, agent in (body.agents or {}).items():
        if agent.state != "ready":
            found.append(f"The agent {agent_id} cannot answer: {agent.problem}")
    for name, provider in (body.providers or {}).items():
        if provider.state not in ("ready", "unknown"):
            found.append(f"The provider {name} cannot be used: {provider.error}")
        for breaker in provider.breakers:
            if breaker.state != "closed":
                found.append(f"The model {breaker.model} of {name} failed {breaker.failures} times in a row and is not asked for a time.")
    for label, server in (body.mcp_servers or {}).items():
        if server.state in ("starting", "down"):
            found.append(f"The MCP server {label} cannot be used: {server.error or 'it is being connected to.'}")
    if body.database:
        found += _reasons_of(body.database)
    if body.identity and body.identity.error is not None:
        found.append(f"The keys of the identity provider cannot be fetched: {body.identity.error}")
    for path, disk in (body.disk or {}).items():
        if disk.state == "low":
            found.append(f"There is little room at {path}: {(disk.free_bytes or 0) // 1024**2} MiB.")
        elif disk.state != "ready":
            found.append(f"How much room there is at {path} cannot be told: {disk.error}")
    return found


def _reasons_of(database: DatabaseHealth) -> list[str]:
    if database.state != "ready":
        return [f"The database cannot be used: {database.error}"]
    found = []
    if database.revision not in (None, HEAD):
        found.append(f"The tables have the revision {database.revision}, and this version works with {HEAD}.")
    if database.replica == "down":
        found.append(f"The replica cannot be used: {database.replica_error}")
    elif database.replica_lag_seconds is not None and database.replica_lag_seconds > MAX_LAG_SECONDS:
        found.append(f"The replica is {database.replica_lag_seconds:.0f} seconds behind.")
    return found


async def _nothing() -> None:
    return None


def _checks_in(request: Request) -> Checks:
    return cast(Checks, request.app.state.checks)


def _stopping_in(request: Request) -> Stopping:
    return cast(Stopping, request.app.state.stopping)


def _of_agent(answer: AgentAnswer | None) -> AgentHealth:
    if answer is None:
        return AgentHealth("timeout", "It did not say in time whether it can.")
    return AgentHealth("ready" if answer.problem is None else "not_ready", answer.problem)


def _of_provider(name: str, answer: ProviderAnswer, breakers: Breakers) -> ProviderHealth:
    states = [
        BreakerHealth(each.model, each.state, each.failures, each.last_error, each.seconds_left, each.openings)
        for each in breakers.states()
        if each.provider == name
    ]
    return ProviderHealth(answer.state, answer.error, answer.round_trip_ms, states)


def _of_database(database: Database, answer: DatabaseAnswer, keeper: Keeper | None) -> DatabaseHealth:
    replica_error = database.replica_problem or answer.replica_error
    replica: Literal["ready", "down"] = "ready" if replica_error is None else "down"
    error = database.problem or answer.error
    return DatabaseHealth(
        "ready" if error is None else "timeout" if database.problem is None and answer.is_late else "down",
        database.kind,
        error and without_secrets(error),
        answer.round_trip_ms,
        *database.primary.pool,
        answer.revision,
        HEAD,
        "none" if database.replica is None else replica,
        replica_error and without_secrets(replica_error),
        answer.replica_lag_seconds,
        0 if keeper is None else keeper.erased.sessions,
        0 if keeper is None else keeper.erased.messages,
        0 if keeper is None else keeper.ended_runs,
    )


def _of_identity(mode: str, access: Access) -> IdentityHealth:
    source = access.identity.source
    if source is None:
        return IdentityHealth(mode, "ready", None, None, None)
    error = source.error and without_secrets(source.error)
    return IdentityHealth(mode, "ready" if source.is_usable else "down", source.keys, source.age_seconds, error)


def _of_disks(answers: Mapping[Path, DiskAnswer | None]) -> dict[str, DiskHealth]:
    found = {}
    for path, answer in answers.items():
        if answer is None:
            found[str(path)] = DiskHealth("timeout", None, None, "It did not answer in time.")
            continue
        state: Literal["ready", "low", "unknown"] = "unknown"
        if answer.free_bytes is not None:
            state = "ready" if answer.free_bytes >= LOW_DISK_BYTES else "low"
        found[str(path)] = DiskHealth(state, answer.free_bytes, answer.total_bytes, answer.error)
    return found


def _of_server(status: ServerStatus) -> McpServerHealth:
    return McpServerHealth(
        status.state,
        status.transport,
        list(status.tools),
        status.error,
        datetime.fromtimestamp(status.since, UTC),
        status.restarts,
        status.schema_changes,
        list(status.quarantined),
    )


def _flag(request: Request, name: str) -> bool:
    value = request.query_params.get(name, "false").lower()
    if value not in ("true", "1", "false", "0"):
        raise InvalidRequest("Write true or false.", param=name)
    return value in ("true", "1")


@router.get("/", summary="What is this?", dependencies=[OpenToAll], openapi_extra=documented(None, Welcome))
async def welcome(request: Request, service: ServiceDependency) -> Response:
    """What this is and where to go: as a page to a browser, else as JSON."""
    settings = service.settings
    agents = [agent.agent_id for agent in service.catalog] if access_in(request).lets_in_without_key(request.scope["headers"]) else []
    about = "Agents that appear as models: point any OpenAI client at /v1."
    if "text/html" in request.headers.get("accept", ""):
        base = str(request.base_url)
        return Response(_page(settings.service_name, settings.service_version, about, agents, base), media_type="text/html")
    body = Welcome(settings.service_name, settings.service_version, about, agents, _LINKS)
    return Response(msgspec.json.encode(body), media_type="application/json")


def _page(name: str, version: str, about: str, agents: list[str], base: str) -> str:
    links = "".join(f'<li><a href="{path}">{path}</a> &mdash; {html.escape(text)}</li>' for path, text in _LINKS.items())
    names = "".join(f"<li><code>{html.escape(agent)}</code></li>" for agent in agents) or "<li>those that your API key is for</li>"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(name)}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:42rem;margin:3rem auto;padding:0 1rem;color-scheme:light dark}}
code{{background:#8883;padding:.1em .3em;border-radius:.3em}}</style></head>
<body><h1>{html.escape(name)} <small>{html.escape(version)}</small></h1><p>{html.escape(about)}</p>
<p>Base URL for OpenAI clients: <code>{html.escape(base)}v1</code></p>
<h2>Agents</h2><ul>{names}</ul><h2>Addresses</h2><ul>{links}</ul></body></html>
"""
