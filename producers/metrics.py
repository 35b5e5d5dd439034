"""Metrics of a web process that submits answers, for Prometheus. Needs the package ``prometheus-client``."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, Histogram

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from producers.observer import Result

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class ProducerMetrics:
    """Measures submits: ``open_producer(observer=ProducerMetrics())``.

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

    def submitted(self, result: Result, seconds: float) -> None:
        """Observe a submit, see :class:`producers.observer.SubmitObserver`."""
        self._submits(result).observe(seconds)
