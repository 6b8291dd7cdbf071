"""What each route asks of its callers, and the check that no route asks nothing."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from ai_agent_service.api.http.body import get_access
from ai_agent_service.auth.principal import Principal, Scope
from ai_agent_service.core.errors import InsufficientScopeError, NotFoundError


class ScopeRequirement:
    """A dependency that lets callers in whose key has `scope` (None: whatever it is for); with
    `identified`, as a verified user where users are verified."""

    def __init__(self, scope: Scope | None, *, identified: bool) -> None:
        self.scope = scope
        self._identified = identified

    async def __call__(self, request: Request) -> Principal:
        """Who calls; raises UnauthorizedError, InvalidTokenError, InsufficientScopeError,
        HostNotAllowedError and AccessUnavailableError."""
        return await authorize(request, self.scope, identified=self._identified)


async def authorize(
    request: Request, scope: Scope | None, *, identified: bool = False
) -> Principal:
    """Who calls, as a key that has `scope`."""
    access = get_access(request)
    client = request.scope.get("client")
    principal = await access.authenticate(
        request.scope["headers"], client[0] if client else None, identified=identified
    )
    if scope is not None and scope not in principal.key.scopes:
        raise InsufficientScopeError(f"This key is not for this: it lacks the scope {scope}.")
    return principal


async def allow_anyone() -> None:
    """A dependency that says that a route asks nothing of its callers."""


Caller = Annotated[Principal, Depends(ScopeRequirement(None, identified=False))]
"""Anybody with a key."""

ChatCaller = Annotated[Principal, Depends(ScopeRequirement("chat", identified=True))]
MemoryReader = Annotated[Principal, Depends(ScopeRequirement("memory:read", identified=True))]
MemoryDeleter = Annotated[Principal, Depends(ScopeRequirement("memory:delete", identified=True))]
AdminCaller = Annotated[Principal, Depends(ScopeRequirement("admin", identified=False))]
PublicAccess = Depends(allow_anyone)


class RunRoute(APIRoute):
    """A route that takes the request and its caller alone, as `endpoint(request, caller)`.

    It finds out the caller by itself: FastAPI's own way of solving dependencies takes longer than
    all else that is done for a run here.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Answers a request; see APIRoute."""
        endpoint = self.endpoint
        [allowed] = _list_dependencies(self)
        assert isinstance(allowed, ScopeRequirement)

        async def handle(request: Request) -> Response:
            response: Response = await endpoint(request, await allowed(request))
            return response

        return handle


def resolve_user(caller: Principal, given: str | None) -> str | None:
    """The user that is meant by `given`, which a request names; raises NotFoundError where users
    are verified and it is another one."""
    if caller.user is None:
        return given
    if given not in (None, "", caller.user.user_id):
        raise NotFoundError("There is no such user.", code="user_not_found", param="user_id")
    return caller.user.user_id


def check_access_rules(router: APIRouter) -> APIRouter:
    """`router`; raises RuntimeError if one of its routes neither says what it asks of callers nor
    that it asks nothing."""
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
    """Whether the route asks nothing of its callers."""
    return allow_anyone in _list_dependencies(route)


def _list_dependencies(route: APIRoute) -> list[object]:
    return [each.call for each in route.dependant.dependencies]
