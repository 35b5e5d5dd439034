"""What every peer's job does."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from benchmarks.peers.answers import INSERT_SCORE, MODEL_ID, SCORE_DATA, open_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncpg import Pool

    from benchmarks.peers.settings import Settings

# More connections did not make scores quicker on a small machine; all commits wait for the same disk.
WORKER_CONNECTIONS = 12


class Scoring:
    """Writes down that it began, takes its time, stores one score."""

    def __init__(self, pool: Pool, settings: Settings) -> None:
        self._pool = pool
        self._seconds = settings.scorer_seconds
        self._starts = (
            os.open(settings.starts, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            if settings.starts
            else None
        )

    async def score(self, response_id: int, answer_text: str) -> None:  # noqa: ARG002 - a scorer would read it
        """Score one answer; its text came with the message, so it need not be read again."""
        if self._starts is not None:
            os.write(self._starts, b"%d %d\n" % (response_id, time.monotonic_ns()))
        if self._seconds:
            await asyncio.sleep(self._seconds)
        await self._pool.execute(INSERT_SCORE, response_id, SCORE_DATA, MODEL_ID)


@asynccontextmanager
async def open_scoring(settings: Settings) -> AsyncIterator[Scoring]:
    """Open the worker's own pool for the scores."""
    async with open_pool(settings, connections=WORKER_CONNECTIONS) as pool:
        yield Scoring(pool, settings)
