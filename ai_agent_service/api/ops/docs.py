"""GET /docs, /redoc and /openapi.json: the description of the API."""

import html
import secrets

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ai_agent_service.api.http.access import AdminCaller
from ai_agent_service.api.http.html_pages import build_html_response

router = APIRouter(include_in_schema=False)

OPENAPI = "/openapi.json"

# The hashes are those of the files in the npm packages of these versions.
_SWAGGER = """<link rel="stylesheet" crossorigin="anonymous"
 href="https://cdn.jsdelivr.net/npm/swagger-ui-dist@5.35.0/swagger-ui.css"
 integrity="sha384-WlYgdmXYOOBWL5apwjDEZwN+U3HmXSSu5R6V5aGxEcf7z+KuRNwBhoxKVN1i3D5I">
</head><body><div id="page"></div>
<script nonce="{nonce}" crossorigin="anonymous"
 src="https://cdn.jsdelivr.net/npm/swagger-ui-dist@5.35.0/swagger-ui-bundle.js"
 integrity="sha384-gjRm0bEPMeTmMh5jT2cHccIwCUZSTd8YC+j0d0sXw0MdGEfScduGpSyF3ZSSLkX9"></script>
<script nonce="{nonce}">
SwaggerUIBundle({{url: "{openapi}", dom_id: "#page", deepLinking: true}});
</script></body></html>"""
_REDOC = """</head><body style="margin: 0"><redoc spec-url="{openapi}"></redoc>
<script nonce="{nonce}" crossorigin="anonymous"
 src="https://cdn.jsdelivr.net/npm/redoc@2.5.4/bundles/redoc.standalone.js"
 integrity="sha384-w447zOpYfw/1Tv/5AK9NfHTlQIqE3RVR6KY62jCyy9zNDgO64cMwGGP1Fj0zJVf5"></script>
</body></html>"""
_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
"""


@router.get(OPENAPI)
async def serve_openapi(request: Request, principal: AdminCaller) -> Response:
    """The description, in the form of OpenAPI."""
    return Response(msgspec.json.encode(request.app.openapi()), media_type="application/json")


@router.get("/docs")
async def serve_docs(request: Request, principal: AdminCaller) -> Response:
    """The description as a page, to try out."""
    return _build_page(_SWAGGER, request.app.title)


@router.get("/redoc")
async def serve_redoc(request: Request, principal: AdminCaller) -> Response:
    """The description as a page, to read."""
    return _build_page(_REDOC, request.app.title)


def _build_page(page: str, title: str) -> Response:
    """Return a page whose scripts are those of this file alone."""
    nonce = secrets.token_urlsafe()
    text = (_HEAD + page).format(title=html.escape(title), nonce=nonce, openapi=OPENAPI)
    return build_html_response(
        text,
        f"script-src 'nonce-{nonce}'",
        "style-src 'unsafe-inline' https://cdn.jsdelivr.net",
        "img-src 'self' data:",
        "connect-src 'self'",
        "worker-src blob:",
    )
