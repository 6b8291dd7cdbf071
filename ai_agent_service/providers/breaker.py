"""Stop asking a model that fails time after time, until it answers again."""

import logging
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Literal

import msgspec

from ai_agent_service.core.errors import (
    ContextTooLongError,
    ProviderCircuitOpenError,
    ProviderNotConfiguredError,
    ProviderProtocolError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    ServiceError,
    UpstreamError,
)
from ai_agent_service.providers.base import ModelEvent, ModelRequest, Provider
from ai_agent_service.providers.counters import ProviderCounts
from ai_agent_service.providers.wrapper import WrappedProvider

logger = logging.getLogger(__name__)

BreakerState = Literal["closed", "open", "half_open"]

PROBE_SECONDS = 1.0
"""The Retry-After of callers while another one's request tries whether the provider answers."""

STATUS_EXPIRY_SECONDS = 300.0
"""How long a model that could be asked again, and is not, still counts as failing in reports."""

MAX_BREAKERS = 1000
"""Models whose state is kept. A configuration names far fewer, but a plug-in's agent type may ask
for any."""

REJECTED_CODE = "provider_rejected_request"


class BreakerStatus(msgspec.Struct, frozen=True):
    """The breaker of one model.

    `closed` lets requests through, `open` does not for another `seconds_left`, and `half_open` lets
    one through as a trial. `failures` are those in a row; `last_error` is the code of the latest
    ever; `openings` counts since the start. `is_for_one_caller` says that others are let through.
    """

    provider: str
    model: str
    state: BreakerState
    failures: int
    last_error: str | None
    seconds_left: float | None
    openings: int
    is_for_one_caller: bool = False


class CircuitBreakers:
    """All breakers, one for each model of each provider.

    `limit` failures in a row open one (0: never), for `seconds`; `clock` gives seconds that only
    grow. One that opens because of a single caller's requests is open for that caller only, since
    it may be those requests that fail; one without a connection is open for all.
    """

    def __init__(
        self,
        limit: int,
        seconds: float,
        *,
        counts: defaultdict[str, ProviderCounts] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = limit
        self.seconds = seconds
        self.clock = clock
        self.counts = defaultdict(ProviderCounts) if counts is None else counts
        self._breakers: dict[tuple[str, str], _CircuitBreaker] = {}

    def guard(self, provider: Provider) -> Provider:
        """Return `provider` behind its breakers, one for each model."""
        return _GuardedProvider(provider, self)

    def list_statuses(self) -> list[BreakerStatus]:
        """Return the state of each model that was ever asked, by provider and model."""
        return [self._breakers[key].build_status() for key in sorted(self._breakers)]

    def get_breaker(self, provider: str, model: str) -> "_CircuitBreaker":
        """Return the breaker of a model."""
        breaker = self._breakers.get((provider, model))
        if breaker is None:
            breaker = _CircuitBreaker(provider, model, self)
            if len(self._breakers) < MAX_BREAKERS:
                self._breakers[provider, model] = breaker
        return breaker


class _GuardedProvider(WrappedProvider):
    """Asks a provider as its breakers allow, and counts how that ends."""

    def __init__(self, provider: Provider, breakers: CircuitBreakers) -> None:
        super().__init__(provider)
        self._breakers = breakers
        self._counts = breakers.counts[provider.name]

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        breaker = self._breakers.get_breaker(self._provider.name, request.model)
        self._counts.requests += 1
        era = None
        begun = False
        try:
            era = breaker.enter(request.caller)
            async with aclosing(self._provider.stream(request)) as events:
                async for event in events:
                    if not begun:
                        begun = True
                        breaker.record_start(era, request.caller)
                    yield event
        except ServiceError as error:
            self._counts.errors[error.code] += 1
            if era is not None:
                breaker.record_failure(era, request.caller, error)
            raise
        except BaseException:
            if era is not None:
                breaker.record_cancellation(era, request.caller)
            raise
        breaker.record_success(era, request.caller)


class _CircuitBreaker:
    """The state of one model.

    The end of a request counts only in the `era` in which it began: of 200 that fail together, one
    opens the breaker, and those that began earlier say nothing about the provider's state since.
    """

    def __init__(self, provider: str, model: str, breakers: CircuitBreakers) -> None:
        self.failures = 0
        self._provider = provider
        self._model = model
        self._breakers = breakers
        self._state: BreakerState = "closed"
        self._era = 0
        self._until = 0.0
        self._openings = 0
        self._last_error: str | None = None
        self._failing: set[str] = set()
        """The callers of the failures in a row."""

        self._is_unreachable = False
        """Whether one of those failures was the connection's."""

        self._only: str | None = None
        """The one caller for which the breaker is not closed; None: it is for all."""

    def enter(self, caller: str) -> int:
        """Return the era of a new request; raises ProviderCircuitOpenError if it may not begin."""
        if self._state != "closed" and self._concerns(caller):
            self._probe()
        return self._era

    def record_start(self, era: int, caller: str) -> None:
        """Record that an answer has begun: a trial closes the breaker, and until an answer is
        complete one more failure opens it again."""
        if era == self._era and self._state == "half_open" and self._concerns(caller):
            self._close(self._breakers.limit - 1)

    def record_success(self, era: int, caller: str) -> None:
        """Record a complete answer."""
        if era == self._era:
            if self._state == "half_open" and self._concerns(caller):
                self._close(0)
            self._forget_failures(0)

    def record_failure(self, era: int, caller: str, error: ServiceError) -> None:
        """Record an answer that ended with `error`."""
        if era != self._era:
            return
        match is_unhealthy(error):
            case True:
                self._last_error = error.code
                self.failures += 1
                self._failing.add(caller)
                self._is_unreachable |= is_unreachable(error)
                is_trial = self._state == "half_open" and self._concerns(caller)
                is_news = self._state == "closed" or not self._concerns(caller)
                if is_trial or (is_news and 0 < self._breakers.limit <= self.failures):
                    self._open()
            case False:
                self.record_success(era, caller)
            case None:
                self.record_cancellation(era, caller)

    def record_cancellation(self, era: int, caller: str) -> None:
        """Record that the caller left: a trial makes room for the next."""
        if era == self._era and self._state == "half_open" and self._concerns(caller):
            self._state = "open"

    def build_status(self) -> BreakerStatus:
        """Return the current state. A model that was not asked for long counts as closed, since it
        may have recovered."""
        now = self._breakers.clock()
        state = self._state
        if state == "open" and now >= self._until + STATUS_EXPIRY_SECONDS:
            state = "closed"
        return BreakerStatus(
            self._provider,
            self._model,
            state,
            self.failures,
            self._last_error,
            max(0.0, self._until - now) if state == "open" else None,
            self._openings,
            state != "closed" and self._only is not None,
        )

    def _concerns(self, caller: str) -> bool:
        return self._only is None or caller == self._only

    def _probe(self) -> None:
        """Let one request through as a trial, once it is time."""
        left = PROBE_SECONDS if self._state == "half_open" else self._until - self._breakers.clock()
        if left > 0:
            raise ProviderCircuitOpenError(
                f"{self._provider} is not asked at the moment, as its last {self.failures} answers"
                " failed. Try again later.",
                retry_after=left,
            )
        self._state = "half_open"
        self._era += 1

    def _open(self) -> None:
        self._state = "open"
        self._era += 1
        self._openings += 1
        self._until = self._breakers.clock() + self._breakers.seconds
        is_for_one = len(self._failing) == 1 and not self._is_unreachable
        self._only = next(iter(self._failing)) if is_for_one else None
        failure = {"failures": self.failures, "code": self._last_error}
        scope = {"seconds": self._breakers.seconds, "for_one_caller": is_for_one}
        extra = {**self._log_fields, **failure, **scope}
        logger.warning("provider.breaker_opened", extra=extra)

    def _close(self, failures: int) -> None:
        self._state = "closed"
        self._only = None
        self._forget_failures(failures)
        logger.info("provider.breaker_closed", extra=self._log_fields)

    def _forget_failures(self, left: int) -> None:
        self.failures = left
        self._is_unreachable = False
        if not left:
            self._failing.clear()

    @property
    def _log_fields(self) -> dict[str, str]:
        return {"provider": self._provider, "model": self._model}


def is_unreachable(error: ServiceError) -> bool:
    """Return whether there was no connection, as the error's cause says, which no request can be
    the reason for."""
    return isinstance(error, ProviderUnavailableError) and error.__cause__ is not None


def is_unhealthy(error: ServiceError) -> bool | None:
    """Return whether `error` shows that the provider cannot answer (True), that it can (False), or
    neither (None).

    A provider is unhealthy if there is no connection, no answer in time, an error of its own (5xx)
    or an answer that breaks off. One that refuses a key, a model or a request, or limits the rate
    (429), answers. The run's deadline and a request that was never sent show neither.
    """
    match error:
        case ProviderUnavailableError() | ProviderTimeoutError() | ProviderProtocolError():
            return True
        case ProviderNotConfiguredError():
            return None
        case UpstreamError() | ContextTooLongError():
            return False
        case _:
            return False if error.code == REJECTED_CODE else None
