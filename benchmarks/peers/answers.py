"""The two tables, and the quickest plain way to write into them: a raw asyncpg pool in autocommit."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import asyncpg

from benchmarks.peers.contract import Stored

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.peers.contract import Submit
    from benchmarks.peers.settings import Settings

USER_ID, QUESTION_ID = 1, "why-leaves-are-green"
# Some 600 characters.
ANSWER_TEXT = "Chlorophyll absorbs red and blue light and reflects the green. " * 10
SCORE_DATA = '{"overall_score": 4.0, "reasoning": "Names what is absorbed and what is reflected."}'
MODEL_ID = "timed"

_TABLES = """
    CREATE TABLE IF NOT EXISTS bench_responses (
        response_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        user_id integer NOT NULL,
        question_id text NOT NULL,
        answer_text text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    );
    CREATE TABLE IF NOT EXISTS bench_scores (
        score_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        response_id bigint NOT NULL,
        score_data jsonb,
        model_id text,
        created_at timestamptz NOT NULL DEFAULT now()
    )
"""

INSERT_RESPONSE = """
    INSERT INTO bench_responses (user_id, question_id, answer_text) VALUES ($1, $2, $3) RETURNING response_id
"""
INSERT_SCORE = "INSERT INTO bench_scores (response_id, score_data, model_id) VALUES ($1, $2, $3)"


async def _keep(_: Any) -> None:
    """What happens to a connection that goes back into the pool: nothing."""


def open_pool(settings: Settings, *, connections: int) -> asyncpg.Pool:
    """A pool whose connections are open before the clock starts.

    Args:
        settings: Say where the database is.
        connections: How many.
    """
    return asyncpg.create_pool(
        settings.database_url,
        min_size=connections,
        max_size=connections,
        # By default every release costs a round trip that resets the session; nobody changes a session here.
        reset=_keep,
    )


async def create_tables(settings: Settings) -> None:
    """Create both tables where they are missing."""
    connection = await asyncpg.connect(settings.database_url)
    try:
        await connection.execute(_TABLES)
    finally:
        await connection.close()


def store_then(pool: asyncpg.Pool, hand_off: Callable[[int, str], Awaitable[object]]) -> Submit:
    """Store an answer, and once it is committed hand it off."""

    async def submit(text: str) -> Stored:
        response_id: int = await pool.fetchval(INSERT_RESPONSE, USER_ID, QUESTION_ID, text)
        committed_ns = time.monotonic_ns()
        await hand_off(response_id, text)
        return Stored(response_id, committed_ns)

    return submit
