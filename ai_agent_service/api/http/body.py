"""Read what routes share from a request: the service, the access, and the body."""

import asyncio
import gc
import re
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Annotated, TypeVar, cast

import msgspec
from fastapi import Depends
from starlette.requests import ClientDisconnect, Request

from ai_agent_service.api.http.json_limits import (
    check_value_count,
    repair_texts,
    replace_surrogates_by_nul,
)
from ai_agent_service.auth.access import Access
from ai_agent_service.core.bounds import LARGE_BODY, MAX_LARGE_BODY_BYTES
from ai_agent_service.core.errors import BodyTooLargeError, InvalidRequestError, ServerBusyError
from ai_agent_service.limits.limiter import Limiter
from ai_agent_service.runtime.service import Service

T = TypeVar("T")
_PATH = re.compile(r" - at `(key in )?\$\.?([^`]*)`$")
_MISSING = re.compile(r"^Object missing required field `(.+)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `.*`$")
_ECHO = re.compile(r"^Invalid (enum value|value) .*$")
_TYPE_NAMES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
_TYPE = re.compile(rf"(?<=[`' ])(?:{'|'.join(_TYPE_NAMES)})(?=[`' ])")


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


class BodyBudget:
    """The bytes of large bodies that a process holds at once, from their first byte until they are
    decoded."""

    def __init__(self, limit: int = MAX_LARGE_BODY_BYTES) -> None:
        self._limit = limit
        self._used = 0

    @contextmanager
    def open_share(self) -> Generator["BodyShare", None, None]:
        """Return the share of one body, which ends with the context."""
        share = BodyShare(self)
        try:
            yield share
        finally:
            self._used -= share.size

    def grow(self, share: "BodyShare", size: int) -> None:
        """Let `share` have `size` bytes; raises ServerBusyError if they are in use."""
        if self._used and self._used - share.size + size > self._limit:
            raise ServerBusyError(
                "The service is reading as many large requests as it can hold. Try again.",
                retry_after=1,
            )
        self._used += size - share.size
        share.size = size


class BodyShare:
    """The bytes that one body has of a budget."""

    def __init__(self, budget: BodyBudget) -> None:
        self.size = 0
        self._budget = budget

    def grow(self, size: int) -> None:
        """Have `size` bytes in all, none for a small body."""
        if size > LARGE_BODY:
            self._budget.grow(self, size)


async def read_json(request: Request, decoder: msgspec.json.Decoder[T]) -> tuple[bytes, T]:
    """Return the body and its decoded value, within the limits of one body and of all together.

    Raises BodyTooLargeError, ServerBusyError and InvalidRequestError.
    """
    max_bytes = get_service(request).settings.max_request_bytes
    budget = cast(BodyBudget, request.app.state.bodies)
    with budget.open_share() as share:
        body = await _read_body(request, max_bytes, share)
        if len(body) <= LARGE_BODY:
            return body, decode_body(body, decoder)
        return body, await asyncio.to_thread(decode_body, body, decoder)


async def _read_body(request: Request, max_bytes: int, share: BodyShare) -> bytes:
    """Return the body; raises BodyTooLargeError before it holds more than `max_bytes`."""
    length = request.headers.get("content-length", "")
    if length.isdecimal():
        if int(length) > max_bytes:
            raise _build_too_large_error(max_bytes)
        share.grow(int(length))
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > max_bytes:
                raise _build_too_large_error(max_bytes)
            if len(body) > share.size:
                share.grow(len(body))
    except ClientDisconnect:
        raise InvalidRequestError("The body ended before it was complete.") from None
    return bytes(body)


def decode_body(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Return the decoded `body`; raises InvalidRequestError, which names the field in `param` and
    never repeats what was sent."""
    try:
        check_value_count(body, decoder.type)
        with _pause_garbage_collection() if len(body) > LARGE_BODY else nullcontext():
            try:
                value = decoder.decode(body)
            except msgspec.ValidationError:
                raise
            except msgspec.DecodeError:
                body = replace_surrogates_by_nul(body)
                value = decoder.decode(body)
        repair_texts(body, value)
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
    message = _TYPE.sub(lambda name: _TYPE_NAMES[name[0]], message)
    return f"{path}: {message}." if path and not missing else f"{message}.", path or None
