"""Questions by digest. Their content never changes, so a copy is as good as the row."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from storage.questions import get_questions
from worker.scorers.protocol import Dimension, Question

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy.ext.asyncio import AsyncEngine

# A few kilobytes each: some tens of megabytes at most.
CAPACITY = 5_000


def question_from_row(row: Mapping[str, Any]) -> Question:
    """Take over a row of ``assessment_questions``."""
    return Question(
        digest=row["question_digest"],
        module_slug=row["module_slug"],
        question_id=row["question_id"],
        question_text=row["question_text"],
        rubric=row["rubric"],
        scale_min=row["scale_min"],
        scale_max=row["scale_max"],
        dimensions=tuple(Dimension(item["name"], item.get("description", "")) for item in row["dimensions"]),
        reference_answer=row["reference_answer"],
        learning_outcome_name=row["learning_outcome_name"],
    )


class QuestionCache:
    """Keeps the questions that were needed last."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._questions: OrderedDict[str, Question] = OrderedDict()

    async def get(self, digests: Iterable[str]) -> dict[str, Question]:
        """Get these questions, reading those that are not here yet in one statement.

        Raises:
            StorageUnavailableError: PostgreSQL is away.
        """
        wanted = set(digests)
        if missing := [digest for digest in wanted if digest not in self._questions]:
            async with self._engine.connect() as conn:
                rows = await get_questions(conn, missing)
            self._questions.update((row["question_digest"], question_from_row(row)) for row in rows)
        found = {digest: self._questions[digest] for digest in wanted if digest in self._questions}
        for digest in found:
            self._questions.move_to_end(digest)
        while len(self._questions) > CAPACITY:
            self._questions.popitem(last=False)
        return found
