"""What is simulated: how many answers, when they come, who scores them, and what the provider allows."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal

Law = Literal["hyperbolic", "exponential", "at once"]
HOUR_SECONDS = 3600.0
# Halvings until the law's parameter is found: more than a float can tell apart.
_HALVINGS = 200


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run. The same scenario gives the same run, to the last microsecond.

    Args:
        answers: One a student.
        window_seconds: From the first moment at which students may submit to the deadline.
        law: How submits rise towards the deadline, see :func:`arrival_times`.
        last_hour_share: So much of all submits comes in the last hour before the deadline.
        web_processes: Each commits one batch of submits at a time.
        workers: Worker processes.
        slots: Answers that one of them scores at a time.
        requests_per_minute: The provider's limit for the fleet; None for none.
        model_median_seconds: Half of the model's calls take longer.
        model_sigma: Standard deviation of the logarithm of a call's time. With 0.5 the mean is 1.13 medians and
            one call in twenty takes more than 2.3 medians. An assumption; look at your provider's.
        database_parallel: Statements that PostgreSQL serves at a time at their measured speed; those beyond wait.
        lease_seconds: A third of it is the pause between two renewals.
        sweep_seconds: Pause between two sweeps of one worker.
        sample_seconds: Pause between two looks at the backlog.
        seed: Of everything that is drawn.
    """

    answers: int = 1_000_000
    window_seconds: float = 24 * HOUR_SECONDS
    law: Law = "hyperbolic"
    last_hour_share: float = 0.5
    web_processes: int = 20
    workers: int = 50
    slots: int = 100
    requests_per_minute: int | None = 10_000
    model_median_seconds: float = 4.0
    model_sigma: float = 0.5
    database_parallel: int = 2
    lease_seconds: float = 30.0
    sweep_seconds: float = 1.5
    sample_seconds: float = 10.0
    seed: int = 20


def _exponential_seconds(share: float) -> float:
    """The time constant with which so much of ``exp(-remaining / constant)`` lies in the last hour.

    Of an endless window, of which what lies before ours is next to nothing.
    """
    return -HOUR_SECONDS / math.log1p(-share)


def _hyperbolic_seconds(share: float, window_seconds: float) -> float:
    """The cut-off ``c`` with which so much of ``1 / (remaining + c)`` lies in the last hour.

    Solves ``log1p(hour / c) / log1p(window / c) = share``; the left side falls as ``c`` grows, from 1 to
    ``hour / window``.
    """
    low, high = 1e-9, 1e9
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        if math.log1p(HOUR_SECONDS / middle) / math.log1p(window_seconds / middle) > share:
            low = middle
        else:
            high = middle
    return low


def arrival_times(scenario: Scenario) -> list[float]:
    """When each answer is submitted, in order, seconds from the opening; the deadline is at ``window_seconds``.

    ``hyperbolic``: the rate is proportional to ``1 / (time left + c)``. That pressure grows with the inverse of the
    time that is left was observed in conference registrations: V. Alfi, G. Parisi and L. Pietronero, "Conference
    registration: how people react to a deadline", Nature Physics 3, 746 (2007). ``c`` keeps the rate finite, and
    follows from the share of the last hour (164 s for a half of a day's submits).

    ``exponential``: the rate is proportional to ``exp(-time left / c)``: a softer end.

    ``at once``: all at the deadline.

    In a window of an hour or less the last hour is everything: there submits come evenly, or as the constant has it.
    """
    window = scenario.window_seconds
    if scenario.law == "at once" or not window:
        return [window] * scenario.answers
    draw = random.Random(f"{scenario.seed}/arrivals").random  # noqa: S311 - no secret
    if scenario.law == "hyperbolic":
        cut_off = _hyperbolic_seconds(scenario.last_hour_share, window)
        whole = math.log1p(window / cut_off)
        left = [cut_off * math.expm1(whole * draw()) for _ in range(scenario.answers)]
    else:
        constant = _exponential_seconds(scenario.last_hour_share)
        within = -math.expm1(-window / constant)
        left = [-constant * math.log1p(-within * draw()) for _ in range(scenario.answers)]
    left.sort(reverse=True)
    return [max(0.0, window - seconds) for seconds in left]


def model_times(scenario: Scenario) -> list[float]:
    """How long the model takes for each answer, seconds: log-normal, by the answer's number."""
    draw = random.Random(f"{scenario.seed}/model").lognormvariate  # noqa: S311 - no secret
    mu = math.log(scenario.model_median_seconds)
    return [draw(mu, scenario.model_sigma) for _ in range(scenario.answers)]
