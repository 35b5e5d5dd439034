"""taskiq with the Redis broker that acknowledges, on streams."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from taskiq import TaskiqEvents
from taskiq.cli.worker.args import WorkerArgs
from taskiq.cli.worker.run import start_listen
from taskiq.serializers import ORJSONSerializer
from taskiq_redis import RedisStreamBroker

from benchmarks.peers.answers import store_then
from benchmarks.peers.processes import ready
from benchmarks.peers.scoring import Scoring, open_scoring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.peers.contract import Submit
    from benchmarks.peers.settings import Settings
    from benchmarks.peers.stacks import Stack

JOB = "score"
# Its own default.
SLOTS = 100
# 0 by default: messages that wait in the process while all slots are taken, so that no slot waits for Redis.
PREFETCHED = 100


def _broker(settings: Settings) -> Any:
    # No result backend is the default. orjson is the quickest of the serializers that it ships.
    return RedisStreamBroker(settings.redis_url).with_serializer(ORJSONSerializer())


async def prepare(settings: Settings) -> None:
    """Nothing to install: the consumer group is made when a producer or a worker starts."""


@asynccontextmanager
async def submitting(settings: Settings, stack: Stack) -> AsyncIterator[Submit]:
    """Start the broker as a client."""
    broker = _broker(settings)
    job = broker.task(task_name=JOB)(_no_work_here)
    await broker.startup()

    async def hand_off(response_id: int, text: str) -> None:
        await job.kiq(response_id, text)

    try:
        yield store_then(stack, hand_off)
    finally:
        await broker.shutdown()


async def _no_work_here(response_id: int, text: str) -> None:
    """What the producer knows of the job: its name and what it takes."""


def work(settings: Settings) -> None:
    """Run, in this process, what ``taskiq worker --workers 1`` runs in its child; uvloop is its own default."""
    slots = settings.slots or SLOTS
    broker = _broker(settings)
    opened = open_scoring(settings)
    scorings: list[Scoring] = []

    async def score(response_id: int, text: str) -> None:
        await scorings[0].score(response_id, text)

    async def startup(_: Any) -> None:
        scorings.append(await opened.__aenter__())
        # The consumer group is made right after this.
        asyncio.get_running_loop().call_later(0.1, ready)

    async def shutdown(_: Any) -> None:
        await opened.__aexit__(None, None, None)

    broker.task(task_name=JOB)(score)
    broker.add_event_handler(TaskiqEvents.WORKER_STARTUP, startup)
    broker.add_event_handler(TaskiqEvents.WORKER_SHUTDOWN, shutdown)
    start_listen(
        WorkerArgs(
            broker=broker,
            modules=[],
            configure_logging=False,
            max_async_tasks=slots,
            max_prefetch=max(PREFETCHED, slots),
            no_parse=True,  # arguments are not checked against the annotations, which none of the others does
        )
    )
