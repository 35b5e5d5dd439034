"""What every peer's job does."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from benchmarks.peers.stacks import Stack, open_stack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.peers.settings import Settings

# More connections did not make scores quicker on a small machine; all commits wait for the same disk.
WORKER_CONNECTIONS = 12


class Scoring:
    """Writes down that it began, takes its time, stores one score."""

    def __init__(self, stack: Stack, settings: Settings) -> None:
        self._stack = stack
        self._seconds = settings.scorer_seconds
        self._starts = (
            os.open(settings.starts, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            if settings.starts
            else None
        )

    async def score(self, response_id: int, answer_text: str) -> None:
        """Score one answer, whose text came with the message or is read now."""
        if not self._stack.carries_text:
            answer_text = await self._stack.read(response_id)
        if self._starts is not None:
            os.write(self._starts, b"%d %d\n" % (response_id, time.monotonic_ns()))
        if not answer_text:
            raise ValueError(answer_text)  # a scorer without an answer would be no scorer
        if self._seconds:
            await asyncio.sleep(self._seconds)
        await self._stack.score(response_id)


@asynccontextmanager
async def open_scoring(settings: Settings) -> AsyncIterator[Scoring]:
    """Open the worker's own way to the database."""
    async with open_stack(settings, connections=WORKER_CONNECTIONS) as stack:
        yield Scoring(stack, settings)
