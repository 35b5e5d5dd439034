"""What the web role may not hand off, and the ways to try it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage import submit_responses
from storage.settlements import settle_handoffs
from tests.factories import lease, publish, settlement, submission

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection


class Stored:
    """A scored response, an open one, and the contents of two questions, one of them in two editions."""

    def __init__(self, *, scored: int, waiting: int, old: str, current: str, foreign: str) -> None:
        self.names: dict[str, Any] = {
            "scored": scored,
            "waiting": waiting,
            "old": old,
            "current": current,
            "foreign": foreign,
        }
        self.scored, self.waiting = scored, waiting
        self.old, self.current, self.foreign = old, current, foreign

    def written(self, statement: str) -> str:
        """A statement with what is stored written into it."""
        return statement.format(**self.names)


async def store(conn: AsyncConnection) -> Stored:
    """Publish, submit, and score one of two answers."""
    old = await publish(conn, rubric="old")
    foreign = await publish(conn, question_id="easy")
    current = await publish(conn, rubric="new")
    scored, waiting = [row["response_id"] for row in await submit_responses(conn, [submission()] * 2)]
    [held] = await lease(conn, scored)
    assert await settle_handoffs(conn, [settlement(held)])
    return Stored(scored=scored, waiting=waiting, old=old, current=current, foreign=foreign)


# Ways to have a response scored again, which the web role must not.
RESCORE = (
    "INSERT INTO scoring_handoffs (response_id, question_digest) VALUES ({scored}, '{current}')",
    "INSERT INTO scoring_handoffs (response_id, question_digest) VALUES ({scored}, '{old}')",
    "INSERT INTO scoring_handoffs (response_id, question_digest) VALUES ({scored}, '{foreign}')",
    "INSERT INTO scoring_handoffs (response_id, due_at) VALUES ({scored}, 'infinity')",
    (
        "INSERT INTO scoring_handoffs (response_id, question_digest)"
        " SELECT response_id, question_digest FROM assessment_scores"
    ),
    (
        "INSERT INTO scoring_handoffs (response_id, question_digest) VALUES ({scored}, '{current}'), ({waiting}, '{current}')"
        " ON CONFLICT (response_id) DO NOTHING"
    ),
    (
        "INSERT INTO scoring_handoffs (response_id, question_digest) VALUES ({waiting}, '{old}')"
        " ON CONFLICT (response_id) DO UPDATE SET question_digest = excluded.question_digest"
    ),
    (
        "INSERT INTO scoring_handoffs (response_id, question_digest) VALUES ({waiting}, '{current}')"
        " ON CONFLICT (response_id) DO UPDATE SET handoff_id = DEFAULT"
    ),
    (
        "MERGE INTO scoring_handoffs AS h USING assessment_scores AS s ON h.response_id = s.response_id"
        " WHEN NOT MATCHED THEN INSERT (response_id, question_digest) VALUES (s.response_id, s.question_digest)"
    ),
    (
        "WITH deleted AS (DELETE FROM scoring_handoffs RETURNING response_id)"
        " INSERT INTO scoring_handoffs (response_id) SELECT response_id FROM deleted"
    ),
    "UPDATE scoring_handoffs SET question_digest = '{old}'",
    "UPDATE scoring_handoffs SET response_id = {scored}",
    "DELETE FROM scoring_handoffs",
)
