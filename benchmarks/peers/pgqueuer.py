"""PgQueuer: jobs in PostgreSQL, through asyncpg."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
from pgqueuer import AsyncpgDriver, AsyncpgPoolDriver, PgQueuer, Queries

from benchmarks.peers.answers import store_then
from benchmarks.peers.processes import ready, run
from benchmarks.peers.scoring import open_scoring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncpg import Pool

    from benchmarks.peers.contract import Submit
    from benchmarks.peers.settings import Settings

TX = True
import benchmarks.peers.answers as A

POOL = 0
JOB = "score"
# 10 by default; "increase when jobs are short-lived".
BATCH = 100


async def prepare(settings: Settings) -> None:
    """Install its schema where it is missing, as its guide to performance says."""
    # "balanced": the log of what was done is not written ahead, the queue is. Read once, so set before anything else.
    os.environ["PGQUEUER_DURABILITY"] = "balanced"
    connection = await asyncpg.connect(settings.database_url)
    try:
        queries = Queries(AsyncpgDriver(connection))
        if not await queries.schema_is_installed():
            await queries.install()
        await queries.optimize_autovacuum()
    finally:
        await connection.close()


@asynccontextmanager
async def submitting(settings: Settings, pool: Pool) -> AsyncIterator[Submit]:  # noqa: ARG001
    """Enqueue through the pool, as its guide says for producers."""
    queries = Queries(AsyncpgPoolDriver(pool))

    async def hand_off(response_id: int, text: str) -> None:
        await queries.enqueue(JOB, b"%d %b" % (response_id, text.encode()))

    async def transactional(text):
        async with pool.acquire() as connection:
            async with connection.transaction():
                response_id = await connection.fetchval(A.INSERT_RESPONSE, A.USER_ID, A.QUESTION_ID, text)
                await Queries(AsyncpgDriver(connection)).enqueue(JOB, b"%d %b" % (response_id, text.encode()))
            return A.Stored(response_id, time.monotonic_ns())

    yield transactional if TX else store_then(pool, hand_off)


async def _work(settings: Settings) -> None:
    # One connection for the queue and the bell, as its guide says for workers.
    connection = await asyncpg.connect(settings.database_url)
    queuer = PgQueuer(
        AsyncpgPoolDriver(await asyncpg.create_pool(settings.database_url, min_size=POOL, max_size=POOL))
        if POOL
        else AsyncpgDriver(connection)
    )
    async with open_scoring(settings) as scoring:

        async def score(job: Any) -> None:
            response_id, _, text = job.payload.partition(b" ")
            await scoring.score(int(response_id), text.decode())

        queuer.entrypoint(JOB)(score)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, queuer.shutdown.set)
        loop.call_later(0.5, ready)  # it says nothing when it listens; half a second is plenty
        await queuer.run(
            batch_size=min(BATCH, settings.slots // 2) if settings.slots else BATCH,
            # Unlimited by default; a limit makes its query dearer. It must be twice the batch at least.
            max_concurrent_tasks=settings.slots,
            log_aggregation_interval=timedelta(0),  # nobody reads its statistics
        )
    await connection.close()


def work(settings: Settings) -> None:
    """Run its worker in this process."""
    run(_work(settings))
