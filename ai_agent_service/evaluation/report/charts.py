"""The pictures of a report, as SVG whose colours the page's style gives."""

import math
from collections.abc import Iterable, Sequence

import msgspec

from ai_agent_service.evaluation.report.html import Element, tag

MAX_BINS = 12
MAX_MARKS = 40
"""Marks of attempts on one bar; more could not be told apart."""

_SCORES = 10
"""Bins of scores below 1; a score of 1 has one of its own."""


class Bin(msgspec.Struct, frozen=True):
    """How many values there are from `low` to below `high`; where the two are one, those that are
    just that."""

    low: float
    high: float
    count: int


def draw_bar(score: float, marks: Iterable[float] = ()) -> Element:
    """A score from 0 to 1 as a bar, with a mark for each of several attempts. It stands beside the
    number, which says the same."""
    places = sorted({round(mark, 2) for mark in marks})[:MAX_MARKS]
    return tag(
        "svg",
        tag("rect", width=100, height=10, rx=2, class_="track"),
        tag("rect", width=round(_clamp(score) * 100, 1), height=10, rx=2, class_="fill")
        if score > 0
        else None,
        *(
            tag("rect", x=round(place * 97, 1), width=3, height=10, class_="mark")
            for place in places
        ),
        viewBox="0 0 100 10",
        preserveAspectRatio="none",
        class_="bar",
        aria_hidden="true",
    )


def draw_change(before: float, after: float) -> Element:
    """From one score to another; stands beside the numbers."""
    x1, x2 = (6 + _clamp(score) * 108 for score in (before, after))
    return tag(
        "svg",
        tag("line", x1=6, x2=114, y1=8, y2=8, class_="axis"),
        tag("line", x1=x1, x2=x2, y1=8, y2=8, class_="step"),
        tag("circle", cx=x1, cy=8, r=3.5, class_="was"),
        tag("circle", cx=x2, cy=8, r=4.5, class_="is"),
        viewBox="0 0 120 16",
        class_=f"change {'up' if after > before else 'down'}",
        aria_hidden="true",
    )


def draw_scale(
    title: str,
    description: str,
    *,
    low: float,
    high: float,
    value: float,
    band: tuple[float, float] | None,
    dots: Sequence[float],
) -> Element:
    """`value` between `low` and `high` on a line, the `band` in which it lies for certain, and
    `dots` of what it is the mean of."""
    width, left, right = 640.0, 24.0, 616.0

    def to_x(number: float) -> float:
        return round(left + (min(max(number, low), high) - low) / (high - low) * (right - left), 1)

    ticks = [low + (high - low) * step / 4 for step in range(5)]
    signed = "+" if low < 0 else ""
    return _draw_picture(
        title,
        description,
        width,
        68,
        tag("line", x1=left, x2=right, y1=30, y2=30, class_="axis"),
        *(tag("line", x1=to_x(tick), x2=to_x(tick), y1=30, y2=36, class_="axis") for tick in ticks),
        *(
            tag(
                "text",
                f"{tick:{signed}.2f}" if tick else "0",
                x=to_x(tick),
                y=60,
                text_anchor="middle",
            )
            for tick in ticks
        ),
        tag(
            "rect",
            x=to_x(band[0]),
            y=22,
            width=max(1.0, to_x(band[1]) - to_x(band[0])),
            height=16,
            rx=3,
            class_="band",
        )
        if band
        else None,
        tag("line", x1=to_x(0), x2=to_x(0), y1=12, y2=42, class_="zero") if low < 0 else None,
        *(
            tag("circle", cx=to_x(dot), cy=30, r=4, class_="was")
            for dot in sorted(set(dots))[:MAX_MARKS]
        ),
        tag("line", x1=to_x(value), x2=to_x(value), y1=16, y2=44, class_="value"),
    )


def draw_histogram(title: str, description: str, bins: Sequence[Bin]) -> Element:
    """How often values are in each of `bins`."""
    width, height, left, base, top = 340.0, 170.0, 12.0, 142.0, 22.0
    each = (width - 2 * left) / len(bins)
    most = max(found.count for found in bins)
    shapes: list[Element] = [tag("line", x1=left, x2=width - left, y1=base, y2=base, class_="axis")]
    for place, found in enumerate(bins):
        tall = found.count / most * (base - top)
        x = left + place * each
        shown = tag("title", f"{format_label(found)}: {found.count}")
        shapes.append(
            tag(
                "rect",
                shown,
                x=x + 1,
                y=round(base - tall, 1),
                width=each - 2,
                height=round(tall, 1),
                rx=2,
                class_="fill",
            )
        )
        if found.count:
            shapes.append(
                tag(
                    "text",
                    f"{found.count}",
                    x=x + each / 2,
                    y=round(base - tall - 5, 1),
                    text_anchor="middle",
                )
            )
    for place in sorted({0, len(bins) // 2, len(bins) - 1}):
        shapes.append(
            tag(
                "text",
                f"{bins[place].low:g}",
                x=left + (place + 0.5) * each,
                y=base + 18,
                text_anchor="middle",
                class_="tick",
            )
        )
    return _draw_picture(title, description, width, height, *shapes)


def format_label(found: Bin) -> str:
    """What is in a bin, in words."""
    return f"{found.low:g}" if found.low == found.high else f"{found.low:g} to below {found.high:g}"


def bin_scores(scores: Iterable[float]) -> list[Bin]:
    """Scores from 0 to 1 by tenths; those that are 1 apart, for they are what is hoped for."""
    counts = [0] * (_SCORES + 1)
    for score in scores:
        counts[min(_SCORES, int(_clamp(score) * _SCORES + 1e-9))] += 1
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


def _clamp(score: float) -> float:
    return min(1.0, max(0.0, score))


def _draw_picture(
    title: str, description: str, width: float, height: float, *shapes: Element | None
) -> Element:
    return tag(
        "svg",
        tag("title", title),
        tag("desc", description),
        *shapes,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        class_="picture",
    )
