"""GET /health and GET /: that the service is up, and where to go from here."""

import html
from datetime import UTC, datetime
from typing import Literal

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from app.api.dependencies import ServiceDependency
from app.api.openapi import documented
from app.core.errors import InvalidRequest
from app.mcp.connection import ServerStatus, State

router = APIRouter(tags=["Service"])

_LINKS = {
    "/v1/models": "the agents as OpenAI models",
    "/v1/chat/completions": "POST: ask an agent, as OpenAI clients do",
    "/agents": "the agents, their tools and whether they can answer",
    "/health": "that the service is up",
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


class Health(msgspec.Struct):
    """That the service is up; `degraded` when a part of it cannot be used. Its parts stand only in the detailed form."""

    status: Literal["healthy", "degraded"]
    timestamp: datetime
    service: str
    version: str
    mcp_servers: dict[str, McpServerHealth] | UnsetType = UNSET


class Welcome(msgspec.Struct):
    """What this is and where to go."""

    service: str
    version: str
    description: str
    agents: list[str]
    links: dict[str, str]


@router.get(
    "/health",
    summary="Is the service up?",
    openapi_extra=documented(None, Health, flag="detailed", flag_help="Tell of each part whether it can be used."),
)
async def health(request: Request, service: ServiceDependency) -> Response:
    """Answers when the service does; with `detailed=true`, tells of its parts."""
    settings = service.settings
    body = Health("healthy", datetime.now(UTC), settings.service_name, settings.service_version)
    if _flag(request, "detailed"):
        statuses = service.servers.statuses
        body.mcp_servers = {status.label: _of_server(status) for status in statuses}
        if any(status.state in ("starting", "down") for status in statuses):
            body.status = "degraded"
    return Response(msgspec.json.encode(body), media_type="application/json")


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


@router.get("/", summary="What is this?", openapi_extra=documented(None, Welcome))
async def welcome(request: Request, service: ServiceDependency) -> Response:
    """What this is and where to go: as a page to a browser, else as JSON."""
    settings = service.settings
    agents = [agent.agent_id for agent in service.catalog]
    about = "Agents that appear as models: point any OpenAI client at /v1."
    if "text/html" in request.headers.get("accept", ""):
        base = str(request.base_url)
        return Response(_page(settings.service_name, settings.service_version, about, agents, base), media_type="text/html")
    body = Welcome(settings.service_name, settings.service_version, about, agents, _LINKS)
    return Response(msgspec.json.encode(body), media_type="application/json")


def _page(name: str, version: str, about: str, agents: list[str], base: str) -> str:
    links = "".join(f'<li><a href="{path}">{path}</a> &mdash; {html.escape(text)}</li>' for path, text in _LINKS.items())
    names = "".join(f"<li><code>{html.escape(agent)}</code></li>" for agent in agents)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(name)}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:42rem;margin:3rem auto;padding:0 1rem;color-scheme:light dark}}
code{{background:#8883;padding:.1em .3em;border-radius:.3em}}</style></head>
<body><h1>{html.escape(name)} <small>{html.escape(version)}</small></h1><p>{html.escape(about)}</p>
<p>Base URL for OpenAI clients: <code>{html.escape(base)}v1</code></p>
<h2>Agents</h2><ul>{names}</ul><h2>Addresses</h2><ul>{links}</ul></body></html>
"""
