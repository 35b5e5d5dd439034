"""Metrics of a worker, on real servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.telemetry.metrics import WorkerMetrics

if TYPE_CHECKING:
    from worker.runtime import Runtime


async def test_a_second_worker_in_the_process_has_metrics_of_its_own(runtime: Runtime) -> None:
    """Nothing is registered twice, and the database's counts are there."""
    for metrics in (WorkerMetrics(runtime), WorkerMetrics(runtime)):
        text = (await metrics.exposition()).decode()
        assert "scoring_database_up 1.0" in text
        assert 'scoring_handoffs{lane="live",state="waiting"} 0.0' in text


async def test_an_absent_database_costs_only_its_own_metrics(runtime: Runtime) -> None:
    """A database that refuses connections: the worker's own metrics come all the same."""
    metrics = WorkerMetrics(runtime)
    metrics._database._engine = runtime.settings.model_copy(
        update={"database_url": type(runtime.settings.database_url)("postgresql://nobody@127.0.0.1:1/none")}
    ).engine()
    text = (await metrics.exposition()).decode()
    assert "scoring_database_up 0.0" in text
    assert f"scoring_slots {float(runtime.pool.slots)}" in text
    assert "scoring_handoffs" not in text
