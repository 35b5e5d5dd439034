"""What a web process measures of its submits, with a real producer on real servers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.engine import make_url

from producers import open_producer
from producers.metrics import ProducerMetrics
from storage import InvalidInputError, StorageUnavailableError, create_engine
from tests.factories import publish, submission
from tests.producers.proxy import Proxy
from tests.producers.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncEngine

pytestmark = pytest.mark.commits

CANARY = "canary answer"


class Measured:
    """A registry with a producer's metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = ProducerMetrics(self.registry)

    def ended(self) -> dict[str, float]:
        """How many submits ended in which way."""
        return {
            sample.labels["result"]: sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == "scoring_submit_seconds_count"
        }

    def gauges(self) -> dict[str, float]:
        """What is shown of the present state."""
        return {
            sample.name: sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if family.type == "gauge"
        }


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_url)
    yield client
    await client.aclose()


async def test_every_submit_is_measured_by_how_it_ended(engine: AsyncEngine, redis: Redis) -> None:
    """Stored, refused, cancelled: each once, and the time up to the commit."""
    async with engine.begin() as conn:
        await publish(conn)
    measured = Measured()
    async with open_producer(engine=engine, redis=redis, observer=measured.metrics) as producer:
        await asyncio.gather(*(producer.submit(**submission()) for _ in range(5)))
        with pytest.raises(InvalidInputError):
            await producer.submit(**submission(answer_text="\x00"))
        impatient = asyncio.create_task(producer.submit(**submission()))
        await asyncio.sleep(0)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient

    assert measured.ended() == {"stored": 5, "invalid": 1, "cancelled": 1}
    total = measured.registry.get_sample_value("scoring_submit_seconds_sum", {"result": "stored"})
    assert total is not None
    assert total > 0


async def test_an_outage_is_told_from_a_mistake(redis: Redis) -> None:
    """PostgreSQL is away."""
    measured = Measured()
    nowhere = create_engine("postgresql://nobody@127.0.0.1:1/none")
    async with open_producer(engine=nowhere, redis=redis, observer=measured.metrics) as producer:
        with pytest.raises(StorageUnavailableError):
            await producer.submit(**submission())
    await nowhere.dispose()

    assert measured.ended() == {"unavailable": 1}


async def test_an_observer_that_fails_costs_no_answer(
    engine: AsyncEngine, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """It is stored and returned; what the error says is not logged."""

    class Broken:
        def submitted(self, *_: Any) -> None:
            raise ValueError(CANARY)

    async with engine.begin() as conn:
        await publish(conn)
    async with open_producer(engine=engine, redis=redis, observer=Broken()) as producer:
        row = await producer.submit(**submission(answer_text=CANARY))

    assert row["answer_text"] == CANARY
    assert "An observer failed." in caplog.text
    assert CANARY not in caplog.text


async def test_what_waits_for_a_commit_is_shown(engine: AsyncEngine, redis: Redis) -> None:
    """Those of the batch that PostgreSQL is asked to store, and those that gather meanwhile; none afterwards."""
    async with engine.begin() as conn:
        await publish(conn)
    measured = Measured()
    async with open_producer(engine=engine, redis=redis, observer=measured.metrics) as producer:
        measured.metrics.watch(producer)
        assert measured.gauges() == {"scoring_submits_waiting": 0}
        async with engine.connect() as holder:
            await holder.execute(text("LOCK TABLE assessment_responses"))
            submits = [asyncio.create_task(producer.submit(**submission()))]
            # Not of pg_stat_activity, which stays within a transaction as it was seen first.
            blocked = text(
                "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid)))"
            )
            await eventually(lambda: holder.scalar(blocked))
            submits += [asyncio.create_task(producer.submit(**submission())) for _ in range(2)]
            await asyncio.sleep(0)
            assert measured.gauges()["scoring_submits_waiting"] == 3
            await holder.rollback()
        await asyncio.gather(*submits)

        assert measured.gauges()["scoring_submits_waiting"] == 0


async def test_a_bell_that_does_not_ring_is_shown(engine: AsyncEngine, redis_url: str) -> None:
    """After the first announcement, and until one is taken again."""
    async with engine.begin() as conn:
        await publish(conn)
    measured = Measured()
    url = make_url(redis_url)
    async with Proxy(url.port or 6379) as proxy:
        proxy.refuses = True
        far = Redis(port=proxy.port, db=int(url.database or 0))
        async with open_producer(engine=engine, redis=far, observer=measured.metrics) as producer:
            measured.metrics.watch(producer)
            assert "scoring_bell_up" not in measured.gauges()
            await producer.submit(**submission())
            await eventually(lambda: measured.gauges().get("scoring_bell_up") == 0)

            proxy.refuses = False
            await producer.submit(**submission())
            await eventually(lambda: measured.gauges()["scoring_bell_up"])
        await far.aclose()


async def test_another_producer_takes_the_place_of_the_first(engine: AsyncEngine, redis: Redis) -> None:
    """A process that opens one after the other, as a web app's own tests do, need not make new metrics."""
    measured = Measured()
    for _ in range(2):
        async with open_producer(engine=engine, redis=redis, observer=measured.metrics) as producer:
            measured.metrics.watch(producer)
            assert measured.gauges() == {"scoring_submits_waiting": 0}


def test_a_registry_takes_them_once() -> None:
    """Two producers of one process share them."""
    measured = Measured()
    with pytest.raises(ValueError, match="scoring_submit_seconds"):
        ProducerMetrics(measured.registry)


def test_who_does_not_ask_for_them_imports_nothing() -> None:
    """The base install has no Prometheus client."""
    program = "import producers, sys; assert not {'prometheus_client', 'opentelemetry'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
