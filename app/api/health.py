"""GET /health and GET /: that the service is up, and where to go from here."""

import html
from datetime import UTC, datetime
from typing import Literal

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from app.api.access import OpenToAll, admitted
from app.api.dependencies import ServiceDependency, access_in
from app.api.openapi import documented
from app.core.errors import InvalidRequest
from app.core.text import without_secrets
from app.mcp.connection import ServerStatus, State
from app.memory.opening import Memories

router = APIRouter(tags=["Service"])

_LINKS = {
    "/v1/models": "the agents as OpenAI models",
    "/v1/chat/completions": "POST: ask an agent, as OpenAI clients do",
    "/agents": "the agents, their tools and whether they can answer",
    "/health": "that the service is up",
    "/health/ready": "whether requests should be sent here",
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
    """The database of conversations: whether it can be used, else why not; what was done in it since the start."""

    state: Literal["ready", "down"]
    kind: str
    error: str | None
    replica: Literal["none", "ready", "down"]
    replica_error: str | None
    cleaned_up_sessions: int
    cleaned_up_messages: int
    ended_runs: int


class Health(msgspec.Struct):
    """That the service is up; `degraded` when a part of it cannot be used. Its parts stand only in the detailed form.

    `access` is `open` where callers need no key.
    """

    status: Literal["healthy", "degraded"]
    timestamp: datetime
    service: str
    version: str
    access: Literal["keys", "open"]
    mcp_servers: dict[str, McpServerHealth] | UnsetType = UNSET
    database: DatabaseHealth | UnsetType = UNSET


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
        statuses = service.servers.statuses
        body.mcp_servers = {status.label: _of_server(status) for status in statuses}
        if any(status.state in ("starting", "down") for status in statuses):
            body.status = "degraded"
        if service.memories is not None:
            body.database = _of_database(service.memories)
            if body.database.state == "down" or body.database.replica == "down":
                body.status = "degraded"
    return Response(msgspec.json.encode(body), media_type="application/json")


@router.get("/health/ready", summary="Should requests be sent here?", dependencies=[OpenToAll], openapi_extra=documented(None, Readiness))
async def ready(service: ServiceDependency) -> Response:
    """200 if so, else 503: while the database cannot be used that an agent needs to answer."""
    problems = []
    needs_memory = any(agent.definition.memory is not None and agent.definition.memory.required for agent in service.catalog)
    if service.memories is not None and needs_memory and service.memories.database.problem is not None:
        problems.append("The database of conversations cannot be used.")
    body = msgspec.json.encode(Readiness("not_ready" if problems else "ready", problems))
    return Response(body, 503 if problems else 200, {"Retry-After": "2"} if problems else None, "application/json")


def _of_database(memories: Memories) -> DatabaseHealth:
    database, keeper = memories.database, memories.keeper
    replica: Literal["none", "ready", "down"] = "ready" if database.replica_problem is None else "down"
    return DatabaseHealth(
        "ready" if database.problem is None else "down",
        database.kind,
        database.problem and without_secrets(database.problem),
        "none" if database.replica is None else replica,
        database.replica_problem and without_secrets(database.replica_problem),
        keeper.erased.sessions,
        keeper.erased.messages,
        keeper.ended_runs,
    )


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
