"""What routes share: the service, the caller's body, the run's circumstances."""

import re
from typing import Annotated, TypeVar, cast

import msgspec
from fastapi import Depends
from starlette.requests import ClientDisconnect, Request

from app.auth.access import Access
from app.core.errors import BodyTooLarge, InvalidRequest
from app.service import Service

T = TypeVar("T")
_PATH = re.compile(r" - at `(key in )?\$\.?([^`]*)`$")
_MISSING = re.compile(r"^Object missing required field `(.+)`$")
_ECHO = re.compile(r"^Invalid (enum value|value) .*$")


async def service_of(request: Request) -> Service:
    """The service that the lifespan opened. It is async because FastAPI runs any other dependency in a thread."""
    return cast(Service, request.app.state.service)


async def access_of(request: Request) -> Access:
    """What tells who calls, which the lifespan opened."""
    return cast(Access, request.app.state.access)


ServiceDependency = Annotated[Service, Depends(service_of)]


def request_id_of(request: Request) -> str:
    """The id that the edge gave this request."""
    return cast(str, request.state.request_id)


async def decoded_body(request: Request, decoder: msgspec.json.Decoder[T], max_bytes: int) -> T:
    """The body as what `decoder` decodes; raises BodyTooLarge before more than `max_bytes` are held, and InvalidRequest.

    The error names the field in `param` and never repeats what was sent.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise _too_large(max_bytes)
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > max_bytes:
                raise _too_large(max_bytes)
            pieces.append(piece)
    except ClientDisconnect:
        raise InvalidRequest("The body ended before it was complete.") from None
    body = b"".join(pieces)
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message, path = _without_path(str(error))
        raise InvalidRequest(message, param=path) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = "The body is not valid JSON." if body else "The body is empty; a JSON object is expected."
        raise InvalidRequest(problem, code="invalid_json") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", code="invalid_json") from None


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than the {max_bytes} bytes that are accepted.")


def _without_path(text: str) -> tuple[str, str | None]:
    match = _PATH.search(text)
    path = match.group(2) if match else None
    message = text[: match.start()] if match else text
    if missing := _MISSING.match(message):
        path = f"{path}.{missing.group(1)}" if path else missing.group(1)
    message = _ECHO.sub("This value is not one of those that are known", message).replace("`", "'")
    return f"{message}.", path or None
