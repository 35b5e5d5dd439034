"""What a web process measures of its submits, with a real producer on real servers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from producers import open_producer
from producers.metrics import ProducerMetrics
from storage import InvalidInputError, StorageUnavailableError, create_engine
from tests.factories import publish, submission

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


def test_a_registry_takes_them_once() -> None:
    """Two producers of one process share them."""
    measured = Measured()
    with pytest.raises(ValueError, match="scoring_submit_seconds"):
        ProducerMetrics(measured.registry)


def test_who_does_not_ask_for_them_imports_nothing() -> None:
    """The base install has no Prometheus client."""
    program = "import producers, sys; assert not {'prometheus_client', 'opentelemetry'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
