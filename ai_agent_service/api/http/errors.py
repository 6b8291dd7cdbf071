"""Turn every error into OpenAI's error shape: one handler for ours, one for the framework's."""

import logging
import math
from http import HTTPStatus

import msgspec
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from ai_agent_service.core.errors import InternalError, ServiceError

logger = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode
FRAMEWORK_ERRORS = {
    404: (
        "not_found",
        "There is no such address here. This service speaks OpenAI's chat completions: use"
        " POST /v1/chat/completions; GET /v1/models lists the agents, / the other addresses.",
    ),
    405: ("method_not_allowed", "This address does not take this method."),
    413: ("request_too_large", "The body is too large."),
}


class ErrorBody(msgspec.Struct):
    """What stands under `error`."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(msgspec.Struct):
    """OpenAI's error shape."""

    error: ErrorBody


def encode_error(error: ServiceError) -> bytes:
    """Return `error` as `{"error": {"message", "type", "param", "code"}}`."""
    return _encode(ErrorResponse(ErrorBody(error.message, error.type, error.param, error.code)))


def build_error_response(error: ServiceError) -> Response:
    """Return `error` as a response with its status and headers."""
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    return Response(encode_error(error), error.status, headers, "application/json")


def build_internal_error(request_id: str) -> InternalError:
    """Return the caller's error for a fault of ours, whose details are in the log."""
    return InternalError(
        "Something went wrong in the service. Its log tells more under the request id"
        f" {request_id}."
    )


async def handle_service_error(request: Request, error: Exception) -> Response:
    """Answer with a ServiceError."""
    assert isinstance(error, ServiceError)
    request.scope["state"]["error"] = error.code
    return build_error_response(error)


async def handle_http_exception(request: Request, error: Exception) -> Response:
    """Answer with an error that the framework raised and its headers; `Allow` has the methods of
    all routes of the address."""
    assert isinstance(error, HTTPException)
    code, message = FRAMEWORK_ERRORS.get(
        error.status_code, ("http_error", "The request cannot be answered.")
    )
    request.scope["state"]["error"] = code
    body = _encode(ErrorResponse(ErrorBody(message, "invalid_request_error", None, code)))
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(sorted(_collect_methods(request)))
    return Response(body, error.status_code, headers, "application/json")


def _collect_methods(request: Request) -> set[str]:
    """Return the methods of all routes of the request's address."""
    found: set[str] = set()
    for context in iter_route_contexts(request.app.routes):
        route = context.original_route
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            found.update(route.methods or ())
    return found
