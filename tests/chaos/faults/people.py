"""What people and their machines do at the worst moment: producers die, questions change, answers are rescored."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sqlalchemy import text

from tests.chaos.faults.base import SLACK_SECONDS, START_SECONDS, Fault
from tests.chaos.terms import (
    CALL_LONGEST_SECONDS,
    LATE_QUESTION,
    PRODUCERS,
    QUESTIONS,
    SWEEP_SECONDS,
)

if TYPE_CHECKING:
    import random

    from tests.chaos.arena import Arena
    from tests.chaos.ledger import Asked

MID_SUBMIT_ANSWERS = 200
RESCORED_ANSWERS = 60

_MISSING = text("""
    SELECT count(*) FROM unnest(CAST(:response_ids AS bigint[])) AS asked (response_id)
    WHERE NOT EXISTS (
        SELECT 1 FROM assessment_scores AS s
        WHERE s.response_id = asked.response_id AND s.question_digest = :digest
    )
""")
_SCORED_AGAINST = text("SELECT count(*) FROM assessment_scores WHERE question_digest = :digest")


class ProducerKilled(Fault):
    """A web process dies with answers half submitted; its students press the button again."""

    name = "producer killed in mid-submit"
    victim = "producer"
    recovery = "every answer that it had begun is acknowledged to its successor"
    bound_seconds = START_SECONDS + SLACK_SECONDS
    usual_seconds = 3.0

    def __init__(self, draw: random.Random) -> None:
        super().__init__(draw)
        self._index = self.draw.randrange(PRODUCERS)
        # Anywhere between the first statement and the last acknowledgement of the burst.
        self._pause_seconds = self.draw.uniform(0.005, 0.1)
        self._begun: list[Asked] = []

    @property
    def target(self) -> str:
        return f"producer {self._index}"

    async def begin(self, arena: Arena) -> None:
        arena.crowd.order(f"burst {MID_SUBMIT_ANSWERS}", self._index)
        await asyncio.sleep(self._pause_seconds)
        self._begun = await arena.crowd.kill(self._index)

    async def recovered(self, arena: Arena, *, since: float) -> float:  # noqa: ARG002 - every fault's
        begun = {asked.key for asked in self._begun}

        async def acknowledged() -> bool:
            return not begun & {asked.key for asked in arena.crowd.unfinished(self._index)}

        return await arena.observer.until(acknowledged)


class EditionPublished(Fault):
    """All questions change while answers to them are on their way."""

    name = "new edition published"
    victim = "questions"
    recovery = "an answer is scored against it"
    bound_seconds = SWEEP_SECONDS + CALL_LONGEST_SECONDS + SLACK_SECONDS
    usual_seconds = 2.0

    _digests: tuple[str, ...] = ()

    async def begin(self, arena: Arena) -> None:
        self._digests = tuple(await arena.editions.publish(*QUESTIONS, LATE_QUESTION))

    async def recovered(self, arena: Arena, *, since: float) -> float:  # noqa: ARG002 - every fault's
        async def scored() -> bool:
            rows = await arena.observer.rows(_SCORED_AGAINST, digest=self._digests[0])
            return bool(rows[0]["count"])

        return await arena.observer.until(scored)


class AnswersRescored(Fault):
    """An educator mends a rubric and asks for new scores, in the bulk lane."""

    name = "answers rescored"
    victim = "questions"
    recovery = "all of them have a score against the new edition"
    bound_seconds = SWEEP_SECONDS + 2 * CALL_LONGEST_SECONDS + SLACK_SECONDS
    usual_seconds = 3.0

    def __init__(self, draw: random.Random) -> None:
        super().__init__(draw)
        self._question = self.draw.choice(QUESTIONS)
        self._asked: list[tuple[int, str]] = []

    @property
    def target(self) -> str:
        return self._question

    async def begin(self, arena: Arena) -> None:
        self._asked = await arena.editions.rescore(self._question, RESCORED_ANSWERS)

    async def recovered(self, arena: Arena, *, since: float) -> float:
        async def scored() -> bool:
            given = {"response_ids": [response_id for response_id, _ in self._asked]}
            rows = await arena.observer.rows(_MISSING, **given, digest=self._asked[0][1])
            return not rows[0]["count"]

        return await arena.observer.until(scored) if self._asked else since
