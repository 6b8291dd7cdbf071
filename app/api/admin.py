"""POST /admin/reload: has the service read its files anew."""

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from app.api.access import Administering
from app.api.dependencies import ServiceDependency
from app.api.openapi import documented
from app.editions import Changes
from app.observability.audit import audit

router = APIRouter(tags=["Service"])


@router.post("/admin/reload", summary="Read agents, prompts and MCP servers anew", openapi_extra=documented(None, Changes))
async def reload(service: ServiceDependency, caller: Administering) -> Response:
    """Reads the files that the operator wrote, in this process; what changed, or every fault in them, after which nothing has changed."""
    audit.info("config.reload", extra={"key_id": caller.key.key_id})
    return Response(msgspec.json.encode(await service.reload()), media_type="application/json")
