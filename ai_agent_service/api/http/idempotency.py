"""Answers a request with an Idempotency-Key once: a repeated request gets the recorded answer, and
nothing is run."""

import hashlib
import time
from collections.abc import Callable, MutableMapping
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ai_agent_service.api.http.errors import build_error_response
from ai_agent_service.api.http.run_response import RunResponse
from ai_agent_service.core.errors import (
    IdempotencyInFlightError,
    IdempotencyMismatchError,
    IdempotencyNotStoredError,
    InvalidRequestError,
)

MAX_ANSWERS = 1000
MAX_BYTES = 64 * 1024 * 1024
MAX_ANSWER_BYTES = 1024 * 1024
RETENTION_SECONDS = 24 * 3600.0

IDEMPOTENCY_HEADER: dict[str, tuple[str, dict[str, Any]]] = {
    "Idempotency-Key": (
        (
            "A key of the caller's own: sent again with it, the same request gets the same answer"
            " and is not run again."
        ),
        {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    )
}

CacheKey = tuple[str, str, str, str]
"""Whose key it is, and for what: tenant, user, path and the key."""


class RecordedResponse:
    """An answer, as far as it was sent; `digest` stands for the request that it is for."""

    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = bytearray()
        self.is_kept = True
        self.is_forgotten = False
        self.ended_at = 0.0


class IdempotencyCache:
    """The answers of this process to requests with a key: 1,000 at most, 1 MB each, 64 MB together,
    for 24 hours; the oldest go first."""

    def __init__(
        self,
        *,
        max_answers: int = MAX_ANSWERS,
        max_bytes: int = MAX_BYTES,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_answers = max_answers
        self._max_bytes = max_bytes
        self._max_answer_bytes = max_answer_bytes
        self._clock = clock
        self._begun: dict[CacheKey, RecordedResponse] = {}
        self._ended: dict[CacheKey, RecordedResponse] = {}
        """In the order of their ends."""

        self.size = 0
        """Bytes of all bodies."""

    def __len__(self) -> int:
        return len(self._begun) + len(self._ended)

    def find(self, name: CacheKey, digest: bytes) -> RecordedResponse | None:
        """The recorded answer to this request; None if it was not asked.

        Raises IdempotencyMismatchError, IdempotencyInFlightError, and IdempotencyNotStoredError for
        an answer that was too large.
        """
        self._expire()
        answer = self._begun.get(name) or self._ended.get(name)
        if answer is None:
            return None
        if answer.digest != digest:
            raise IdempotencyMismatchError(
                "This Idempotency-Key was used for another request.", param="Idempotency-Key"
            )
        if name in self._begun:
            raise IdempotencyInFlightError(
                "The request with this Idempotency-Key is being answered. Try again in a moment.",
                retry_after=1,
            )
        if not answer.is_kept:
            raise IdempotencyNotStoredError(
                "The request with this Idempotency-Key was answered, and the answer was too large"
                " to be kept. Another key runs it again.",
                param="Idempotency-Key",
            )
        return answer

    def begin(self, name: CacheKey, digest: bytes) -> RecordedResponse:
        """A new answer, to be recorded; `end` must be called for it."""
        answer = self._begun[name] = RecordedResponse(digest)
        self._evict()
        return answer

    def record(self, answer: RecordedResponse, message: Message) -> None:
        """Adds what is sent, as long as the answer is small enough to be kept."""
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = list(message.get("headers", ()))
            return
        piece = message.get("body", b"")
        if not answer.is_kept:
            return
        answer.body += piece
        self.size += len(piece)
        self._evict()
        if len(answer.body) > self._max_answer_bytes or self.size > self._max_bytes:
            self.size -= len(answer.body)
            answer.body.clear()
            answer.is_kept = False

    def end(self, name: CacheKey, *, keep: bool) -> None:
        """Ends an answer that was begun, and forgets it unless it is to be kept."""
        answer = self._begun.pop(name)
        if keep and not answer.is_forgotten:
            answer.ended_at = self._clock()
            self._ended[name] = answer
        else:
            self.size -= len(answer.body)

    def forget(self, tenant: str, user: str) -> None:
        """Forgets what was answered, or is being, to a user whose conversations are erased."""
        for name, answer in self._begun.items():
            if name[:2] == (tenant, user):
                answer.is_forgotten = True
        for name in [name for name in self._ended if name[:2] == (tenant, user)]:
            self._drop(name)

    def _expire(self) -> None:
        while self._ended:
            oldest = next(iter(self._ended))
            if self._ended[oldest].ended_at + RETENTION_SECONDS > self._clock():
                return
            self._drop(oldest)

    def _evict(self) -> None:
        while self._ended and (len(self) > self._max_answers or self.size > self._max_bytes):
            self._drop(next(iter(self._ended)))

    def _drop(self, name: CacheKey) -> None:
        self.size -= len(self._ended.pop(name).body)


class IdempotentResponse(Response):
    """The answer to a request with a key: `response`, unless the request was answered before.

    What failed is not recorded, so that a retry runs: errors of the server, of limits and of busy
    sessions, answers that broke off, and those whose callers left.
    """

    def __init__(
        self, answers: IdempotencyCache, name: CacheKey, digest: bytes, response: RunResponse
    ) -> None:
        self._answers = answers
        self._name = name
        self._digest = digest
        self._response = response
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer; raises a ServiceError only before anything is sent."""
        recorded = self._answers.find(self._name, self._digest)
        if recorded is not None:
            headers = [*recorded.headers, (b"idempotent-replayed", b"true")]
            await send(
                {"type": "http.response.start", "status": recorded.status, "headers": headers}
            )
            await send({"type": "http.response.body", "body": bytes(recorded.body)})
            return
        answer = self._answers.begin(self._name, self._digest)
        refused = False

        async def record_and_send(message: MutableMapping[str, Any]) -> None:
            self._answers.record(answer, message)
            await send(message)

        try:
            await self._response(scope, receive, record_and_send)
        except InvalidRequestError as error:
            await build_error_response(error)(scope, receive, record_and_send)
            refused = True
        finally:
            self._answers.end(self._name, keep=refused or self._response.is_finished)


def make_idempotent(request: Request, body: bytes, response: RunResponse) -> Response:
    """Return `response`, or where the request has an Idempotency-Key, one that answers it once.

    `body` and the session tell one request from another.
    """
    turn, context = response.run.turn, response.run.context
    if turn.idempotency_key is None:
        return response
    circumstances = "\x00".join((turn.session or "", turn.history or "", turn.message_id or ""))
    digest = hashlib.blake2b(
        body, digest_size=32, key=hashlib.blake2b(circumstances.encode(), digest_size=32).digest()
    )
    return IdempotentResponse(
        get_idempotency_cache(request),
        (context.tenant, context.user, request.scope["path"], turn.idempotency_key),
        digest.digest(),
        response,
    )


def get_idempotency_cache(request: Request) -> IdempotencyCache:
    """The answers that this process keeps."""
    return cast(IdempotencyCache, request.app.state.answers)
