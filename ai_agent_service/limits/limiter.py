"""Admits runs within the limits of their key and of the user behind it, counted in this process."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Self

import msgspec

from ai_agent_service.auth.principal import Principal
from ai_agent_service.limits.rate_limit import (
    AdmissionRequest,
    Level,
    build_headers,
    decide,
    list_subjects,
    settle_level,
)

RUN_GRACE = 30.0
"""Seconds past its deadline after which a run that nobody ended does not count any more."""

SWEEP_THRESHOLD = 1024
"""How many subjects are kept before those are looked for that need not be."""


class Admission:
    """A run that nothing limits; what limits one makes its own kind."""

    headers: Mapping[str, str] = MappingProxyType({})
    """What is left, in OpenAI's headers, for those limits that there are."""

    async def settle(self, tokens: int | None) -> None:
        """Tells that the run has ended, whatever ended it, and how many tokens it used in all;
        None: nobody knows.

        What was reserved for it is replaced by what it used: fewer are given back, more are
        charged, be it past the limit. The first call counts. It raises nothing; a caller that is
        cancelled meanwhile need not care, for what is begun goes on.
        """


NOT_LIMITED = Admission()


class Limiter(ABC):
    """Counts what keys and their users ask. It is open within its `async with`."""

    async def admit(
        self, principal: Principal, user: str, *, run_id: str, tokens: int, seconds: float
    ) -> Admission:
        """Admits a run that may take `tokens` - its prompt and its answer - and `seconds`, within
        all limits of the key and of `user`.

        Raises RateLimitError, in which case nothing is charged. The admission must be settled when
        the run has ended.
        """
        subjects = list_subjects(principal, user)
        if not subjects:
            return NOT_LIMITED
        return await self.admit_request(AdmissionRequest(subjects, run_id, max(0, tokens), seconds))

    @abstractmethod
    async def admit_request(self, ask: AdmissionRequest) -> Admission:
        """As `admit`, for an ask that has subjects."""

    async def __aenter__(self) -> Self:
        return self

    @abstractmethod
    async def __aexit__(self, *_: object) -> None:
        """Ends what was begun."""


class InProcessLimiter(Limiter):
    """Limits of this process alone, which begin anew when it does. `clock` gives seconds that never
    go back."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: dict[str, _SubjectUsage] = {}
        self._sweep_at = SWEEP_THRESHOLD

    async def __aexit__(self, *_: object) -> None:
        """Nothing is open."""

    def __len__(self) -> int:
        """How many subjects are kept."""
        return len(self._counts)

    async def admit_request(self, ask: AdmissionRequest) -> Admission:
        """Decides by what is counted here."""
        now = self._clock()
        if len(self._counts) >= self._sweep_at:
            self._sweep(now)
        levels = [
            self._read_level(subject.name, subject.limits.parallel, now) for subject in ask.subjects
        ]
        after = decide(ask, levels, now)
        for subject, level in zip(ask.subjects, after, strict=True):
            count = self._counts.get(subject.name)
            if count is None:
                count = self._counts[subject.name] = _SubjectUsage()
            count.requests_until, count.tokens_until = level.requests_until, level.tokens_until
            if subject.limits.parallel is not None:
                count.runs[ask.run_id] = now + ask.seconds + RUN_GRACE
        return _LocalAdmission(self, ask, build_headers(ask.subjects, after, now))

    def end(self, ask: AdmissionRequest, tokens: int | None) -> None:
        """Counts a run as ended that used so many tokens."""
        now = self._clock()
        for subject in ask.subjects:
            count = self._counts.get(subject.name)
            if count is not None:
                count.runs.pop(ask.run_id, None)
            if tokens is None or subject.limits.tokens is None:
                continue
            level = Level(0.0, count.tokens_until if count is not None else now, 0)
            after = settle_level(
                level, subject, reserved=subject.count_reserved(ask.tokens), used=tokens, now=now
            )
            if count is None and after.tokens_until > now:
                count = self._counts[subject.name] = _SubjectUsage(requests_until=now)
            if count is not None:
                count.tokens_until = after.tokens_until

    def _read_level(self, name: str, parallel: int | None, now: float) -> Level:
        count = self._counts.get(name)
        if count is None:
            return Level(now, now, 0)
        if parallel is not None and len(count.runs) >= parallel:
            count.forget_runs(now)
        return Level(count.requests_until, count.tokens_until, len(count.runs))

    def _sweep(self, now: float) -> None:
        """Drops what is as if it had never been asked; so seldom that each ask pays little for
        it."""
        for name, count in list(self._counts.items()):
            count.forget_runs(now)
            if not count.runs and count.requests_until <= now and count.tokens_until <= now:
                del self._counts[name]
        self._sweep_at = max(SWEEP_THRESHOLD, 2 * len(self._counts))


class _SubjectUsage(msgspec.Struct):
    """What a subject has used; `runs` are those under way, with the time at which they do not count
    any more."""

    requests_until: float = 0.0
    tokens_until: float = 0.0
    runs: dict[str, float] = {}

    def forget_runs(self, now: float) -> None:
        """Drops the runs that nobody ended in time."""
        for run_id in [run_id for run_id, until in self.runs.items() if until <= now]:
            del self.runs[run_id]


class _LocalAdmission(Admission):
    def __init__(
        self, limits: InProcessLimiter, ask: AdmissionRequest, headers: Mapping[str, str]
    ) -> None:
        self._limits = limits
        self._ask = ask
        self._ended = False
        self.headers = headers

    async def settle(self, tokens: int | None) -> None:
        """Takes effect at once."""
        if not self._ended:
            self._ended = True
            self._limits.end(self._ask, tokens)
