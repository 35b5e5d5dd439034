"""Questions of a run: published in one edition after the other, and answers scored again against a new one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sqlalchemy import text

from storage import publish_questions
from storage.dead import rescore_responses
from storage.errors import StorageUnavailableError
from storage.translation import translated
from tests.chaos.terms import LATE_QUESTION, MODULE, POISON, QUESTIONS

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

# Some answers of a question that have scores, but none of this edition. Whoever was asked for before is left out,
# so that nobody is asked for twice: a second score for one edition is then always wrong.
_OUTDATED = text("""
    SELECT r.response_id FROM assessment_responses AS r
    WHERE r.question_id = :question_id
        AND EXISTS (SELECT 1 FROM assessment_scores AS s WHERE s.response_id = r.response_id)
        AND NOT EXISTS (
            SELECT 1 FROM assessment_scores AS s
            WHERE s.response_id = r.response_id AND s.question_digest = :digest
        )
        AND NOT EXISTS (SELECT 1 FROM scoring_handoffs AS h WHERE h.response_id = r.response_id)
    ORDER BY r.response_id LIMIT :limit
""")


# Poisoned answers that are still tried.
_TRIED = text("""
    SELECT h.response_id FROM scoring_handoffs AS h JOIN assessment_responses AS r USING (response_id)
    WHERE h.state = 'open' AND r.answer_text = :answer_text
""")

RETRY_PAUSE_SECONDS = 0.1


class Editions:
    """Publishes and rescores as ops do.

    Args:
        engine: Past the proxies.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        # What was published, in order: the digest, and its edition.
        self.numbers: dict[str, int] = {}
        # Responses that were asked for again, under which digest.
        self.asked: set[tuple[int, str]] = set()

    async def publish(self, *question_ids: str) -> list[str]:
        """Publish the next edition of questions; repeated until PostgreSQL has it.

        Returns:
            Their digests.
        """
        edition = max(self.numbers.values(), default=0) + 1
        questions = [
            {
                "module_slug": MODULE,
                "question_id": question_id,
                "question_text": "Why do leaves look green?",
                "rubric": f"Edition {edition}: full marks for naming the light.",
            }
            for question_id in question_ids
        ]
        while True:
            try:
                with translated():
                    async with self._engine.begin() as conn:
                        published = await publish_questions(conn, questions)
            except StorageUnavailableError:
                await asyncio.sleep(RETRY_PAUSE_SECONDS)
                continue
            digests = [str(row["question_digest"]) for row in published]
            self.numbers |= dict.fromkeys(digests, edition)
            return digests

    async def publish_all(self) -> None:
        """Publish every question, so that nothing waits as unpublished."""
        await self.publish(*QUESTIONS, LATE_QUESTION)

    async def rescore(self, question_id: str, limit: int) -> list[tuple[int, str]]:
        """Publish a new edition of a question and have some of its answers scored against it.

        Returns:
            Responses and the digest against which each shall get a score.
        """
        [digest] = await self.publish(question_id)
        outdated = {"question_id": question_id, "digest": digest, "limit": limit}
        try:
            with translated():
                async with self._engine.begin() as conn:
                    found = [int(each) for each in (await conn.execute(_OUTDATED, outdated)).scalars()]
                    found = await rescore_responses(conn, response_ids=found)
        except StorageUnavailableError:
            # Perhaps it was committed, perhaps not: nothing is owed, and asking again might score twice.
            return []
        asked = [(response_id, digest) for response_id in found]
        self.asked.update(asked)
        return asked

    async def mend(self, poison: str) -> None:
        """Have answers of a kind asked at once, against the editions of now, with nothing held against them."""
        async with self._engine.begin() as conn:
            tried = (await conn.execute(_TRIED, {"answer_text": POISON + poison})).scalars()
            await rescore_responses(conn, response_ids=list(tried), lane="live")
