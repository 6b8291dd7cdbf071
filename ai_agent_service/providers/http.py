"""Send requests to providers over one pooled HTTP session, with deadlines, retries before the first
byte, and errors of our own."""

import asyncio
import functools
import logging
import math
import os
import random
import re
import time
import urllib.request
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import SimpleNamespace
from typing import Self

import aiohttp
import msgspec
from yarl import URL

from ai_agent_service.core.bounds import MAX_ANSWER_BYTES, MAX_ERROR_BYTES
from ai_agent_service.core.errors import (
    ProviderProtocolError,
    ProviderRefusedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    RequestError,
    RunTimeoutError,
    ServiceError,
    UpstreamError,
)
from ai_agent_service.observability.tracing import build_trace_headers
from ai_agent_service.providers.counters import ProviderCounts
from ai_agent_service.providers.http_errors import HttpTarget, parse_error

logger = logging.getLogger(__name__)

RETRYABLE_STATUSES = frozenset({408, 409, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
COMPRESSIONS = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress"})
"""Values of Content-Encoding; some servers send others, such as `utf-8`, which mean nothing."""

MAX_REDIRECTS = 5
MAX_JSON_BYTES = 1_000_000

MAX_RETRY_AFTER = 20.0
"""Seconds of Retry-After that are waited; a longer wait is left to the caller."""

RETRY_BUDGET = 10.0
RETRY_BUDGET_PER_REQUEST = 0.1


class Timeouts(msgspec.Struct, frozen=True):
    """Seconds to connect, to the first byte of the answer, and between its pieces."""

    connect: float = 10.0
    first_byte: float = 120.0
    idle: float = 60.0


class HttpClient:
    """The one HTTP session that all providers share; opened by `async with`.

    Retries are jittered, obey Retry-After, and have a budget per provider of a tenth of its
    requests and a few more, so that they do not increase an overload.
    """

    def __init__(
        self, timeouts: Timeouts | None = None, *, max_retries: int = 2, first_delay: float = 0.5
    ) -> None:
        self._timeouts = timeouts or Timeouts()
        # aiohttp's other time limits set a timer for each piece; `_send` and `_ResponseChunks`
        # enforce ours.
        self._only_connect = aiohttp.ClientTimeout(total=None, connect=self._timeouts.connect)
        self._max_retries = max_retries
        self._first_delay = first_delay
        self._budgets: dict[str, float] = {}
        self.counts: defaultdict[str, ProviderCounts] = defaultdict(ProviderCounts)
        """The counts of each provider, of which only the retries are counted here."""
        self._session: aiohttp.ClientSession | None = None
        self._unpooled: aiohttp.ClientSession | None = None
        """A session whose every request opens a connection."""

    async def __aenter__(self) -> Self:
        pool = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
        self._session = _open_session(pool)
        self._unpooled = _open_session(aiohttp.TCPConnector(limit=0, force_close=True))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
        if self._unpooled is not None:
            await self._unpooled.close()
            self._unpooled = None

    @asynccontextmanager
    async def post(
        self, target: HttpTarget, body: bytes, *, deadline: float
    ) -> AsyncGenerator[AsyncIterator[bytes], None]:
        """Send the JSON `body` and yield the pieces of a successful answer as they arrive.

        Raises the UpstreamError, ContextTooLongError or InvalidRequestError that the provider's
        answer means, and RunTimeoutError when `deadline` (of `time.monotonic()`) passes first. The
        connection of an answer that is read to its end is used again; any other is closed.
        """
        response = await self._send_with_retries(target, body, deadline)
        pieces = _ResponseChunks(response, self._timeouts, deadline)
        try:
            encoding = response.headers.get("Content-Encoding", "")
            if not COMPRESSIONS.isdisjoint(re.split(r"[\s,]+", encoding.lower())):
                raise ProviderProtocolError(
                    f"{target.provider} compressed its answer ({encoding[:20]}), which was not"
                    " asked for."
                )
            yield pieces
        except _AnswerTooLargeError as error:
            raise ProviderProtocolError(
                f"The answer of {target.provider} is larger than {MAX_ANSWER_BYTES >> 20} MiB."
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            begun = pieces.begun or not isinstance(error, TimeoutError)
            raise self._translate_error(error, target, deadline, begun=begun) from error
        finally:
            pieces.close()
            response.close()

    async def get_json(self, target: HttpTarget, *, timeout: float) -> object:
        """Return the JSON answer to a GET within `timeout` seconds; raises UpstreamError."""
        async with self._limit_time(target, timeout), self._get(target.url, target) as response:
            text = await _read_limited(response.content, MAX_JSON_BYTES)
            if response.status != 200:
                raise parse_error(response.status, response.headers, text, target)
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProviderProtocolError(
                f"{target.provider} answered with something that is not JSON"
            ) from error

    async def probe(self, target: HttpTarget, *, timeout: float) -> None:
        """Return once a GET is answered with 200 within `timeout` seconds, whatever the body is;
        raises UpstreamError."""
        async with self._limit_time(target, timeout), self._get(target.url, target) as response:
            if response.status == 200:
                return
            text = await _read_limited(response.content, MAX_ERROR_BYTES)
            error = parse_error(response.status, response.headers, text, target)
            # An empty request cannot be what is wrong.
            if not isinstance(error, UpstreamError):
                error = ProviderUnavailableError(error.message)
            raise error

    async def fetch(self, url: str, *, limit_bytes: int, timeout: float) -> bytes:
        """Return the body of a GET within `timeout` seconds, following at most 5 redirects within
        the same server.

        Raises UpstreamError, also for any status but 200 and for more than `limit_bytes`, without
        repeating what the answer says.
        """
        try:
            address = URL(url)
            target = HttpTarget(address.origin().authority, url)
        except ValueError as error:
            raise ProviderUnavailableError("The address is not a valid URL.") from error
        async with self._limit_time(target, timeout):
            for _ in range(1 + MAX_REDIRECTS):
                async with self._get(address, target) as response:
                    if response.status in REDIRECT_STATUSES:
                        location = response.headers.get("Location", "")
                        address = _resolve_redirect(address, location, target)
                        continue
                    if response.status != 200:
                        raise ProviderUnavailableError(
                            f"{target.provider} answered with the status {response.status}."
                        )
                    body = await _read_limited(response.content, limit_bytes)
                    if len(body) > limit_bytes:
                        raise ProviderProtocolError(
                            f"{target.provider} answered with more than {limit_bytes} bytes."
                        )
                    return body
            raise ProviderProtocolError(f"{target.provider} redirects too often.")

    def _get(
        self, url: str | URL, target: HttpTarget
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return _require_open(self._session).get(
            url, headers=target.headers, allow_redirects=False, proxy=find_proxy(str(url))
        )

    @asynccontextmanager
    async def _limit_time(self, target: HttpTarget, seconds: float) -> AsyncGenerator[None, None]:
        """Give requests to `target` so many seconds, and raise UpstreamError where one fails."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise ProviderTimeoutError(
                f"{target.provider} did not answer within {seconds:g} seconds."
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._translate_error(error, target, math.inf, begun=False) from error

    async def _send_with_retries(
        self, target: HttpTarget, body: bytes, deadline: float
    ) -> aiohttp.ClientResponse:
        provider, attempt = target.provider, 0
        budget = self._budgets.get(provider, RETRY_BUDGET)
        self._budgets[provider] = min(RETRY_BUDGET, budget + RETRY_BUDGET_PER_REQUEST)
        while True:
            try:
                response = await self._send(target, body, deadline)
            except (aiohttp.ClientError, OSError) as error:
                failure = self._translate_error(error, target, deadline, begun=False)
                failure.__cause__ = error
                fields = {
                    "provider": provider,
                    "code": failure.code,
                    "cause": _describe_cause(error),
                }
                logger.info("provider.failed", extra=fields)
                is_lasting = isinstance(error, TimeoutError | aiohttp.InvalidURL)
                is_retryable = not is_lasting or isinstance(error, aiohttp.ConnectionTimeoutError)
            else:
                if response.status == 200:
                    return response
                failure = await self._read_failure(response, target)
                is_lasting = isinstance(failure, RequestError | ProviderRefusedError)
                is_retryable = response.status in RETRYABLE_STATUSES and not is_lasting
            delay = self._compute_delay(attempt, failure.retry_after)
            if (
                not is_retryable
                or attempt >= self._max_retries
                or delay is None
                or time.monotonic() + delay >= deadline
            ):
                raise failure
            if self._budgets[provider] < 1:
                logger.warning("provider.retry_budget_spent", extra={"provider": provider})
                raise failure
            self._budgets[provider] -= 1
            attempt += 1
            self.counts[provider].retries += 1
            retry = {"provider": provider, "attempt": attempt, "code": failure.code}
            logger.info("provider.retry", extra={**retry, "delay": round(delay, 2)})
            await asyncio.sleep(delay)

    async def _send(
        self, target: HttpTarget, body: bytes, deadline: float
    ) -> aiohttp.ClientResponse:
        """Return the response to one attempt.

        If a connection of the pool ends before a byte of the response, the server closed it before
        the request arrived, so it is sent once more, on a new connection.
        """
        connection = _ConnectionOrigin()
        async with asyncio.timeout(min(deadline - time.monotonic(), self._timeouts.first_byte)):
            try:
                return await self._post(self._session, target, body, connection)
            except (aiohttp.ClientConnectionError, OSError) as error:
                is_stale = connection.is_reused and not _has_response_begun(error)
                if not is_stale or isinstance(error, TimeoutError):
                    raise
                fields = {"provider": target.provider, "cause": _describe_cause(error)}
                logger.debug("provider.stale_connection", extra=fields)
            return await self._post(self._unpooled, target, body, connection)

    async def _post(
        self,
        session: aiohttp.ClientSession | None,
        target: HttpTarget,
        body: bytes,
        connection: "_ConnectionOrigin",
    ) -> aiohttp.ClientResponse:
        return await _require_open(session).post(
            target.url,
            data=body,
            headers={**target.headers, **build_trace_headers()},
            allow_redirects=False,
            proxy=find_proxy(target.url),
            timeout=self._only_connect,
            trace_request_ctx=connection,
        )

    async def _read_failure(
        self, response: aiohttp.ClientResponse, target: HttpTarget
    ) -> ServiceError:
        text = None
        try:
            async with asyncio.timeout(5):
                text = await _read_limited(response.content, MAX_ERROR_BYTES)
        except (aiohttp.ClientError, OSError):
            fields = {"provider": target.provider, "status": response.status}
            logger.info("provider.error_without_body", extra=fields)
        finally:
            response.close()
        return parse_error(response.status, response.headers, text, target)

    def _compute_delay(self, attempt: int, retry_after: float | None) -> float | None:
        """Return the seconds before the next attempt; None if the provider asks for too many."""
        # jitter needs no cryptography
        own: float = self._first_delay * 2**attempt * random.uniform(0.5, 1.0)  # noqa: S311
        if retry_after is None:
            return min(own, 8.0)
        return None if retry_after > MAX_RETRY_AFTER else retry_after + own * 0.2

    def _translate_error(
        self, error: Exception, target: HttpTarget, deadline: float, *, begun: bool
    ) -> ServiceError:
        provider = target.provider
        if isinstance(error, TimeoutError):
            if time.monotonic() >= deadline - 0.01:
                return RunTimeoutError()
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                limit = self._timeouts.connect
                problem = f"did not accept a connection within {limit:g} seconds"
            elif begun:
                problem = "paused for too long within its answer"
            else:
                problem = f"did not begin to answer within {self._timeouts.first_byte:g} seconds"
            return ProviderTimeoutError(f"{provider} {problem}.")
        if begun:
            return ProviderProtocolError(
                f"The connection to {provider} broke off within its answer."
            )
        problem = f"{provider} cannot be reached."
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            problem = f"The host name of {provider} cannot be resolved."
        elif isinstance(error, aiohttp.InvalidURL):
            problem = f"The address of {provider} is not a valid URL."
        elif isinstance(error, aiohttp.ClientSSLError):
            problem = (
                f"{provider} cannot be reached: its TLS certificate or protocol is not accepted."
            )
        elif isinstance(error, OSError) and error.errno:  # whose own text contains the address
            problem = f"{provider} cannot be reached: {os.strerror(error.errno)}."
        return ProviderUnavailableError(problem)


class _AnswerTooLargeError(Exception):
    """An answer has more bytes than are read of one."""


class _ResponseChunks:
    """The body of an answer as it arrives, with a time limit for each piece.

    It is a plain iterator, since a generator would cost each piece another frame, and has one timer
    that is set again when due, since a timer for each piece would cost more than reading it.
    """

    def __init__(
        self, response: aiohttp.ClientResponse, timeouts: Timeouts, deadline: float
    ) -> None:
        self.begun = False
        self._bytes_left = MAX_ANSWER_BYTES
        self._content = response.content
        self._limit = timeouts.first_byte
        self._idle = timeouts.idle
        self._deadline = deadline
        self._waiting_since: float | None = None
        self._timer = self._set_timer(time.monotonic() + self._limit)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        self._waiting_since = time.monotonic()
        piece = await self._content.readany()
        self._waiting_since = None
        if not piece:
            raise StopAsyncIteration
        self._bytes_left -= len(piece)
        if self._bytes_left < 0:
            raise _AnswerTooLargeError
        # The timer does not fire within a flood that never makes us wait.
        if time.monotonic() >= self._deadline:
            raise TimeoutError
        if not self.begun:
            self.begun = True
            self._limit = self._idle
            self._timer.cancel()
            self._timer = self._set_timer(time.monotonic() + self._limit)
        return piece

    def close(self) -> None:
        """Cancel the timer."""
        self._timer.cancel()

    def _set_timer(self, due: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(
            max(0.0, min(due, self._deadline) - time.monotonic()), self._check_idle
        )

    def _check_idle(self) -> None:
        now = time.monotonic()
        since = now if self._waiting_since is None else self._waiting_since
        if now >= self._deadline or now - since >= self._limit:
            self._content.set_exception(aiohttp.SocketTimeoutError())
        else:
            self._timer = self._set_timer(since + self._limit)


class _ConnectionOrigin(msgspec.Struct):
    """Whether the connection of a request came from the pool."""

    is_reused: bool = False


async def _record_reuse(
    _: aiohttp.ClientSession, trace: SimpleNamespace, __: aiohttp.TraceConnectionReuseconnParams
) -> None:
    if isinstance(origin := trace.trace_request_ctx, _ConnectionOrigin):
        origin.is_reused = True


def _open_session(connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_record_reuse)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        # A compressed answer has no bound.
        auto_decompress=False,
        headers={"Accept-Encoding": "identity"},
        trace_configs=[trace],
    )


def _require_open(session: aiohttp.ClientSession | None) -> aiohttp.ClientSession:
    if session is None:
        raise RuntimeError("the HttpClient is used outside of its 'async with'")
    return session


def _has_response_begun(error: Exception) -> bool:
    """Return whether the server sent a part of its response's head before it disconnected."""
    return isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str)


def _describe_cause(error: Exception) -> str:
    """Return `error` for the log; aiohttp's text about an answer that is not HTTP repeats it."""
    if isinstance(error, OSError | aiohttp.InvalidURL) or logger.isEnabledFor(logging.DEBUG):
        return repr(error)
    return type(error).__name__


async def drain(pieces: AsyncIterator[bytes]) -> None:
    """Read what follows a complete answer, usually nothing, so that its connection can be
    reused."""
    left = 64 * 1024
    try:
        async with asyncio.timeout(1):
            async for piece in pieces:
                left -= len(piece)
                if left < 0:
                    return
    except (aiohttp.ClientError, OSError):
        return  # the answer is complete; only its connection is lost


def _resolve_redirect(url: URL, location: str, target: HttpTarget) -> URL:
    """Return the address `location` seen from `url`; raises ProviderProtocolError if its scheme or
    server is another one."""
    try:
        found = url.join(URL(location))
    except ValueError:
        found = URL()
    if (found.scheme, found.host, found.port) != (url.scheme, url.host, url.port):
        raise ProviderProtocolError(f"{target.provider} redirects to another server.")
    return found


async def _read_limited(content: aiohttp.StreamReader, limit: int) -> bytes:
    """Return all of `content`, or more than `limit` bytes of it."""
    found = bytearray()
    while len(found) <= limit and (piece := await content.readany()):
        found += piece
    return bytes(found)


@functools.lru_cache(maxsize=256)
def find_proxy(url: str) -> str | None:
    """Return the proxy for `url` by HTTP_PROXY, HTTPS_PROXY and NO_PROXY; raises
    aiohttp.InvalidURL."""
    try:
        address = URL(url)
    except ValueError as error:
        raise aiohttp.InvalidURL(url) from error
    if not address.host or urllib.request.proxy_bypass(address.host):
        return None
    return urllib.request.getproxies().get(address.scheme)
