"""Procrastinate: jobs in PostgreSQL, through psycopg."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from procrastinate import App, PsycopgConnector

from benchmarks.peers.contract import Stored
from benchmarks.peers.measurements import PRODUCER_CONNECTIONS
from benchmarks.peers.processes import ready, run
from benchmarks.peers.scoring import open_scoring
from benchmarks.peers.stacks import QUESTION_ID, USER_ID

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.peers.contract import Submit
    from benchmarks.peers.settings import Settings
    from benchmarks.peers.stacks import Stack

JOB = "score"
# 1 by default; these jobs wait for the network.
SLOTS = 100
# 4 by default. More only let more jobs be finished at once, in the way of fetching the next one.
WORKER_CONNECTIONS = 6

_INSTALLED = "SELECT to_regclass('procrastinate_jobs') IS NOT NULL AS installed"
# As in answers.py, with psycopg's placeholders.
_INSERT_RESPONSE = """
    INSERT INTO bench_responses (user_id, question_id, answer_text) VALUES (%s, %s, %s) RETURNING response_id
"""


def _app(settings: Settings, *, connections: int) -> Any:
    return App(
        connector=PsycopgConnector(conninfo=settings.database_url, min_size=connections, max_size=connections)
    )


async def prepare(settings: Settings) -> None:
    """Install its schema where it is missing."""
    app = _app(settings, connections=1)
    async with app.open_async():
        if not (await app.connector.execute_query_one_async(_INSTALLED))["installed"]:
            await app.schema_manager.apply_schema_async()


@asynccontextmanager
async def submitting(settings: Settings, stack: Stack) -> AsyncIterator[Submit]:
    """Store and defer in one transaction, as its documentation does it: one commit, and quicker than two.

    It takes psycopg's connections only, so the answer goes through its own pool, whatever the stack.
    """
    app = _app(settings, connections=PRODUCER_CONNECTIONS)
    job = app.task(name=JOB)(_no_work_here)

    async def submit(text: str) -> Stored:
        carried = text if stack.carries_text else ""
        async with app.connector.pool.connection() as connection:
            cursor = await connection.execute(_INSERT_RESPONSE, (USER_ID, QUESTION_ID, text))
            (response_id,) = await cursor.fetchone()
            await job.configure(connection=connection).defer_async(response_id=response_id, text=carried)
            await connection.commit()
            return Stored(response_id, time.monotonic_ns())

    async with app.open_async():
        yield submit


async def _no_work_here(response_id: int, text: str) -> None:
    """What the producer knows of the job: its name and what it takes."""


async def _work(settings: Settings) -> None:
    app = _app(settings, connections=WORKER_CONNECTIONS)
    async with open_scoring(settings) as scoring:

        async def score(response_id: int, text: str) -> None:
            await scoring.score(response_id, text)

        app.task(name=JOB)(score)
        async with app.open_async():
            # It says nothing when it listens, which is the default; half a second is plenty.
            asyncio.get_running_loop().call_later(0.5, ready)
            await app.run_worker_async(
                concurrency=settings.slots or SLOTS,
                delete_jobs="always",  # as cheap as marking it done, and the table stays small
            )


def work(settings: Settings) -> None:
    """Run its worker in this process."""
    run(_work(settings))
