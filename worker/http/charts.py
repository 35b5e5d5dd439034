"""The last hour as pictures: pure geometry, drawn by the page as SVG.

A picture is as wide as its place: it is drawn in units of its own and stretched, while its numbers and times stand
beside it as text, which is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from worker.http import wording

if TYPE_CHECKING:
    from collections.abc import Sequence

# Units of a picture: so many for a minute and for its height.
STEP, HEIGHT = 10.0, 100.0
# A microsecond, and anything less, is drawn as nothing.
SMALLEST = 1e-6
# What of a minute a bar covers.
BAR = 0.7


@dataclass(frozen=True, slots=True)
class Series:
    """One line or row of bars: its name, its style, its path, and its value for the whole hour."""

    name: str
    style: str
    path: str
    figure: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture, what it says in words, and the same as a table."""

    slug: str
    title: str
    description: str
    top: str
    middle: str
    times: tuple[str, str, str]
    series: list[Series]
    columns: list[str]
    rows: list[list[str]]
    width: float
    is_empty: bool
    note: str | None = field(default=None)


def ceiling(value: float) -> float:
    """The next number above that reads well on an axis, also when halved."""
    if value < SMALLEST:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        (step * power for step in (1, 2, 3, 4, 5, 6, 8, 10) if step * power >= value * 0.9999), 10 * power
    )


def bars(values: Sequence[float], top: float) -> str:
    """Draw a bar for each value, from the bottom."""
    parts = []
    for position, value in enumerate(values):
        if value > 0:
            left = position * STEP + STEP * (1 - BAR) / 2
            parts.append(f"M{left:.1f} {HEIGHT:.0f}V{_y(value, top):.1f}h{STEP * BAR:.1f}V{HEIGHT:.0f}z")
    return "".join(parts)


def line(values: Sequence[float | None], top: float) -> str:
    """Draw a line through the middle of each minute; where there is no value it breaks off."""
    parts = []
    drawing = False
    for position, value in enumerate(values):
        if value is None:
            drawing = False
            continue
        x = (position + 0.5) * STEP
        alone = not drawing and (position + 1 == len(values) or values[position + 1] is None)
        parts.append(f"{'L' if drawing else 'M'}{x:.1f} {_y(value, top):.1f}" + ("h.1" if alone else ""))
        drawing = True
    return "".join(parts)


def _y(value: float, top: float) -> float:
    return HEIGHT - min(1.0, value / top) * HEIGHT


def throughput(hour: dict[str, Any]) -> Chart:
    """Answers that came and scores that were written, a minute."""
    minutes = hour["minutes"]
    answers = [minute["answers"] for minute in minutes]
    scores = [minute["scores"] for minute in minutes]
    most = max([*answers, *scores])
    # Even, so that half of it is a whole number too.
    top = 2 * math.ceil(ceiling(max(most, 4)) / 2)
    whole = hour["hour"]
    return Chart(
        slug="throughput",
        title="Throughput",
        description=f"A minute at a time: {wording.count(whole['answers'])} answers came and {wording.count(whole['scores'])} scores were "
        f"written within the last hour; at most {wording.count(max(answers))} answers and "
        f"{wording.count(max(scores))} scores in one minute.",
        top=f"{wording.count(top)}/min",
        middle=wording.count(top / 2),
        times=_times(minutes),
        series=[
            Series("scores", "bars", bars(scores, top), f"{wording.count(whole['scores'])}/h"),
            # Without the minute that is not over: it would look as if nobody came any more.
            Series(
                "answers",
                "line strong",
                line([*answers[:-1], None], top),
                f"{wording.count(whole['answers'])}/h",
            ),
        ],
        columns=["from, UTC", "answers", "scores"],
        rows=[
            [wording.clock(each["starts_at"]), wording.count(each["answers"]), wording.count(each["scores"])]
            for each in minutes
        ],
        width=len(minutes) * STEP,
        is_empty=not most,
        note="Busy minutes are counted by their ids." if hour["is_estimated"] else None,
    )


def times(hour: dict[str, Any], name: str, title: str, meaning: str) -> Chart:
    """How long something took, as three percentiles of each minute."""
    minutes = hour["minutes"]
    found = [minute[name] or {} for minute in minutes]
    whole = hour["hour"][name] or {}
    # The highest percentile of one minute may be one slow answer; the picture is for the others.
    highest = max([*(each.get("p95") or 0.0 for each in found), (whole.get("p99") or 0.0)])
    top = ceiling(highest)
    ranks = ("p99", "p95", "p50")
    said = ", ".join(f"{rank} {wording.duration(whole.get(rank))}" for rank in reversed(ranks))
    return Chart(
        slug=name.removesuffix("_seconds"),
        title=title,
        description=f"{meaning} Over the last hour: {said}."
        if whole
        else f"{meaning} Nothing within the last hour.",
        top=wording.duration(top),
        middle=wording.duration(top / 2),
        times=_times(minutes),
        series=[
            Series(
                rank,
                f"line {style}",
                line([each.get(rank) for each in found], top),
                wording.duration(whole.get(rank)),
            )
            for rank, style in zip(ranks, ("faint", "medium", "strong"), strict=True)
        ],
        columns=["from, UTC", "p50", "p95", "p99"],
        rows=[
            [
                wording.clock(each["starts_at"]),
                *(wording.duration((each[name] or {}).get(rank)) for rank in reversed(ranks)),
            ]
            for each in minutes
        ],
        width=len(minutes) * STEP,
        is_empty=not whole,
    )


@dataclass(frozen=True, slots=True)
class Spread:
    """How the scores of one question spread over its scale."""

    question: str
    module: str
    looked_at: str
    mean: str
    scale_min: str
    scale_max: str
    description: str
    path: str
    mean_at: float
    width: float


def spread(question: dict[str, Any]) -> Spread:
    """Draw a histogram, as high as its highest column."""
    bins, low, high = question["bins"], question["scale_min"], question["scale_max"]
    part = (high - low) / len(bins)
    told = "; ".join(
        f"{wording.decimal(low + number * part)} to {wording.decimal(low + (number + 1) * part)}: {wording.count(found)}"
        for number, found in enumerate(bins)
        if found
    )
    return Spread(
        question=question["question_id"],
        module=question["module_slug"],
        looked_at=wording.count(question["looked_at"]),
        mean=wording.decimal(question["mean"]),
        scale_min=wording.decimal(low),
        scale_max=wording.decimal(high),
        description=f"Scores of {question['module_slug']} / {question['question_id']}: {told}.",
        path=bars(bins, max(bins)),
        mean_at=min(1.0, max(0.0, (question["mean"] - low) / (high - low))) * len(bins) * STEP,
        width=len(bins) * STEP,
    )


def _times(minutes: Sequence[dict[str, Any]]) -> tuple[str, str, str]:
    first, middle, last = (minutes[index]["starts_at"] for index in (0, len(minutes) // 2, -1))
    return wording.clock(first), wording.clock(middle), wording.clock(last)
