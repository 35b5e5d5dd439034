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
from pgqueuer import AsyncpgDriver, PgQueuer, Queries

from benchmarks.peers.contract import Stored
from benchmarks.peers.processes import ready, run
from benchmarks.peers.scoring import open_scoring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.peers.contract import Submit
    from benchmarks.peers.settings import Settings
    from benchmarks.peers.stacks import Stack

JOB = "score"
# 10 by default; "increase batch_size when jobs are short-lived".
BATCH = 50


async def prepare(settings: Settings) -> None:
    """Install its schema where it is missing, with what its guide to performance advises."""
    # "balanced": the log of what was done is not written ahead, the queue is. It is read once, from the environment.
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
async def submitting(settings: Settings, stack: Stack) -> AsyncIterator[Submit]:  # noqa: ARG001
    """Store and enqueue in one transaction: one commit, and quicker than two."""

    async def submit(text: str) -> Stored:
        carried = text.encode() if stack.carries_text else b""

        async def enqueue(connection: Any, response_id: int) -> None:
            await Queries(AsyncpgDriver(connection)).enqueue(JOB, b"%d %b" % (response_id, carried))

        return Stored(await stack.store_with(text, enqueue), time.monotonic_ns())

    yield submit


async def _work(settings: Settings) -> None:
    # One connection for the queue and the bell, as its guide says for workers; a pool was no quicker.
    connection = await asyncpg.connect(settings.database_url)
    queuer = PgQueuer(AsyncpgDriver(connection))
    async with open_scoring(settings) as scoring:

        async def score(job: Any) -> None:
            response_id, _, text = job.payload.partition(b" ")
            await scoring.score(int(response_id), text.decode())

        queuer.entrypoint(JOB)(score)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, queuer.shutdown.set)
        loop.call_later(0.5, ready)  # it says nothing when it listens; half a second is plenty
        await queuer.run(
            # A limit must be twice the batch at least.
            batch_size=max(1, min(BATCH, settings.slots // 2)) if settings.slots else BATCH,
            # Unlimited by default; a limit makes its query dearer.
            max_concurrent_tasks=settings.slots,
            log_aggregation_interval=timedelta(0),  # nobody reads its statistics
        )
    await connection.close()


def work(settings: Settings) -> None:
    """Run its worker in this process."""
    run(_work(settings))
