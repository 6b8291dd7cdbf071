"""POST /admin/reload: read the configuration files again."""

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from ai_agent_service.api.http.access import AdminCaller
from ai_agent_service.api.http.body import ServiceDependency
from ai_agent_service.api.http.openapi import describe_route
from ai_agent_service.observability.audit import audit
from ai_agent_service.runtime.revision import Changes

router = APIRouter(tags=["Service"])


@router.post(
    "/admin/reload",
    summary="Read agents, prompts and MCP servers anew",
    openapi_extra=describe_route(None, Changes),
)
async def reload(service: ServiceDependency, caller: AdminCaller) -> Response:
    """Reads the configuration files in this process again. It answers what changed, or all faults
    in the files, after which nothing has changed."""
    audit.info("config.reload", extra={"key_id": caller.key.key_id})
    return Response(msgspec.json.encode(await service.reload()), media_type="application/json")
