"""streaQ."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from streaq import Worker

from benchmarks.peers.answers import store_then
from benchmarks.peers.processes import ready
from benchmarks.peers.scoring import open_scoring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.peers.contract import Submit
    from benchmarks.peers.settings import Settings
    from benchmarks.peers.stacks import Stack

JOB = "score"
# 16 by default; these jobs wait for the network.
SLOTS = 100
# As many as there are slots by default: messages that wait in the process, so that no slot waits for Redis.
PREFETCHED = 500
# No result is kept, no line is logged for a job.
JOB_SETTINGS: dict[str, Any] = {"name": JOB, "ttl": 0, "silent": True}


async def prepare(settings: Settings) -> None:
    """Nothing to install."""


@asynccontextmanager
async def submitting(settings: Settings, stack: Stack) -> AsyncIterator[Submit]:
    """Open a worker that only enqueues, as its documentation does it."""
    worker = Worker(redis_url=settings.redis_url)
    job = worker.task(**JOB_SETTINGS)(_no_work_here)

    async def hand_off(response_id: int, text: str) -> None:
        await job.enqueue(response_id, text)

    async with worker:
        yield store_then(stack, hand_off)


async def _no_work_here(response_id: int, text: str) -> None:
    """What the producer knows of the job: its name and what it takes."""


def work(settings: Settings) -> None:
    """Run its worker in this process."""

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[Any]:
        async with open_scoring(settings) as scoring:
            ready()
            yield scoring

    slots = settings.slots or SLOTS
    worker = Worker(
        redis_url=settings.redis_url,
        concurrency=slots,
        lifespan=lifespan,
        prefetch=max(PREFETCHED, slots),
        anyio_kwargs={"use_uvloop": True},
    )

    async def score(response_id: int, text: str) -> None:
        await worker.context.score(response_id, text)

    worker.task(**JOB_SETTINGS)(score)
    worker.run_sync()
