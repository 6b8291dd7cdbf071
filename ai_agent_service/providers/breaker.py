"""Stops asking a model of a provider that fails time after time, until it can be asked again."""

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
"""What callers are told to wait while another one's request finds out whether the provider answers
again."""

STATUS_EXPIRY_SECONDS = 300.0
"""How long after it might be asked again a model that nobody asks is told as one that fails; the
next request still finds out."""

MAX_BREAKERS = 1000
"""Models whose state is kept; a configuration names far fewer, but an agent type of a plug-in may
ask for any."""

REJECTED_CODE = "provider_rejected_request"


class BreakerStatus(msgspec.Struct, frozen=True):
    """How a provider does with a model.

    `closed` is the state in which it is asked; `open` says that it is not, for another
    `seconds_left`, and `half_open` that one request is finding out. `failures` came one after the
    other; `last_error` is the code of the latest, ever; `openings` counts since the start.
    """

    provider: str
    model: str
    state: BreakerState
    failures: int
    last_error: str | None
    seconds_left: float | None
    openings: int


class CircuitBreakers:
    """All breakers, one for each model of each provider.

    `limit` failures in a row open one (0: never), for `seconds`; `clock` gives seconds that only
    grow.
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
        """`provider`, asked only while its breaker is not open."""
        return _GuardedProvider(provider, self)

    def list_statuses(self) -> list[BreakerStatus]:
        """How each model does that was ever asked, by provider and model."""
        return [self._breakers[key].build_status() for key in sorted(self._breakers)]

    def get_breaker(self, provider: str, model: str) -> "_CircuitBreaker":
        """The breaker of a model."""
        breaker = self._breakers.get((provider, model))
        if breaker is None:
            breaker = _CircuitBreaker(provider, model, self)
            if len(self._breakers) < MAX_BREAKERS:
                self._breakers[provider, model] = breaker
        return breaker


class _GuardedProvider(WrappedProvider):
    """A provider that is told of to its breakers and counted, and asked as they allow."""

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
            era = breaker.enter()
            async with aclosing(self._provider.stream(request)) as events:
                async for event in events:
                    if not begun:
                        begun = True
                        breaker.record_start(era)
                    yield event
        except ServiceError as error:
            self._counts.errors[error.code] += 1
            if era is not None:
                breaker.record_failure(era, error)
            raise
        except BaseException:
            if era is not None:
                breaker.record_cancellation(era)
            raise
        breaker.record_success(era)


class _CircuitBreaker:
    """The state of one model.

    Each request notes the `era` in which it began, and what becomes of it counts in that era alone:
    of 200 that fail together one opens the breaker, and those that were under way before tell
    nothing of how the provider does since.
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

    def enter(self) -> int:
        """The era in which a request begins; raises ProviderCircuitOpenError if it may not."""
        if self._state != "closed":
            self._probe()
        return self._era

    def record_start(self, era: int) -> None:
        """The answer has begun: a probe lets the others in, but one more failure opens again until
        an answer comes to its end."""
        if era == self._era and self._state == "half_open":
            self._close(self._breakers.limit - 1)

    def record_success(self, era: int) -> None:
        """The answer came to its end."""
        if era == self._era:
            if self._state == "half_open":
                self._close(0)
            self.failures = 0

    def record_failure(self, era: int, error: ServiceError) -> None:
        """The answer ended with `error`."""
        if era != self._era:
            return
        match is_unhealthy(error):
            case True:
                self._last_error = error.code
                self.failures += 1
                if self._state == "half_open" or self.failures == self._breakers.limit:
                    self._open()
            case False:
                self.record_success(era)
            case None:
                self.record_cancellation(era)

    def record_cancellation(self, era: int) -> None:
        """The answer was not waited for: a probe makes room for the next."""
        if era == self._era and self._state == "half_open":
            self._state = "open"

    def build_status(self) -> BreakerStatus:
        """How the model does now; one that nobody has asked for long counts as closed, for it may
        be well again."""
        now = self._breakers.clock()
        state: BreakerState = (
            "closed"
            if self._state == "open" and now >= self._until + STATUS_EXPIRY_SECONDS
            else self._state
        )
        left = max(0.0, self._until - now) if state == "open" else None
        return BreakerStatus(
            self._provider,
            self._model,
            state,
            self.failures,
            self._last_error,
            left,
            self._openings,
        )

    def _probe(self) -> None:
        """Lets one request find out, once it is time."""
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
        seconds = self._breakers.seconds
        logger.warning(
            "provider.breaker_opened",
            extra={
                **self._log_fields,
                "failures": self.failures,
                "code": self._last_error,
                "seconds": seconds,
            },
        )

    def _close(self, failures: int) -> None:
        self._state = "closed"
        self.failures = failures
        logger.info("provider.breaker_closed", extra=self._log_fields)

    @property
    def _log_fields(self) -> dict[str, str]:
        return {"provider": self._provider, "model": self._model}


def is_unhealthy(error: ServiceError) -> bool | None:
    """Whether `error` says that the provider cannot answer (True), that it can (False), or neither
    (None).

    Unwell are: no connection, no answer in time, errors of its own (5xx), answers that break off. A
    provider that refuses a key, a model or a request, or asks for patience (429), answers. The
    run's deadline and what was never sent say nothing of it.
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
