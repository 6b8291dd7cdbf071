"""Require a scope of callers in each route, and check that no route forgets to."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from ai_agent_service.api.http.body import get_access
from ai_agent_service.auth.principal import Principal, Scope
from ai_agent_service.core.errors import InsufficientScopeError, NotFoundError, RateLimitError
from ai_agent_service.limits.gate import RequestGate
from ai_agent_service.observability.audit import audit


class ScopeRequirement:
    """A dependency that requires a key with `scope` (None: any key) and, with `identified`, a
    verified user where users are verified."""

    def __init__(self, scope: Scope | None, *, identified: bool) -> None:
        self.scope = scope
        self._identified = identified

    async def __call__(self, request: Request) -> Principal:
        """Return the caller; raises UnauthorizedError, InvalidTokenError, InsufficientScopeError,
        HostNotAllowedError and AccessUnavailableError."""
        return await authorize(request, self.scope, identified=self._identified)


async def authorize(
    request: Request, scope: Scope | None, *, identified: bool = False
) -> Principal:
    """Return the caller, whose key has `scope`."""
    access = get_access(request)
    client = request.scope.get("client")
    principal = await access.authenticate(
        request.scope["headers"], client[0] if client else None, identified=identified
    )
    if scope is not None and scope not in principal.key.scopes:
        raise InsufficientScopeError(f"This key is not for this: it lacks the scope {scope}.")
    return principal


async def allow_anyone() -> None:
    """Mark a route as public."""


Caller = Annotated[Principal, Depends(ScopeRequirement(None, identified=False))]
"""A caller with any key."""

ChatCaller = Annotated[Principal, Depends(ScopeRequirement("chat", identified=True))]
MemoryReader = Annotated[Principal, Depends(ScopeRequirement("memory:read", identified=True))]
MemoryDeleter = Annotated[Principal, Depends(ScopeRequirement("memory:delete", identified=True))]
AdminCaller = Annotated[Principal, Depends(ScopeRequirement("admin", identified=False))]
PublicAccess = Depends(allow_anyone)


class RunRoute(APIRoute):
    """A route whose endpoint takes the request and its caller, as `endpoint(request, caller)`.

    It resolves the caller itself, since FastAPI's resolution of dependencies takes longer than all
    other work for a run.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of requests; see APIRoute."""
        endpoint = self.endpoint
        [allowed] = _list_dependencies(self)
        assert isinstance(allowed, ScopeRequirement)

        async def handle(request: Request) -> Response:
            caller = await allowed(request)
            await _charge_request(request, caller)
            response: Response = await endpoint(request, caller)
            return response

        return handle


async def _charge_request(request: Request, caller: Principal) -> None:
    """Count a request against its caller's limit; raises RateLimitError."""
    gate: RequestGate = request.app.state.gate
    try:
        await gate.charge(caller)
    except RateLimitError as error:
        user = {} if caller.user is None else {"user": caller.user.user_id}
        key = {"key_id": caller.key.key_id, "tenant": caller.key.tenant}
        audit.info("agent.refused", extra={**key, **user, "outcome": error.code})
        raise


def resolve_user(caller: Principal, given: str | None) -> str | None:
    """Return the user that a request names as `given`; raises NotFoundError if users are verified
    and it is not the caller."""
    if caller.user is None:
        return given
    if given not in (None, "", caller.user.user_id):
        raise NotFoundError("There is no such user.", code="user_not_found", param="user_id")
    return caller.user.user_id


def check_access_rules(router: APIRouter) -> APIRouter:
    """Return `router`; raises RuntimeError if one of its routes neither requires a scope nor is
    marked as public."""
    for route in router.routes:
        if not isinstance(route, APIRoute) or not (
            is_public(route)
            or any(isinstance(call, ScopeRequirement) for call in _list_dependencies(route))
        ):
            raise RuntimeError(
                f"the route {getattr(route, 'path', route)} does not say who may call it"
            )
    return router


def is_public(route: APIRoute) -> bool:
    """Return whether the route is public."""
    return allow_anyone in _list_dependencies(route)


def _list_dependencies(route: APIRoute) -> list[object]:
    return [each.call for each in route.dependant.dependencies]
