"""The two tables, and what every producer does before it hands an answer off."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import asyncpg

from benchmarks.peers.contract import Stored

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.peers.contract import Submit
    from benchmarks.peers.settings import Settings
    from benchmarks.peers.stacks import Stack

# Some 600 characters.
ANSWER_TEXT = "Chlorophyll absorbs red and blue light and reflects the green. " * 10

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


async def create_tables(settings: Settings) -> None:
    """Create both tables where they are missing."""
    connection = await asyncpg.connect(settings.database_url)
    try:
        await connection.execute(_TABLES)
    finally:
        await connection.close()


def store_then(stack: Stack, hand_off: Callable[[int, str], Awaitable[object]]) -> Submit:
    """Store an answer, and once it is committed hand it off, with its text where messages carry it."""

    async def submit(answer_text: str) -> Stored:
        response_id = await stack.store(answer_text)
        committed_ns = time.monotonic_ns()
        await hand_off(response_id, answer_text if stack.carries_text else "")
        return Stored(response_id, committed_ns)

    return submit
