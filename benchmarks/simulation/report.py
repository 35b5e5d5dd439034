"""A run in words and figures: how the backlog went, what was full, how it compares."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.figures import Figures, quantile
from benchmarks.simulation.permits import Provider

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.simulation.system import Run, Sample

ROWS = 12
BAR_WIDTH = 30
# What was full is asked of the time from so long before the deadline to the last score.
BUSY_BEFORE_SECONDS = 600.0
# Where nothing is fuller than this, nothing is the bottleneck. Not more: the last calls of a run use nothing fully.
FULL_SHARE = 0.85
# Beyond, a duration is shown in minutes.
SECONDS_UP_TO = 120


@dataclass(frozen=True, slots=True)
class Use:
    """Which share of each resource was used in the busiest time."""

    provider: float
    slots: float
    database: float
    event_loops: float

    def by_name(self) -> dict[str, float]:
        """The shares, the fullest first."""
        shares = {
            "the provider's limit": self.provider,
            "slots": self.slots,
            "PostgreSQL": self.database,
            "event loops": self.event_loops,
        }
        return dict(sorted(shares.items(), key=lambda item: -item[1]))


def clock(seconds: float) -> str:
    """A time relative to the deadline, as people write it."""
    sign, whole = ("-" if seconds < 0 else "+"), round(abs(seconds))
    return f"{sign}{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def span(seconds: float) -> str:
    """A duration, in the unit that suits it."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < SECONDS_UP_TO else f"{seconds / 60:.1f} min"


def earliest_drain(arrived_at: Sequence[float], per_minute: float) -> float:
    """When the last answer can have been begun at the earliest, if the provider takes so many a minute, evenly.

    The largest of ``arrival i + (answers from i on) / rate``: from some moment on the provider is never idle
    (Lindley's recursion for a queue with a constant service time, written out).
    """
    rate, number = per_minute / 60, len(arrived_at)
    return max((at + (number - i) / rate for i, at in enumerate(arrived_at)), default=0.0)


def use(run: Run) -> Use:
    """What was used of each resource from ten minutes before the deadline (not before anything came) to the last score."""
    scenario = run.scenario
    times = [sample.at_seconds for sample in run.samples]
    begin = max(scenario.window_seconds - BUSY_BEFORE_SECONDS, run.arrived_at[0])
    first = run.samples[bisect_left(times, begin)]
    last = run.samples[-1]
    seconds = max(last.at_seconds - first.at_seconds, 1e-9)
    between = [sample for sample in run.samples if first.at_seconds <= sample.at_seconds < last.at_seconds]
    provider = Provider(scenario.requests_per_minute)
    allowed = provider.amount * seconds / provider.window_seconds
    slots = scenario.workers * scenario.slots
    return Use(
        provider=(last.permits - first.permits) / allowed if provider.limited else 0.0,
        slots=sum(sample.scoring for sample in between) / max(1, len(between)) / slots,
        database=(last.database_seconds - first.database_seconds) / seconds / scenario.database_parallel,
        event_loops=(last.loop_seconds - first.loop_seconds) / seconds / scenario.workers,
    )


def bottleneck(run: Run) -> str:
    """What is full, in one sentence with the numbers."""
    shares = use(run).by_name()
    name, share = next(iter(shares.items()))
    others = ", ".join(f"{other} {part:.0%}" for other, part in list(shares.items())[1:])
    verb = "Bottleneck" if share >= FULL_SHARE else "Nothing is full; fullest"
    return f"{verb}: {name}, {share:.0%} used ({others})."


def _rows(run: Run) -> Iterator[Sample]:
    """A dozen moments from well before the backlog to its end."""
    samples, deadline = run.samples, run.scenario.window_seconds
    times = [sample.at_seconds for sample in samples]
    begin = max(0.0, deadline - max(1800.0, run.drained_at - deadline))
    shown: set[int] = set()
    for row in range(ROWS):
        at = begin + (run.drained_at - begin) * row / (ROWS - 1)
        shown.add(min(bisect_left(times, at), len(samples) - 1))
    yield from (samples[index] for index in sorted(shown))


def timeline(run: Run) -> Figures:
    """The backlog over time, with a bar."""
    deadline = run.scenario.window_seconds
    most = max(1, *(sample.backlog for sample in run.samples))
    figures = Figures(
        "Backlog over time (0:00:00 is the deadline)",
        ("time", "submitted", "scored", "backlog", "with the model", "oldest waits", "backlog, to scale"),
        [],
    )
    for sample in _rows(run):
        figures.rows.append(
            (
                clock(sample.at_seconds - deadline),
                f"{sample.arrived:,}",
                f"{sample.scored:,}",
                f"{sample.backlog:,}",
                f"{sample.scoring:,}",
                span(sample.waiting_seconds),
                ("#" * round(sample.backlog / most * BAR_WIDTH)).ljust(BAR_WIDTH, "·"),
            )
        )
    return figures


def summary(run: Run) -> list[str]:
    """What a person wants to know of a run, one sentence each."""
    scenario, deadline = run.scenario, run.scenario.window_seconds
    waits = run.waits()
    peak = max(run.samples, key=lambda sample: sample.backlog)
    oldest = max(run.samples, key=lambda sample: sample.waiting_seconds)
    statements = ", ".join(f"{number:,} {kind}" for kind, number in sorted(run.statements.items()))
    waited = (
        f"p50 {span(quantile(waits, 0.5))}, p95 {span(quantile(waits, 0.95))}, longest {span(max(waits))}"
    )
    lines = [
        f"Peak backlog: {peak.backlog:,} answers at {clock(peak.at_seconds - deadline)}.",
        f"Oldest that no worker has: {span(oldest.waiting_seconds)} at {clock(oldest.at_seconds - deadline)}.",
        f"Last score {span(run.drained_at - deadline)} after the deadline. Wait for a worker: {waited}.",
        f"Statements: {statements}; at most {run.longest_queue:,} messages unread in Redis.",
        bottleneck(run),
    ]
    if limit := scenario.requests_per_minute:
        alone = earliest_drain(run.arrived_at, limit) - deadline
        lines.append(
            f"The provider alone explains it: {len(waits):,} answers at {limit:,} a minute take "
            f"{len(waits) / limit:.0f} min; as they came, the last could be begun {span(alone)} after the deadline "
            f"at the earliest."
        )
    return lines


def compared(runs: Sequence[tuple[str, Run]]) -> Figures:
    """What-ifs side by side."""
    figures = Figures(
        "What if",
        ("case", "drained after", "peak backlog", "wait p50", "p95", "longest", "fullest"),
        [],
    )
    for name, run in runs:
        waits = run.waits()
        fullest, share = next(iter(use(run).by_name().items()))
        figures.rows.append(
            (
                name,
                span(run.drained_at - run.scenario.window_seconds),
                f"{max(sample.backlog for sample in run.samples):,}",
                span(quantile(waits, 0.5)),
                span(quantile(waits, 0.95)),
                span(max(waits)),
                f"{fullest} {share:.0%}",
            )
        )
    return figures
