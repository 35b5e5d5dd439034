"""Metrics of one worker, in Prometheus' text format: its state when it is asked for, and what was measured till then."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

from worker.decisions import OUTCOMES
from worker.telemetry.database_gauges import DatabaseGauges
from worker.telemetry.measures import Measures

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from worker.runtime import Runtime

_STATES = (
    ("waiting", "live", "waiting_live"),
    ("waiting", "bulk", "waiting_bulk"),
    ("leased", "all", "leased"),
    ("postponed", "all", "postponed"),
    ("unpublished", "all", "unpublished"),
    ("dead", "all", "dead"),
    ("dismissed", "all", "dismissed"),
)


class WorkerMetrics:
    """The metrics of one worker, with a registry of its own. Made before the worker's loops start.

    Args:
        runtime: The worker.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._database = DatabaseGauges(runtime.engine)
        self._backlog: dict[str, Any] | None = None
        # A second series for each of ours that says when it began, which Prometheus does not ask for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self.measures = Measures(self.registry)
        runtime.observers.append(self.measures)

    async def exposition(self) -> bytes:
        """Return all metrics as text. Never fails for want of PostgreSQL: ``scoring_database_up`` is 0 then."""
        self._backlog = await self._database.read()
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Read the worker's present state; called by the registry."""
        runtime = self._runtime
        yield InfoMetricFamily("scoring_build", "What runs.", {"version": version("assessment-scoring")})
        yield GaugeMetricFamily("scoring_slots", "Answers scored at the same time.", runtime.pool.slots)
        yield GaugeMetricFamily("scoring_free_slots", "Slots without an answer.", runtime.pool.free_slots)
        yield GaugeMetricFamily(
            "scoring_breaker_open", "1 while the provider is given a rest.", int(runtime.breaker.is_open)
        )
        yield GaugeMetricFamily(
            "scoring_redis_up", "0 while Redis is away.", int(not runtime.redis_is_away())
        )
        pauses = GaugeMetricFamily(
            "scoring_rate_limit_pause_seconds",
            "How long a lane waits for the provider's rate limits, at most; 0 where it does not.",
            labels=("lane",),
        )
        for lane in ("live", "bulk"):
            pauses.add_metric((lane,), runtime.rate_limits.pause_seconds(lane))
        yield pauses
        yield self._outcomes()
        yield GaugeMetricFamily(
            "scoring_database_up", "0 while PostgreSQL does not answer.", int(self._backlog is not None)
        )
        if self._backlog is not None:
            yield from _backlog(self._backlog)

    def _outcomes(self) -> CounterMetricFamily:
        outcomes = CounterMetricFamily(
            "scoring_outcomes",
            "What became of leased answers, and whether it was committed, came too late or is in doubt.",
            labels=("outcome", "result"),
        )
        for transition, outcome in OUTCOMES.items():
            kind = transition.__name__.lower()
            for suffix, result in (("", "committed"), ("_too_late", "too_late"), ("_in_doubt", "in_doubt")):
                outcomes.add_metric((outcome, result), self._runtime.settler.counts[kind + suffix])
        return outcomes


def _backlog(read: dict[str, Any]) -> Iterator[Metric]:
    handoffs = GaugeMetricFamily(
        "scoring_handoffs", "Answers by state, each counted up to 10,001.", labels=("state", "lane")
    )
    for state, lane, name in _STATES:
        handoffs.add_metric((state, lane), read[name])
    yield handoffs
    yield GaugeMetricFamily(
        "scoring_oldest_handoff_age_seconds",
        "Age of the oldest unscored answer.",
        read["oldest_seconds"] or 0,
    )
    yield GaugeMetricFamily(
        "scoring_longest_due_seconds",
        "How long the first in line has been due.",
        read["longest_due_seconds"] or 0,
    )
    yield GaugeMetricFamily("scoring_claims_waiting", "Claims not applied yet.", read["claims_waiting"])
