"""GET /health, /health/live, /health/ready and GET /: the health and the addresses of the
service."""

import html
from datetime import UTC, datetime
from typing import Literal, cast

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ai_agent_service.api.http.access import PublicAccess, authorize
from ai_agent_service.api.http.body import ServiceDependency, get_access
from ai_agent_service.api.http.html_pages import build_html_response
from ai_agent_service.api.http.openapi import describe_route
from ai_agent_service.core.errors import InvalidRequestError
from ai_agent_service.health.checks import HealthChecks
from ai_agent_service.health.report import Health, add_details, find_readiness_problem
from ai_agent_service.runtime.shutdown import ShutdownState

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


class Liveness(msgspec.Struct):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Readiness(msgspec.Struct):
    """Whether requests should be sent here; `problems` says why not."""

    status: Literal["ready", "not_ready"]
    problems: list[str]


class Welcome(msgspec.Struct):
    """The service and its addresses; `agents` are listed if callers need no key."""

    service: str
    version: str
    description: str
    agents: list[str]
    links: dict[str, str]


@router.get(
    "/health",
    summary="Is the service up?",
    dependencies=[PublicAccess],
    openapi_extra=describe_route(
        None, Health, flag="detailed", flag_help="Tell of each part whether it can be used."
    ),
)
async def health(request: Request, service: ServiceDependency) -> Response:
    """Answers when the service does; with `detailed=true` it reports the state of each part to
    administrators."""
    settings, access = service.settings, get_access(request)
    body = Health(
        "healthy",
        datetime.now(UTC),
        settings.service_name,
        settings.service_version,
        "open" if access.is_open else "keys",
    )
    if _parse_flag(request, "detailed"):
        await authorize(request, "admin")
        await add_details(body, service, access, _get_checks(request), _get_shutdown_state(request))
    return Response(msgspec.json.encode(body), media_type="application/json")


@router.get(
    "/health/live",
    summary="Is the process alive?",
    dependencies=[PublicAccess],
    openapi_extra=describe_route(None, Liveness),
)
async def live() -> Response:
    """200 as long as the process answers, also while it stops."""
    return Response(msgspec.json.encode(Liveness()), media_type="application/json")


@router.get(
    "/health/ready",
    summary="Should requests be sent here?",
    dependencies=[PublicAccess],
    openapi_extra=describe_route(None, Readiness),
)
async def ready(request: Request) -> Response:
    """200 if so. 503 while the service stops, while no caller can be authenticated, and while no
    agent can answer."""
    problem = await find_readiness_problem(_get_shutdown_state(request), _get_checks(request))
    body = msgspec.json.encode(
        Readiness("not_ready" if problem else "ready", [problem] if problem else [])
    )
    return Response(
        body, 503 if problem else 200, {"Retry-After": "2"} if problem else None, "application/json"
    )


def _get_checks(request: Request) -> HealthChecks:
    return cast(HealthChecks, request.app.state.checks)


def _get_shutdown_state(request: Request) -> ShutdownState:
    return cast(ShutdownState, request.app.state.stopping)


def _parse_flag(request: Request, name: str) -> bool:
    value = request.query_params.get(name, "false").lower()
    if value not in ("true", "1", "false", "0"):
        raise InvalidRequestError("Write true or false.", param=name)
    return value in ("true", "1")


@router.get(
    "/",
    summary="What is this?",
    dependencies=[PublicAccess],
    openapi_extra=describe_route(None, Welcome),
)
async def welcome(request: Request, service: ServiceDependency) -> Response:
    """The service and its addresses: as a page to a browser, else as JSON."""
    settings = service.settings
    agents = (
        [agent.agent_id for agent in service.catalog]
        if get_access(request).can_skip_key(request.scope["headers"])
        else []
    )
    about = "Agents that appear as models: point any OpenAI client at /v1."
    if "text/html" in request.headers.get("accept", ""):
        base = str(request.base_url)
        page = _render_page(settings.service_name, settings.service_version, about, agents, base)
        return build_html_response(page, "style-src 'unsafe-inline'")
    body = Welcome(settings.service_name, settings.service_version, about, agents, _LINKS)
    return Response(msgspec.json.encode(body), media_type="application/json")


def _render_page(name: str, version: str, about: str, agents: list[str], base: str) -> str:
    links = "".join(
        f'<li><a href="{path}">{path}</a> &mdash; {html.escape(text)}</li>'
        for path, text in _LINKS.items()
    )
    names = (
        "".join(f"<li><code>{html.escape(agent)}</code></li>" for agent in agents)
        or "<li>those that your API key is for</li>"
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(name)}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:42rem;margin:3rem auto;padding:0 1rem;
color-scheme:light dark}}
code{{background:#8883;padding:.1em .3em;border-radius:.3em}}</style></head>
<body><h1>{html.escape(name)} <small>{html.escape(version)}</small></h1><p>{html.escape(about)}</p>
<p>Base URL for OpenAI clients: <code>{html.escape(base)}v1</code></p>
<h2>Agents</h2><ul>{names}</ul><h2>Addresses</h2><ul>{links}</ul></body></html>
"""
