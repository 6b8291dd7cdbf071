"""GET /docs, /redoc and /openapi.json: the description of the API."""

import msgspec
from fastapi import APIRouter
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import Response

from ai_agent_service.api.http.access import AdminCaller

router = APIRouter(include_in_schema=False)

OPENAPI = "/openapi.json"


@router.get(OPENAPI)
async def serve_openapi(request: Request, principal: AdminCaller) -> Response:
    """The description, in the form of OpenAPI."""
    return Response(msgspec.json.encode(request.app.openapi()), media_type="application/json")


@router.get("/docs")
async def serve_docs(request: Request, principal: AdminCaller) -> Response:
    """The description as a page, to try out."""
    return get_swagger_ui_html(openapi_url=OPENAPI, title=request.app.title)


@router.get("/redoc")
async def serve_redoc(request: Request, principal: AdminCaller) -> Response:
    """The description as a page, to read."""
    return get_redoc_html(openapi_url=OPENAPI, title=request.app.title)
