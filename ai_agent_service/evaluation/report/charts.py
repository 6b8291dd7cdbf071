"""Computes what the charts of a report show; macros.html draws them."""

import math
import statistics
from collections.abc import Iterable, Sequence

import msgspec

MAX_BINS = 12
MAX_MARKS = 40
"""Marks of attempts on one bar; more could not be told apart."""

_SCORES = 10
"""Bins of scores below 1; a score of 1 has one of its own."""

_SCALE_LEFT = 24.0
_SCALE_WIDTH = 592.0


class Bin(msgspec.Struct, frozen=True):
    """The `count` of values from `low` to below `high`, or equal to both where they are equal."""

    low: float
    high: float
    count: int

    @property
    def label(self) -> str:
        """The range in words."""
        return f"{self.low:g}" if self.low == self.high else f"{self.low:g} to below {self.high:g}"


class Histogram(msgspec.Struct, frozen=True):
    """The distribution of `values`, each of which belongs to one `thing`."""

    title: str
    thing: str
    values: Sequence[float]
    bins: Sequence[Bin]
    unit: str = ""

    @property
    def caption(self) -> str:
        """The range and the median in a sentence."""
        low, high, unit = min(self.values), max(self.values), self.unit
        middle = f"{statistics.median(self.values):.4g}{unit}"
        if low == high:
            return f"All are {middle}."
        return f"From {low:.4g}{unit} to {high:.4g}{unit}, median {middle}."


class Scale(msgspec.Struct, frozen=True):
    """A line from `low` to `high` with a `value`, its confidence `band`, and `dots` of which the
    value is the mean."""

    title: str
    low: float
    high: float
    value: float
    band: tuple[float, float] | None = None
    dots: Sequence[float] = ()

    @property
    def ticks(self) -> list[float]:
        """The five labelled values."""
        return [self.low + (self.high - self.low) * step / 4 for step in range(5)]

    def x(self, number: float) -> float:
        """The horizontal place of `number`."""
        share = (min(max(number, self.low), self.high) - self.low) / (self.high - self.low)
        return round(_SCALE_LEFT + share * _SCALE_WIDTH, 1)


def clamp(score: float) -> float:
    """`score`, not below 0 or above 1."""
    return min(1.0, max(0.0, score))


def select_marks(scores: Iterable[float]) -> list[float]:
    """Return the first MAX_MARKS of the different `scores`, in ascending order."""
    return sorted(set(scores))[:MAX_MARKS]


def bin_scores(scores: Iterable[float]) -> list[Bin]:
    """Count scores from 0 to 1 by tenths, and those of 1, the best, separately."""
    counts = [0] * (_SCORES + 1)
    for score in scores:
        counts[min(_SCORES, int(clamp(score) * _SCORES + 1e-9))] += 1
    return [
        *(Bin(n / _SCORES, (n + 1) / _SCORES, counts[n]) for n in range(_SCORES)),
        Bin(1, 1, counts[_SCORES]),
    ]


def bin_values(values: Sequence[float]) -> list[Bin]:
    """Values from 0 in at most MAX_BINS bins, whose width is 1, 2 or 5 of a power of ten."""
    low, high = min(values), max(values)
    step = 10.0 ** math.floor(math.log10((high - low) / MAX_BINS or high / MAX_BINS or 1.0))
    widths = (step * factor for factor in (1, 2, 5, 10, 20))
    wide = next(
        width for width in widths if math.floor(high / width) - math.floor(low / width) < MAX_BINS
    )
    first, last = math.floor(low / wide), math.floor(high / wide)
    counts = [0] * (last - first + 1)
    for value in values:
        counts[math.floor(value / wide) - first] += 1
    return [
        Bin(round((first + n) * wide, 9), round((first + n + 1) * wide, 9), count)
        for n, count in enumerate(counts)
    ]
