"""Scores of a run, and what may honestly be said of the difference between two."""

import random
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Literal

import msgspec

from ai_agent_service.evaluation.results import EPSILON, Result, group_by_case
from ai_agent_service.evaluation.run_folder import EvaluationRun

MIN_CASES = 6
"""With fewer cases, even if all went the same way, that could be chance: 2 * 0.5 ** 5 is more than
0.05."""

MAX_EXACT = 12
"""Cases that changed up to which every combination of signs is tried."""

RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 20_240_229

Verdict = Literal["better", "worse", "within noise"]


class Change(msgspec.Struct, frozen=True):
    """A case whose score is another one now."""

    id: str
    before: float
    after: float

    @property
    def is_worse(self) -> bool:
        """Whether the score went down."""
        return self.after < self.before


class Comparison(msgspec.Struct, frozen=True):
    """How one run differs from another, over the cases that both have: with 95 % confidence by
    `low` to `high`.

    `chance` is the share of runs that would differ as much if nothing had changed. `only_before`,
    `only_after`, `rewritten` and `not_judged` are cases that were left out of it.
    """

    cases: int
    before: float
    after: float
    low: float
    high: float
    changed: tuple[Change, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    rewritten: tuple[str, ...]
    not_judged: tuple[str, ...] = ()
    chance: float = 0.0

    @property
    def difference(self) -> float:
        """Positive where the later run is better."""
        return self.after - self.before

    @property
    def verdict(self) -> Verdict:
        """What may be said: a percentile interval alone is too sure of itself where few cases
        changed."""
        if self.cases < MIN_CASES or self._may_be_chance:
            return "within noise"
        if self.low > EPSILON:
            return "better"
        return "worse" if self.high < -EPSILON else "within noise"

    @property
    def doubt(self) -> str:
        """Why the difference is within noise though 0 is not in its interval; empty where that is
        not so."""
        if (
            self.cases < MIN_CASES
            or not self._may_be_chance
            or (self.low <= EPSILON and self.high >= -EPSILON)
        ):
            return ""
        return f"so few cases changed that chance alone does as much in {self.chance:.0%} of runs"

    @property
    def certainty(self) -> str:
        """What may be said of the difference, to follow the scores in a sentence."""
        if self.cases < MIN_CASES:
            return f"; fewer than {MIN_CASES} cases tell nothing for certain"
        doubt = f"; {self.doubt}" if self.doubt else ""
        between = f"95 % between {self.low:+.3f} and {self.high:+.3f}"
        return f", difference {self.difference:+.3f} ({between}){doubt}"

    @property
    def _may_be_chance(self) -> bool:
        return self.chance > 1 - CONFIDENCE + EPSILON


def score_cases(results: Iterable[Result]) -> dict[str, float]:
    """Each case's score, the mean of its attempts."""
    return {
        name: statistics.fmean(attempt.score for attempt in attempts)
        for name, attempts in group_by_case(results).items()
    }


def compute_score(results: Iterable[Result]) -> float:
    """The mean of the results' scores by their weights; 0 for none."""
    found = list(results)
    return (
        statistics.fmean([each.score for each in found], [each.weight for each in found])
        if found
        else 0.0
    )


def score_attempts(results: Iterable[Result]) -> tuple[float, ...]:
    """The overall score of each attempt at the dataset."""
    found: dict[int, list[Result]] = defaultdict(list)
    for result in results:
        found[result.attempt].append(result)
    return tuple(compute_score(found[attempt]) for attempt in sorted(found))


def score_metrics(results: Iterable[Result]) -> dict[str, float]:
    """The mean of all checks of each metric, by the weights of their cases."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for result in results:
        for check in result.checks:
            found[check.metric].append((check.score, result.weight))
    return {
        name: statistics.fmean(*zip(*pairs, strict=True)) for name, pairs in sorted(found.items())
    }


def compute_confidence(results: Sequence[Result]) -> tuple[float, float] | None:
    """Where the overall score lies with 95 % confidence, had the cases been drawn from many such;
    None where they cannot tell.

    That is with fewer than MIN_CASES, or if all have one score: then nothing is known of how far
    others would be from it.
    """
    scores = score_cases(results)
    weights = {result.id: result.weight for result in results}
    if len(scores) < MIN_CASES or max(scores.values()) - min(scores.values()) < EPSILON:
        return None
    return compute_interval([(score, weights[name]) for name, score in scores.items()])


def compare_runs(before: EvaluationRun, after: EvaluationRun) -> Comparison:
    """`after` against `before`, without the cases that were rewritten in between."""
    old, new = before.read_cases(), after.read_cases()
    rewritten = [
        name
        for name in old
        if name in new and _select_compared(old[name]) != _select_compared(new[name])
    ]
    return compare(before.read_results(), after.read_results(), rewritten)


def compare(
    before: Sequence[Result], after: Sequence[Result], rewritten: Iterable[str] = ()
) -> Comparison:
    """`after` against `before`, paired by case; those that are `rewritten`, or were not judged,
    cannot be compared.

    The same runs always give the same.
    """
    left, right = score_cases(before), score_cases(after)
    other = set(rewritten)
    open_ = {result.id for result in (*before, *after) if result.not_judged} - other
    both = [name for name in left if name in right and name not in other | open_]
    weights = {result.id: result.weight for result in after}
    pairs = [(right[name] - left[name], weights[name]) for name in both]
    low, high = compute_interval(pairs)
    return Comparison(
        cases=len(both),
        before=_compute_mean(left, both, weights),
        after=_compute_mean(right, both, weights),
        low=low,
        high=high,
        changed=tuple(
            Change(name, left[name], right[name])
            for name in both
            if abs(left[name] - right[name]) > EPSILON
        ),
        only_before=tuple(name for name in left if name not in right),
        only_after=tuple(name for name in right if name not in left),
        rewritten=tuple(name for name in left if name in right and name in other),
        not_judged=tuple(name for name in left if name in right and name in open_),
        chance=compute_chance(pairs),
    )


def compute_interval(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Where the weighted mean of differences lies with 95 % confidence: the percentiles of its
    bootstrap, which draws cases anew.

    `pairs` are a difference and its weight each. Source: Efron and Tibshirani, An Introduction to
    the Bootstrap, chapter 13.
    """
    if not any(abs(difference) > EPSILON for difference, _ in pairs):
        return 0.0, 0.0
    drawing = random.Random(SEED)  # noqa: S311 - no secret is made of it
    resamples = max(1_000, min(RESAMPLES, 2_000_000 // len(pairs)))
    means = sorted(
        _compute_weighted_mean(drawing.choices(pairs, k=len(pairs))) for _ in range(resamples)
    )
    cut = int(resamples * (1 - CONFIDENCE) / 2)
    return means[cut], means[-1 - cut]


def compute_chance(pairs: Sequence[tuple[float, float]]) -> float:
    """How often the weighted mean is as far from 0, either way, if each case may as well have
    changed the other way.

    `pairs` are as for `interval`. Source: Efron and Tibshirani, An Introduction to the Bootstrap,
    chapter 15, permutation tests.
    """
    changes = [difference * weight for difference, weight in pairs if abs(difference) > EPSILON]
    least = abs(sum(changes)) * (1 - EPSILON)
    if len(changes) <= MAX_EXACT:
        sums = [
            sum(change * sign for change, sign in zip(changes, signs, strict=True))
            for signs in product((1, -1), repeat=len(changes))
        ]
        return sum(abs(each) >= least for each in sums) / len(sums)
    drawing = random.Random(SEED)  # noqa: S311 - no secret is made of it
    resamples = max(1_000, min(RESAMPLES, 2_000_000 // len(changes)))
    reached = sum(
        abs(sum(each if drawing.random() < 0.5 else -each for each in changes)) >= least
        for _ in range(resamples)
    )
    return (reached + 1) / (resamples + 1)


def _select_compared(case: Mapping[str, object]) -> dict[str, object]:
    """What has to be the same for two results of a case to be compared."""
    return {
        name: value
        for name, value in case.items()
        if name not in ("tags", "source", "tool_results", "agent")
    }


def _compute_weighted_mean(pairs: Sequence[tuple[float, float]]) -> float:
    return sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)


def _compute_mean(
    scores: Mapping[str, float], names: Sequence[str], weights: Mapping[str, float]
) -> float:
    return (
        _compute_weighted_mean([(scores[name], weights[name]) for name in names]) if names else 0.0
    )
