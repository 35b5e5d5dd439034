"""Procrastinate: jobs in PostgreSQL, through psycopg."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from procrastinate import App, PsycopgConnector

from benchmarks.peers.answers import store_then
from benchmarks.peers.processes import ready, run
from benchmarks.peers.scoring import open_scoring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncpg import Pool

    from benchmarks.peers.contract import Submit
    from benchmarks.peers.settings import Settings

TX = True
import time

import benchmarks.peers.answers as A

JOB = "score"
# 1 by default; these jobs wait for the network.
SLOTS = 100
CONNECTIONS = 20

_INSTALLED = "SELECT to_regclass('procrastinate_jobs') IS NOT NULL AS installed"


def _app(settings: Settings) -> Any:
    return App(
        connector=PsycopgConnector(conninfo=settings.database_url, min_size=CONNECTIONS, max_size=CONNECTIONS)
    )


async def prepare(settings: Settings) -> None:
    """Install its schema where it is missing."""
    app = _app(settings)
    async with app.open_async():
        if not (await app.connector.execute_query_one_async(_INSTALLED))["installed"]:
            await app.schema_manager.apply_schema_async()


@asynccontextmanager
async def submitting(settings: Settings, pool: Pool) -> AsyncIterator[Submit]:
    """Open the app."""
    app = _app(settings)
    job = app.task(name=JOB)(_no_work_here)

    async def hand_off(response_id: int, text: str) -> None:
        await job.defer_async(response_id=response_id, text=text)

    async with app.open_async():

        async def transactional(text):
            async with app.connector.pool.connection() as connection:
                cur = await connection.execute(
                    "INSERT INTO bench_responses (user_id, question_id, answer_text) VALUES (%s, %s, %s) RETURNING response_id",
                    (A.USER_ID, A.QUESTION_ID, text),
                )
                (response_id,) = await cur.fetchone()
                await job.configure(connection=connection).defer_async(response_id=response_id, text=text)
            return A.Stored(response_id, time.monotonic_ns())

        yield transactional if TX else store_then(pool, hand_off)


async def _no_work_here(response_id: int, text: str) -> None:
    """What the producer knows of the job: its name and what it takes."""


async def _work(settings: Settings) -> None:
    app = _app(settings)
    async with open_scoring(settings) as scoring:

        async def score(response_id: int, text: str) -> None:
            await scoring.score(response_id, text)

        app.task(name=JOB)(score)
        async with app.open_async():
            # It says nothing when it listens; half a second is plenty.
            asyncio.get_running_loop().call_later(0.5, ready)
            await app.run_worker_async(
                concurrency=settings.slots or SLOTS,
                delete_jobs="always",  # one statement as well, and the table stays small
            )


def work(settings: Settings) -> None:
    """Run its worker in this process."""
    run(_work(settings))
