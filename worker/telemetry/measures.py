"""What is measured of each answer on its way through a worker, as Prometheus' histograms and counters."""

from __future__ import annotations

import asyncio
from functools import cache
from math import isfinite
from typing import TYPE_CHECKING

from prometheus_client import Counter, Histogram

from worker.decisions import OUTCOMES
from worker.observer import Observer
from worker.scorers.outcomes import Hopeless, ProviderTrouble
from worker.scorers.protocol import Score

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prometheus_client import CollectorRegistry

    from worker.decisions import Transition
    from worker.leased import Lease
    from worker.observer import Result
    from worker.scorers.outcomes import ScoringError

# A message arrives within milliseconds, the sweep within a second; in a rush answers wait for minutes, after an
# outage for hours.
_PICKUP_BUCKETS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    300,
    1800,
    7200,
)
# From an algorithm's fraction of a millisecond to a model that thinks for minutes.
_SCORER_BUCKETS = (0.001, 0.01, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)
_SETTLE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
_LAG_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 10)
# Often enough to meet what lasts, seldom enough to cost an idle worker nothing.
LAG_EVERY_SECONDS = 1.0
# Models by name; a scorer that makes up a name for each answer must not fill monitoring.
MAX_MODELS = 20
MAX_MODEL_CHARS = 200


class Measures(Observer):
    """Measures what a worker tells.

    Args:
        registry: Where the metrics are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        pickup = Histogram(
            "scoring_pickup_seconds",
            "From the moment an answer was due to its lease.",
            ("lane", "source"),
            registry=registry,
            buckets=_PICKUP_BUCKETS,
        )
        scorer = Histogram(
            "scoring_scorer_seconds",
            "How long an answer was with the scorer, and how that ended.",
            ("lane", "outcome"),
            registry=registry,
            buckets=_SCORER_BUCKETS,
        )
        settle = Histogram(
            "scoring_settle_seconds",
            "From the decision what becomes of an answer to PostgreSQL's reply.",
            ("outcome", "result"),
            registry=registry,
            buckets=_SETTLE_BUCKETS,
        )
        self._lag = Histogram(
            "scoring_event_loop_lag_seconds",
            "How much later than asked for the event loop woke a task, looked at once a second.",
            registry=registry,
            buckets=_LAG_BUCKETS,
        )
        tokens = Counter(
            "scoring_tokens", "Tokens of scores, by model.", ("model", "direction"), registry=registry
        )
        cost = Counter(
            "scoring_cost_dollars",
            "What scores cost, where a price is known, by model.",
            ("model",),
            registry=registry,
        )
        self._lost = Counter(
            "scoring_leases_lost", "Leases lost while their answers were with the scorer.", registry=registry
        )
        self._sweeps = Counter("scoring_sweeps", "Sweeps of this worker.", registry=registry)
        found = Counter(
            "scoring_sweep_found",
            "What sweeps found: lanes that were overdue, answers buried or revived, claims.",
            ("found",),
            registry=registry,
        )
        self._claims = Counter("scoring_claims_applied", "Claims applied.", registry=registry)
        self._claimed = Counter(
            "scoring_claimed_responses", "Responses that claims moved to their owners.", registry=registry
        )
        # Looking a child up by its labels takes longer than adding to it.
        self._pickup, self._scorer, self._settle = map(cache, (pickup.labels, scorer.labels, settle.labels))
        self._tokens, self._cost, self._found = map(cache, (tokens.labels, cost.labels, found.labels))
        self._models: set[str] = set()

    def leased(self, lease: Lease) -> None:
        """Observe how long the answer had been due."""
        self._pickup(lease.lane, lease.source).observe(max(0.0, lease.waited_seconds))

    def scored(self, lease: Lease, outcome: Score | ScoringError | None, seconds: float) -> None:
        """Observe the scorer's time, and what a score cost."""
        self._scorer(lease.lane, _kind(outcome)).observe(seconds)
        if not isinstance(outcome, Score):
            return  # what a failed call cost, nobody told us
        model = self._model(outcome.model_id)
        usage = outcome.usage
        if usage.input_tokens or usage.output_tokens:
            self._tokens(model, "input").inc(usage.input_tokens)
            self._tokens(model, "output").inc(usage.output_tokens)
        # A sum that was infinite once is infinite for ever.
        if usage.cost_usd is not None and isfinite(usage.cost_usd):
            self._cost(model).inc(usage.cost_usd)

    def ended(self, lease: Lease, transition: Transition, result: Result, seconds: float) -> None:  # noqa: ARG002
        """Observe the time it took to write; what became of the answer is counted by the settler."""
        self._settle(OUTCOMES[type(transition)], result).observe(seconds)

    def lost(self, leases: int) -> None:
        """Count lost leases."""
        self._lost.inc(leases)

    def swept(self, found: Mapping[str, int]) -> None:
        """Count a sweep and what it found."""
        self._sweeps.inc()
        for name, number in found.items():
            if number:
                self._found(name).inc(number)

    def claimed(self, moved: int) -> None:
        """Count an applied claim."""
        self._claims.inc()
        self._claimed.inc(moved)

    async def watch_loop(self) -> None:
        """Observe for ever how late the event loop is."""
        loop = asyncio.get_running_loop()
        while True:
            wanted = loop.time() + LAG_EVERY_SECONDS
            await asyncio.sleep(LAG_EVERY_SECONDS)
            self._lag.observe(max(0.0, loop.time() - wanted))

    def _model(self, model_id: str) -> str:
        if model_id in self._models:
            return model_id
        # A scorer of somebody's own may call its model anything: half a surrogate would spoil the exposition for ever.
        if len(self._models) >= MAX_MODELS or len(model_id) > MAX_MODEL_CHARS or not model_id.isprintable():
            return "others"
        self._models.add(model_id)
        return model_id


def _kind(outcome: Score | ScoringError | None) -> str:
    match outcome:
        case None:
            return "interrupted"
        case Score():
            return "scored"
        case ProviderTrouble():
            return "provider_trouble"
        case Hopeless():
            return "hopeless"
        case _:
            return "failed"
