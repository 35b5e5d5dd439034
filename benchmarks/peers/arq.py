"""arq as it comes: one job an answer, enqueued once the answer is committed."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker, func

from benchmarks.peers.answers import store_then
from benchmarks.peers.processes import ready, run
from benchmarks.peers.scoring import Scoring, open_scoring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from arq.typing import WorkerCoroutine

    from benchmarks.peers.contract import Submit
    from benchmarks.peers.settings import Settings
    from benchmarks.peers.stacks import Stack

JOB = "score"
# Both are its own defaults. It looks twice a second, at a hundred jobs, and in between starts none.
SLOTS = 10
POLL_SECONDS = 0.5


async def prepare(settings: Settings) -> None:
    """Nothing to install."""


@asynccontextmanager
async def submitting(settings: Settings, stack: Stack) -> AsyncIterator[Submit]:
    """Open arq's pool of Redis connections."""
    redis = await create_pool(RedisSettings.from_dsn(settings.redis_url))

    async def hand_off(response_id: int, text: str) -> None:
        await redis.enqueue_job(JOB, response_id, text)

    try:
        yield store_then(stack, hand_off)
    finally:
        await redis.aclose()


async def _score(ctx: dict[Any, Any], response_id: int, text: str) -> None:
    scoring: Scoring = ctx["scoring"]
    await scoring.score(response_id, text)


async def _ready(ctx: dict[Any, Any]) -> None:  # noqa: ARG001 - what arq passes
    ready()


async def _work(settings: Settings, *, slots: int, poll_seconds: float) -> None:
    async with open_scoring(settings) as scoring:
        worker = Worker(
            functions=[func(cast("WorkerCoroutine", _score), name=JOB)],
            redis_settings=RedisSettings.from_dsn(settings.redis_url),
            ctx={"scoring": scoring},
            on_startup=_ready,
            max_jobs=settings.slots or slots,
            poll_delay=poll_seconds,
            keep_result=0,  # nobody asks for the result; it would be one more write a job
            log_results=False,
        )
        with suppress(asyncio.CancelledError):  # how arq ends upon SIGTERM
            await worker.async_run()
        await worker.close()


def work(settings: Settings, *, slots: int = SLOTS, poll_seconds: float = POLL_SECONDS) -> None:
    """Run arq's worker in this process."""
    run(_work(settings, slots=slots, poll_seconds=poll_seconds))
