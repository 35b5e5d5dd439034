"""The producer's side of every measurement."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from benchmarks.peers.answers import ANSWER_TEXT
from benchmarks.peers.stacks import open_stack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.peers.contract import Queue, Submit
    from benchmarks.peers.settings import Settings

SUBMITTERS = 64
# Fewer than submitters. On a small machine this was as quick as 32 or 64, and for the queues in PostgreSQL quicker.
PRODUCER_CONNECTIONS = 12
POLL_SECONDS = 0.02
# No new score for so long: something is broken, and waiting would not end.
STALLED_SECONDS = 60.0
PAUSE_SECONDS = (0.03, 0.08)
PICKUP_TIMEOUT_SECONDS = 60.0

# The primary key's end, which costs nothing; the count would cost more with every score.
_LAST_SCORE = "SELECT coalesce(max(score_id), 0) FROM bench_scores"
# What is really there, asked once.
_SCORED = "SELECT count(DISTINCT response_id) FROM bench_scores"


class StalledError(RuntimeError):
    """Answers were handed off, but no score came any more."""


@asynccontextmanager
async def producing(queue: Queue, settings: Settings) -> AsyncIterator[Submit]:
    """Open the way to the database and the peer's producer."""
    async with (
        open_stack(settings, connections=PRODUCER_CONNECTIONS) as stack,
        queue.submitting(settings, stack) as submit,
    ):
        yield submit


async def submit_all(submit: Submit, answers: int) -> None:
    """Submit so many answers, 64 at a time."""
    tickets = iter(range(answers))

    async def submitter() -> None:
        for _ in tickets:
            await submit(ANSWER_TEXT)

    async with asyncio.TaskGroup() as group:
        for _ in range(SUBMITTERS):
            group.create_task(submitter())


async def empty_tables(settings: Settings) -> int:
    """Empty both tables.

    Returns:
        The identity that the last score before had; ids go on, so that no run mistakes another's starts for its own.
    """
    connection = await asyncpg.connect(settings.database_url)
    try:
        last: int = await connection.fetchval(_LAST_SCORE)
        await connection.execute("TRUNCATE bench_responses, bench_scores")
    finally:
        await connection.close()
    return last


async def all_scored(settings: Settings, *, answers: int, baseline: int) -> None:
    """Wait until so many answers have a score.

    Raises:
        StalledError: No score came for a minute.
    """
    connection = await asyncpg.connect(settings.database_url)
    try:
        seen, changed = baseline, time.monotonic()
        while True:
            last = await connection.fetchval(_LAST_SCORE)
            if last - baseline >= answers and await connection.fetchval(_SCORED) >= answers:
                return
            if last > seen:
                seen, changed = last, time.monotonic()
            elif time.monotonic() - changed > STALLED_SECONDS:
                raise StalledError(f"{seen - baseline} of {answers} scores came, then none for a minute.")
            await asyncio.sleep(POLL_SECONDS)
    finally:
        await connection.close()


async def throughput(queue: Queue, settings: Settings, answers: int) -> dict[str, Any]:
    """Submit so many answers and wait until the last score is stored."""
    baseline = await empty_tables(settings)
    async with producing(queue, settings) as submit:
        began = time.monotonic()
        await submit_all(submit, answers)
        submit_seconds = time.monotonic() - began
        await all_scored(settings, answers=answers, baseline=baseline)
        seconds = time.monotonic() - began
    return {"answers": answers, "submit_seconds": submit_seconds, "seconds": seconds}


async def submit(queue: Queue, settings: Settings, answers: int) -> dict[str, Any]:
    """Submit so many answers and be done when all are handed off. The tables keep what is in them."""
    async with producing(queue, settings) as submit_one:
        began = time.monotonic()
        await submit_all(submit_one, answers)
        return {"answers": answers, "submit_seconds": time.monotonic() - began}


async def pickup(queue: Queue, settings: Settings, answers: int) -> dict[str, Any]:
    """Submit one answer after the other to an idle worker; how long until each job began."""
    if settings.starts is None:
        raise SystemExit("BENCH_STARTS is needed: the same file as for the worker.")
    starts = Path(settings.starts)
    before = len(_content(starts))
    committed: dict[int, int] = {}
    async with producing(queue, settings) as submit_one:
        for _ in range(answers):
            # Pauses of a fixed length could fall in step with a worker that polls.
            await asyncio.sleep(random.uniform(*PAUSE_SECONDS))  # noqa: S311 - no secret
            stored = await submit_one(ANSWER_TEXT)
            committed[stored.response_id] = stored.committed_ns
        began = await _starts_of(starts, before, set(committed))
    return {"pickup_ms": [(began[response_id] - at) / 1e6 for response_id, at in committed.items()]}


def _content(starts: Path) -> bytes:
    """What is in the file; nothing where no job has begun yet."""
    return starts.read_bytes() if starts.exists() else b""


async def _starts_of(starts: Path, offset: int, expected: set[int]) -> dict[int, int]:
    """When each of these jobs began first."""
    deadline = time.monotonic() + PICKUP_TIMEOUT_SECONDS
    while True:
        began: dict[int, int] = {}
        for line in _content(starts)[offset:].splitlines():
            response_id, at = map(int, line.split())
            began.setdefault(response_id, at)
        if expected <= began.keys():
            return began
        if time.monotonic() > deadline:
            raise StalledError(f"{len(expected - began.keys())} of {len(expected)} jobs never began.")
        await asyncio.sleep(POLL_SECONDS)
