"""Read what routes share from a request: the service, the access, and the body."""

import gc
import re
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Annotated, TypeVar, cast

import msgspec
from fastapi import Depends
from starlette.requests import ClientDisconnect, Request

from ai_agent_service.api.http.json_limits import check_no_nul
from ai_agent_service.auth.access import Access
from ai_agent_service.core.errors import BodyTooLargeError, InvalidRequestError
from ai_agent_service.limits.limiter import Limiter
from ai_agent_service.runtime.service import Service

LARGE_BODY = 1024 * 1024

T = TypeVar("T")
_PATH = re.compile(r" - at `(key in )?\$\.?([^`]*)`$")
_MISSING = re.compile(r"^Object missing required field `(.+)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `.*`$")
_ECHO = re.compile(r"^Invalid (enum value|value) .*$")


def get_service(request: Request) -> Service:
    """Return the service that the lifespan opened."""
    return cast(Service, request.app.state.service)


def get_access(request: Request) -> Access:
    """Return the access that the lifespan opened."""
    return cast(Access, request.app.state.access)


def get_limiter(request: Request) -> Limiter:
    """Return what admits runs within the limits of their keys and users."""
    return cast(Limiter, request.app.state.limiter)


async def provide_service(request: Request) -> Service:
    """Return the service, as a dependency; async, since FastAPI runs others in a thread."""
    return get_service(request)


ServiceDependency = Annotated[Service, Depends(provide_service)]


def get_request_id(request: Request) -> str:
    """Return the id that the middleware gave this request."""
    return cast(str, request.state.request_id)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the body; raises BodyTooLargeError before it holds more than `max_bytes`, and
    InvalidRequestError."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise _build_too_large_error(max_bytes)
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > max_bytes:
                raise _build_too_large_error(max_bytes)
            pieces.append(piece)
    except ClientDisconnect:
        raise InvalidRequestError("The body ended before it was complete.") from None
    return b"".join(pieces)


def decode_body(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Return the decoded `body`; raises InvalidRequestError, which names the field in `param` and
    never repeats what was sent."""
    try:
        with _pause_garbage_collection() if len(body) > LARGE_BODY else nullcontext():
            value = decoder.decode(body)
        check_no_nul(body, value)
    except msgspec.ValidationError as error:
        message, path = _split_path(str(error))
        raise InvalidRequestError(message, param=path) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = (
            "The body is not valid JSON."
            if body
            else "The body is empty; a JSON object is expected."
        )
        raise InvalidRequestError(problem, code="invalid_json") from None
    except RecursionError:
        raise InvalidRequestError("The body is nested too deeply.", code="invalid_json") from None
    return value


@contextmanager
def _pause_garbage_collection() -> Generator[None, None, None]:
    """Pause the garbage collector, which would take most of the time for a large body."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _build_too_large_error(max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"The body is larger than the {max_bytes} bytes that are accepted.")


def _split_path(text: str) -> tuple[str, str | None]:
    match = _PATH.search(text)
    path = match.group(2) if match else None
    message = text[: match.start()] if match else text
    if missing := _MISSING.match(message):
        path = f"{path}.{missing.group(1)}" if path else missing.group(1)
    message = _UNKNOWN.sub("This has a field that is not known here", message)
    message = _ECHO.sub("This value is not one of those that are known", message).replace("`", "'")
    return f"{message}.", path or None
