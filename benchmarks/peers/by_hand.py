"""Both inserts by hand, with no queue and no second process: what the database alone can do."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from benchmarks.peers.answers import ANSWER_TEXT
from benchmarks.peers.measurements import SUBMITTERS, empty_tables
from benchmarks.peers.stacks import MODEL_ID, QUESTION_ID, SCORE_DATA, USER_ID, Stack, open_pool, open_stack

if TYPE_CHECKING:
    from asyncpg import Pool

    from benchmarks.peers.settings import Settings

# Commits that come together share a flush; more of them were no quicker.
CONNECTIONS = 32
ROWS = 500
# While some wait for the disk, the others send.
BATCH_WRITERS = 4

_INSERT_RESPONSES = """
    INSERT INTO bench_responses (user_id, question_id, answer_text)
    SELECT $1, $2, unnest($3::text[]) RETURNING response_id
"""
_INSERT_SCORES = """
    INSERT INTO bench_scores (response_id, score_data, model_id) SELECT unnest($1::bigint[]), $2::jsonb, $3
"""


async def singly(settings: Settings, answers: int) -> dict[str, Any]:
    """64 tasks, each: insert an answer, commit, insert its score, commit."""
    tickets = iter(range(answers))

    async def write(stack: Stack) -> None:
        for _ in tickets:
            await stack.score(await stack.store(ANSWER_TEXT))

    await empty_tables(settings)
    async with open_stack(settings, connections=CONNECTIONS) as stack:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for _ in range(SUBMITTERS):
                group.create_task(write(stack))
        seconds = time.monotonic() - began
    return {"answers": answers, "submit_seconds": seconds, "seconds": seconds}


async def batched(settings: Settings, answers: int) -> dict[str, Any]:
    """Insert 500 answers, commit, insert their 500 scores, commit; with the raw driver, whatever the stack."""
    batches = iter([min(ROWS, answers - start) for start in range(0, answers, ROWS)])

    async def write(pool: Pool) -> None:
        for rows in batches:
            async with pool.acquire() as connection:
                stored = await connection.fetch(_INSERT_RESPONSES, USER_ID, QUESTION_ID, [ANSWER_TEXT] * rows)
                ids = [row["response_id"] for row in stored]
                await connection.execute(_INSERT_SCORES, ids, SCORE_DATA, MODEL_ID)

    await empty_tables(settings)
    async with open_pool(settings, connections=BATCH_WRITERS) as pool:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for _ in range(BATCH_WRITERS):
                group.create_task(write(pool))
        seconds = time.monotonic() - began
    return {"answers": answers, "submit_seconds": seconds, "seconds": seconds}
