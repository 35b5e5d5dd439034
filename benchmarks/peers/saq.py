"""SAQ with its Redis queue."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import orjson
from redis.asyncio import Redis
from saq import Worker
from saq.queue.redis import RedisQueue

from benchmarks.peers.answers import store_then
from benchmarks.peers.processes import ready, run
from benchmarks.peers.scoring import Scoring, open_scoring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.peers.contract import Submit
    from benchmarks.peers.settings import Settings
    from benchmarks.peers.stacks import Stack

JOB = "score"
# 10 by default; these jobs wait for the network.
SLOTS = 100
# 20 by default: how many commands a queue sends at the same time. As many as there are submitters.
CONCURRENT_COMMANDS = 64
# Every slot waits on a connection of its own; the client's limit is 100 by default.
CONNECTIONS_BESIDE_SLOTS = 100
# No result is kept (-1 is "disabled"), and no time limit is watched (0), which none of the others does either.
JOB_SETTINGS = {"ttl": -1, "timeout": 0}


def _queue(settings: Settings) -> Any:
    # ``dump`` and ``load`` are documented for this: the quickest JSON.
    return RedisQueue(
        Redis.from_url(
            settings.redis_url, max_connections=(settings.slots or SLOTS) + CONNECTIONS_BESIDE_SLOTS
        ),
        dump=orjson.dumps,
        load=orjson.loads,
        max_concurrent_ops=CONCURRENT_COMMANDS,
    )


async def prepare(settings: Settings) -> None:
    """Nothing to install."""


@asynccontextmanager
async def submitting(settings: Settings, stack: Stack) -> AsyncIterator[Submit]:
    """Connect the queue."""
    queue = _queue(settings)
    await queue.connect()

    async def hand_off(response_id: int, text: str) -> None:
        await queue.enqueue(JOB, response_id=response_id, text=text, **JOB_SETTINGS)

    try:
        yield store_then(stack, hand_off)
    finally:
        await queue.disconnect()


async def _score(context: dict[str, Any], *, response_id: int, text: str) -> None:
    scoring: Scoring = context["scoring"]
    await scoring.score(response_id, text)


async def _ready_when_waiting(queue: Any, slots: int) -> None:
    """Until every slot has its connection, jobs that it has taken but not begun can be swept away as stuck."""
    while (await queue.redis.info("clients"))["blocked_clients"] < slots:  # noqa: ASYNC110 - in another process
        await asyncio.sleep(0.05)
    ready()


async def _work(settings: Settings) -> None:
    slots = settings.slots or SLOTS
    queue = _queue(settings)
    await queue.connect()
    async with open_scoring(settings) as scoring:

        async def startup(context: dict[str, Any]) -> None:
            context["scoring"] = scoring

        worker = Worker(queue, functions=[(JOB, _score)], concurrency=slots, startup=startup)
        waiting = asyncio.create_task(_ready_when_waiting(queue, slots))
        await worker.start()
        waiting.cancel()
    await queue.disconnect()


def work(settings: Settings) -> None:
    """Run SAQ's worker in this process."""
    run(_work(settings))
