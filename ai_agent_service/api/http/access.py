"""What each route asks of its callers, and the check that no route asks nothing."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from ai_agent_service.api.http.body import access_in
from ai_agent_service.auth.principal import Principal, Scope
from ai_agent_service.core.errors import InsufficientScope, NotFound


class Allowed:
    """A dependency that lets callers in whose key has `scope` (None: whatever it is for); with `identified`, as a verified user where
    users are verified."""

    def __init__(self, scope: Scope | None, *, identified: bool) -> None:
        self.scope = scope
        self._identified = identified

    async def __call__(self, request: Request) -> Principal:
        """Who calls; raises Unauthorized, InvalidToken, InsufficientScope, HostNotAllowed and AccessUnavailable."""
        return await admitted(request, self.scope, identified=self._identified)


async def admitted(request: Request, scope: Scope | None, *, identified: bool = False) -> Principal:
    """Who calls, as a key that has `scope`."""
    access = access_in(request)
    client = request.scope.get("client")
    principal = await access.principal(request.scope["headers"], client[0] if client else None, identified=identified)
    if scope is not None and scope not in principal.key.scopes:
        raise InsufficientScope(f"This key is not for this: it lacks the scope {scope}.")
    return principal


async def open_to_all() -> None:
    """A dependency that says that a route asks nothing of its callers."""


Caller = Annotated[Principal, Depends(Allowed(None, identified=False))]
"""Anybody with a key."""

Chatting = Annotated[Principal, Depends(Allowed("chat", identified=True))]
Reading = Annotated[Principal, Depends(Allowed("memory:read", identified=True))]
Deleting = Annotated[Principal, Depends(Allowed("memory:delete", identified=True))]
Administering = Annotated[Principal, Depends(Allowed("admin", identified=False))]
OpenToAll = Depends(open_to_all)


class RunRoute(APIRoute):
    """A route that takes the request and its caller alone, as `endpoint(request, caller)`.

    It finds out the caller by itself: FastAPI's own way of solving dependencies takes longer than all else that is done for a run here.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Answers a request; see APIRoute."""
        endpoint = self.endpoint
        [allowed] = _calls(self)
        assert isinstance(allowed, Allowed)

        async def handler(request: Request) -> Response:
            response: Response = await endpoint(request, await allowed(request))
            return response

        return handler


def named_user(caller: Principal, given: str | None) -> str | None:
    """The user that is meant by `given`, which a request names; raises NotFound where users are verified and it is another one."""
    if caller.user is None:
        return given
    if given not in (None, "", caller.user.user_id):
        raise NotFound("There is no such user.", code="user_not_found", param="user_id")
    return caller.user.user_id


def guarded(router: APIRouter) -> APIRouter:
    """`router`; raises RuntimeError if one of its routes neither says what it asks of callers nor that it asks nothing."""
    for route in router.routes:
        if not isinstance(route, APIRoute) or not (is_open_to_all(route) or any(isinstance(call, Allowed) for call in _calls(route))):
            raise RuntimeError(f"the route {getattr(route, 'path', route)} does not say who may call it")
    return router


def is_open_to_all(route: APIRoute) -> bool:
    """Whether the route asks nothing of its callers."""
    return open_to_all in _calls(route)


def _calls(route: APIRoute) -> list[object]:
    return [each.call for each in route.dependant.dependencies]
