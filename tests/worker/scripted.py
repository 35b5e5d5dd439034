"""A scorer that does what a test says, and what a test needs around it."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sqlalchemy import DateTime, Text, cast, select, text

from storage import submit_responses
from storage.tables import handoffs, scores
from tests.factories import publish, submission
from worker.leased import Lease
from worker.scorers.protocol import Answer, Question, Score

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

QUESTION = Question(
    digest="d" * 64, module_slug="biology", question_id="light", question_text="Why?", rubric="Because."
)


def good_score(**changes: Any) -> Score:
    """A score on the scale from 1 to 5."""
    given: dict[str, Any] = {
        "overall_score": 4.0,
        "reasoning": "Names both.",
        "model_id": "scripted",
        "prompt_version": "1",
    }
    return Score(**given | changes)


def a_lease(handoff_id: int = 1, **changes: Any) -> Lease:
    """A lease as a worker holds it."""
    given: dict[str, Any] = {
        "handoff_id": handoff_id,
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        "response_id": handoff_id + 1000,
        "question_digest": QUESTION.digest,
        "lane": "live",
        "lease_token": uuid4(),
        "attempts": 0,
        "postponements": 0,
        "suspicions": 0,
        "lease_losses": 0,
        "answer": Answer(handoff_id + 1000, "light"),
    }
    return Lease(**given | changes)


class ScriptedScorer:
    """Scores at once and well, unless told otherwise.

    ``closed`` keeps every answer waiting inside the scorer until it is opened. ``behaviour`` decides by the
    answer; what it returns is the score, what it raises is the outcome.
    """

    def __init__(self, behaviour: Callable[[Answer], Awaitable[Score]] | None = None) -> None:
        self.behaviour = behaviour
        self.gate = asyncio.Event()
        self.gate.set()
        self.started: Counter[int] = Counter()
        self.running: set[int] = set()
        self.most_at_once = 0
        self.is_closed = False

    def hold(self) -> None:
        """Keep answers waiting from now on."""
        self.gate.clear()

    def let_go(self) -> None:
        """Score what waits."""
        self.gate.set()

    async def score(self, question: Question, answer: Answer) -> Score:  # noqa: ARG002 - the protocol's
        self.started[answer.response_id] += 1
        self.running.add(answer.response_id)
        self.most_at_once = max(self.most_at_once, len(self.running))
        try:
            await self.gate.wait()
            return await self.behaviour(answer) if self.behaviour else good_score()
        finally:
            self.running.discard(answer.response_id)

    async def aclose(self) -> None:
        self.is_closed = True


async def submit_answers(
    engine: AsyncEngine, number: int, *, lane: str = "live", **changes: Any
) -> list[int]:
    """Publish the question and store so many answers to it, due now; nobody is told."""
    async with engine.begin() as conn:
        await publish(conn)
        rows = await submit_responses(conn, [submission(**changes) for _ in range(number)])
        ids = [int(row["response_id"]) for row in rows]
        if lane != "live":
            await conn.execute(handoffs.update().where(handoffs.c.response_id.in_(ids)).values(lane=lane))
    return ids


async def change(engine: AsyncEngine, *response_ids: int, due_at: str | None = None, **columns: Any) -> None:
    """Put handoffs into a state that would take hours to reach; ``due_at`` as PostgreSQL reads it."""
    if due_at is not None:
        columns["due_at"] = cast(due_at, Text).cast(DateTime(timezone=True))
    async with engine.begin() as conn:
        await conn.execute(
            handoffs.update().where(handoffs.c.response_id.in_(response_ids)).values(**columns)
        )


async def read_handoffs(engine: AsyncEngine) -> dict[int, dict[str, Any]]:
    """All handoffs by their response, with ``seconds_to_due``."""
    # An infinite time stamp is beyond Python's; the seconds until then are null for what is never due.
    seconds = text(
        "CASE WHEN isfinite(due_at) THEN extract(epoch FROM due_at - clock_timestamp())::float8 END AS seconds_to_due"
    )
    query = select(*(column for column in handoffs.c if column.name != "due_at"), seconds)
    async with engine.connect() as conn:
        return {row["response_id"]: dict(row) for row in (await conn.execute(query)).mappings()}


async def score_counts(engine: AsyncEngine) -> Counter[int]:
    """How many scores each response has."""
    async with engine.connect() as conn:
        return Counter((await conn.execute(select(scores.c.response_id))).scalars().all())


async def scored_once(engine: AsyncEngine, response_ids: list[int]) -> bool:
    """Whether each of them has exactly one score and no handoff, and nothing else has a score."""
    return await score_counts(engine) == Counter(response_ids) and not await read_handoffs(engine)


@asynccontextmanager
async def in_background(*coroutines: Awaitable[None]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run loops while the block lasts; one that ends by itself fails the test."""

    async def run(loop: Awaitable[None]) -> None:
        await loop

    tasks = [asyncio.create_task(run(loop)) for loop in coroutines]
    try:
        yield tasks
    finally:
        ended = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert not ended, f"a loop ended by itself: {ended}"
