"""Metrics of one worker, in Prometheus' text format: its state when it is asked for, and what was measured till then."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, get_args

from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

from worker.decisions import OUTCOMES
from worker.observer import Result
from worker.telemetry.database_gauges import DatabaseGauges
from worker.telemetry.measures import Measures

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from worker.provider_report import RateLimitReport
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
        if (away := runtime.redis_is_away()) is not None:
            yield GaugeMetricFamily("scoring_redis_up", "0 while Redis is away.", int(not away))
        yield from _limits(runtime.rate_limits.report())
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
            "What became of leased answers, and whether it was committed, came too late, is in doubt or was refused.",
            labels=("outcome", "result"),
        )
        for transition, outcome in OUTCOMES.items():
            kind = transition.__name__.lower()
            for result in get_args(Result):
                name = kind if result == "committed" else f"{kind}_{result}"
                outcomes.add_metric((outcome, result), self._runtime.settler.counts[name])
        return outcomes


def _limits(report: RateLimitReport | None) -> Iterator[Metric]:
    """The provider's limits as this worker knows them; nothing where none is set."""
    if report is None:
        return
    limits = GaugeMetricFamily(
        "scoring_rate_limit_per_minute", "What the provider allows in a minute.", labels=("limit",)
    )
    left = GaugeMetricFamily(
        "scoring_rate_limit_left",
        "What was left of a limit's present window when this worker last asked, before it took any.",
        labels=("limit",),
    )
    for name, per_minute, remaining in (
        ("requests", report.requests_per_minute, report.requests_left_in_window),
        ("tokens", report.tokens_per_minute, report.tokens_left_in_window),
    ):
        if per_minute is not None:
            limits.add_metric((name,), per_minute)
        if remaining is not None:
            left.add_metric((name,), remaining)
    yield limits
    yield left
    yield GaugeMetricFamily(
        "scoring_rate_limit_shared",
        "1 while limits are counted for all workers together.",
        int(report.shared),
    )


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
