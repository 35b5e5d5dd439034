"""Dramatiq with its Redis broker, actors on its AsyncIO middleware."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO, Retries

from benchmarks.peers.answers import store_then
from benchmarks.peers.processes import new_event_loop, ready
from benchmarks.peers.scoring import Scoring, open_scoring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.peers.contract import Submit
    from benchmarks.peers.settings import Settings
    from benchmarks.peers.stacks import Stack

JOB = "score"
# 8 by default. Every running job holds a thread, so many more cost more than they bring.
SLOTS = 32
# The longest that a consumer which found nothing sleeps before it looks again. Every idle thread wakes up as often,
# which hundreds of them cannot bear: then it stays at its default.
IDLE_MILLISECONDS, MANY_IDLE_MILLISECONDS = 5, 1000
MANY_THREADS = 200
STOP_MILLISECONDS = 2000


def _broker(settings: Settings) -> Any:
    # Retries is what keeps a failed job; of the rest of the default list (time limits, callbacks, ...) nothing is used.
    return RedisBroker(url=settings.redis_url, middleware=[AsyncIO(), Retries()])


async def prepare(settings: Settings) -> None:
    """Nothing to install."""


@asynccontextmanager
async def submitting(settings: Settings, stack: Stack) -> AsyncIterator[Submit]:
    """Open the broker."""
    broker = _broker(settings)
    job = dramatiq.actor(_no_work_here, broker=broker, actor_name=JOB)

    async def hand_off(response_id: int, text: str) -> None:
        # Its client blocks. On the loop's own thread that is quicker than a hop to another one.
        job.send(response_id, text)

    try:
        yield store_then(stack, hand_off)
    finally:
        broker.close()


async def _no_work_here(response_id: int, text: str) -> None:
    """What the producer knows of the job: its name and what it takes."""


class _Loop(asyncio.DefaultEventLoopPolicy):
    """Gives the thread for async actors, which asks for a new event loop, the quickest one there is."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return new_event_loop()()


def work(settings: Settings) -> None:
    """Run, in this process, what ``dramatiq --processes 1`` runs in its child."""
    asyncio.set_event_loop_policy(_Loop())
    broker = _broker(settings)
    opening = asyncio.Lock()
    opened = open_scoring(settings)
    scorings: list[Scoring] = []

    async def score(response_id: int, text: str) -> None:
        if not scorings:
            async with opening:
                if not scorings:
                    scorings.append(await opened.__aenter__())
        await scorings[0].score(response_id, text)

    dramatiq.actor(score, broker=broker, actor_name=JOB)
    slots = settings.slots or SLOTS
    worker = dramatiq.Worker(
        broker,
        worker_threads=slots,
        worker_timeout=IDLE_MILLISECONDS if slots < MANY_THREADS else MANY_IDLE_MILLISECONDS,
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    worker.start()
    ready()
    signal.sigwait({signal.SIGTERM})
    worker.stop(timeout=STOP_MILLISECONDS)
