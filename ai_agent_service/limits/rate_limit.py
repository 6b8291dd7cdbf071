"""The rule of limits: whether a run fits within what its key and the user behind it may ask, and
what is left then.

What may be asked a minute is a bucket that is kept as one number, `until`: the time at which all
that was asked will have been earned again. What costs `c` of `n` a minute moves it by `60 * c / n`
seconds and fits if it is a minute away then at most. So `n` fit at once into a bucket that is full,
and one more each `60 / n` seconds after that. Source: the virtual scheduling algorithm (GCRA),
ITU-T I.371.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from ai_agent_service.auth.principal import Limits, Principal
from ai_agent_service.core.errors import RateLimitError
from ai_agent_service.core.text import replace_unstorable

MINUTE = 60.0
TOLERANCE = 0.01
"""The part of one request or token by which a bucket may be too full: sums of times since 1970 are
not exact."""

CLOCK_TOLERANCE = 1.0
"""Seconds by which a clock may go back without being taken for one that was set back."""

MAX_USER_ID_LENGTH = 255
"""Characters of a user's id that name a subject; of a longer one its digest does."""

PARALLEL_RETRY_SECONDS = 1.0
"""When to try again where a run has to end first, which nobody can foretell."""


class Subject(msgspec.Struct, frozen=True):
    """What is limited."""

    name: str
    whose: Literal["key", "user"]
    limits: Limits

    def count_reserved(self, tokens: int) -> int:
        """What of `tokens` is charged before the run: a run that may take more than a minute's
        waits for a full bucket."""
        return 0 if self.limits.tokens is None else min(tokens, self.limits.tokens)


class AdmissionRequest(msgspec.Struct, frozen=True):
    """A run that is to be admitted: it may take `tokens`, and `seconds` at most."""

    subjects: tuple[Subject, ...]
    run_id: str
    tokens: int
    seconds: float


class Level(msgspec.Struct, frozen=True):
    """How much a subject has used: until when its requests and tokens will have been earned again,
    and its runs under way."""

    requests_until: float
    tokens_until: float
    running: int


def rebase_level(level: Level, now: float) -> Level:
    """Return the level by a clock that may have been set back since it was charged, as no charge
    takes `requests_until` further than a minute away."""
    ahead = level.requests_until - now - MINUTE
    if ahead <= CLOCK_TOLERANCE:
        return level
    return msgspec.structs.replace(
        level, requests_until=now + MINUTE, tokens_until=level.tokens_until - ahead
    )


def list_subjects(principal: Principal, user: str) -> tuple[Subject, ...]:
    """What is limited of a caller: the key, and the user behind it."""
    key = principal.key
    found: tuple[Subject, ...] = ()
    if key.limits:
        found = (Subject(f"key:{key.key_id}", "key", key.limits),)
    if key.user_limits:
        found = (
            *found,
            Subject(f"key:{key.key_id}|user:{_shorten_user_id(user)}", "user", key.user_limits),
        )
    return found


def decide(ask: AdmissionRequest, levels: Sequence[Level], now: float) -> list[Level]:
    """The levels of the ask's subjects once it is admitted. Raises RateLimitError if one of them
    refuses, with the longest wait."""
    after: list[Level] = []
    refusals: list[tuple[float, str]] = []
    for subject, level in zip(ask.subjects, levels, strict=True):
        limits, whose = subject.limits, subject.whose
        requests, tokens = max(level.requests_until, now), level.tokens_until
        if (rate := limits.requests) is not None:
            requests = _charge(requests, 1, rate, now)
            if wait := _compute_wait(requests, rate, now):
                problem = f"This {whose} has used up its limit of {rate} requests a minute."
                refusals.append((wait, problem))
        if (rate := limits.tokens) is not None:
            tokens = _charge(tokens, ask.tokens, rate, now)
            if wait := _compute_wait(tokens, rate, now):
                left = _count_remaining(level.tokens_until, rate, now)
                problem = (
                    f"This request may take {ask.tokens} tokens, and this {whose} has {left} left"
                    f" of its {rate} a minute."
                )
                refusals.append((wait, problem))
        running, most = level.running, limits.parallel
        if most is not None and running >= most:
            problem = f"This {whose} has {running} parallel runs under way and may have {most}."
            refusals.append((0.0, problem))
        after.append(Level(requests, tokens, running + 1))
    if refusals:
        wait, problem = max(refusals)
        wait = max(wait, PARALLEL_RETRY_SECONDS)
        seconds = math.ceil(wait)
        raise RateLimitError(
            f"{problem} Try again in {seconds} {'second' if seconds == 1 else 'seconds'}.",
            retry_after=wait,
            headers=build_headers(ask.subjects, levels, now),
        )
    return after


def settle_level(level: Level, subject: Subject, *, reserved: int, used: int, now: float) -> Level:
    """The level once a run has ended that used so many of the tokens reserved for it.

    What is given back may be asked for at once, though a part of it was earned again while the run
    went on. So within one minute more than a minute's tokens may be used, by what was reserved
    before it and was not used; in the long run never more than are earned.
    """
    rate = subject.limits.tokens
    if rate is None or rate < 1:
        return level
    change = (used - reserved) * MINUTE / rate
    until = max(level.tokens_until, now) if change > 0 else level.tokens_until
    return msgspec.structs.replace(level, tokens_until=until + change)


def build_headers(
    subjects: Sequence[Subject], levels: Sequence[Level], now: float
) -> Mapping[str, str]:
    """What is left of requests and tokens, in OpenAI's headers; of each what the tightest subject
    has."""
    pairs = list(zip(subjects, levels, strict=True))
    requests = [(level.requests_until, subject.limits.requests) for subject, level in pairs]
    tokens = [(level.tokens_until, subject.limits.tokens) for subject, level in pairs]
    headers = {}
    for name, used in (("requests", requests), ("tokens", tokens)):
        left = [
            (_count_remaining(until, limit, now), limit, until)
            for until, limit in used
            if limit is not None
        ]
        if left:
            remaining, limit, until = min(left)
            headers[f"x-ratelimit-limit-{name}"] = str(limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(remaining)
            headers[f"x-ratelimit-reset-{name}"] = format_duration(until - now)
    return headers


def format_duration(seconds: float) -> str:
    """Seconds as OpenAI writes them: `0s`, `120ms`, `1.2s`, `6m0s`, `1h0m0s`; rounded up to
    milliseconds."""
    milliseconds = math.ceil(round(seconds * 1000, 3))
    if milliseconds <= 0:
        return "0s"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    words = f"{rest / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{words}"
    return f"{minutes}m{words}" if minutes else words


def _charge(until: float, cost: int, rate: int, now: float) -> float:
    if rate < 1:
        return now + 2 * MINUTE  # nothing may be asked
    return max(until, now) + min(cost, rate) * MINUTE / rate


def _compute_wait(until: float, rate: int, now: float) -> float:
    """Seconds until what led to `until` fits; 0 if it does."""
    wait = until - now - MINUTE
    return wait if wait * max(rate, 1) > TOLERANCE * MINUTE else 0.0


def _count_remaining(until: float, rate: int, now: float) -> int:
    return max(0, min(rate, math.floor((now + MINUTE - until) * rate / MINUTE + TOLERANCE)))


def _shorten_user_id(user: str) -> str:
    if len(user) <= MAX_USER_ID_LENGTH:
        return replace_unstorable(user)
    return hashlib.blake2b(user.encode(errors="surrogatepass"), digest_size=16).hexdigest()
