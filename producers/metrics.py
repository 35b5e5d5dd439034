"""Metrics of a web process that submits answers, for Prometheus. Needs the package ``prometheus-client``."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Protocol

from prometheus_client import REGISTRY, Histogram
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from producers.observer import Result
    from producers.producer import Producer

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class WatchedStreams(Protocol):
    """What is asked of event streams; ``producers.web.EventStreams`` are."""

    @property
    def open_streams(self) -> int:
        """How many are open."""
        ...

    @property
    def are_blind(self) -> bool | None:
        """Whether PostgreSQL cannot be looked at just now; None while nobody listens."""
        ...


class ProducerMetrics:
    """Measures submits: ``open_producer(observer=ProducerMetrics())``. :meth:`watch` adds gauges.

    Make one for a registry: a second one of the same name is refused by the registry.

    Args:
        registry: Where the web app's own metrics are; by default Prometheus' own.

    Raises:
        ValueError: The registry has these metrics already.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        submits = Histogram(
            "scoring_submit_seconds",
            "How long a submit took, and how it ended.",
            ("result",),
            registry=registry,
            buckets=_BUCKETS,
        )
        # Looking a child up by its labels takes longer than adding to it.
        self._submits = cache(submits.labels)
        self._producer: Producer | None = None
        self._streams: WatchedStreams | None = None
        registry.register(self)

    def submitted(self, result: Result, seconds: float) -> None:
        """Observe a submit, see :class:`producers.observer.SubmitObserver`."""
        self._submits(result).observe(seconds)

    def watch(self, producer: Producer, streams: WatchedStreams | None = None) -> None:
        """Show how these stand at the moment of each scrape, in place of what was watched before.

        Args:
            producer: The one of this process.
            streams: Those that ``create_router(streams=…)`` was given; without them there are no metrics of streams.
        """
        self._producer, self._streams = producer, streams

    def collect(self) -> Iterator[Metric]:
        """Read the present state; called by the registry, perhaps in another thread."""
        submits_waiting, bell_up, event_streams, feed_up = self.describe()
        if self._producer is not None:
            yield _with(submits_waiting, self._producer.submits_waiting)
            if (away := self._producer.redis_is_away) is not None:
                yield _with(bell_up, not away)
        if self._streams is not None:
            yield _with(event_streams, self._streams.open_streams)
            if (blind := self._streams.are_blind) is not None:
                yield _with(feed_up, not blind)

    def describe(self) -> tuple[GaugeMetricFamily, ...]:
        """Name what :meth:`collect` may give; called by the registry."""
        return (
            GaugeMetricFamily("scoring_submits_waiting", "Submits that PostgreSQL has not committed yet."),
            GaugeMetricFamily("scoring_bell_up", "0 where Redis did not take what was announced last."),
            GaugeMetricFamily("scoring_event_streams", "Event streams that are open."),
            GaugeMetricFamily("scoring_feed_up", "0 while event streams cannot look at PostgreSQL."),
        )


def _with(gauge: GaugeMetricFamily, value: float) -> GaugeMetricFamily:
    gauge.add_metric((), value)
    return gauge
