"""All that is stored about one student: counted, or read out row by row.

What lies under a token that this user alone has claimed counts as his: a claim leaves answers there to questions that
he had answered already. What lies under a token that somebody else has claimed as well may be the other's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from storage.rows import as_dicts
from storage.translation import translated
from storage.validation import checked_owner

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncConnection

FORMAT = 1
"""Of what is read out; changes when a reader must."""

# The tokens that he has claimed, and whether somebody else has too.
_TOKENS = text("""
    SELECT mine.anonymous_token, EXISTS (
        SELECT 1 FROM assessment_claims AS other
        WHERE other.anonymous_token = mine.anonymous_token AND other.user_id <> :user_id
    ) AS shared
    FROM (SELECT DISTINCT anonymous_token FROM assessment_claims WHERE user_id = :user_id) AS mine
    ORDER BY mine.anonymous_token
""")

_HIS = "{row}.user_id = CAST(:user_id AS integer) OR {row}.anonymous_token = ANY (CAST(:tokens AS text[]))"
_RESPONSES = f"(SELECT r.response_id FROM assessment_responses AS r WHERE {_HIS.format(row='r')})"

# How much there is, by table.
_COUNT = text(f"""
    WITH his AS MATERIALIZED {_RESPONSES}
    SELECT
        (SELECT count(*) FROM his) AS assessment_responses,
        (SELECT count(*) FROM his JOIN assessment_scores USING (response_id)) AS assessment_scores,
        (SELECT count(*) FROM his JOIN scoring_handoffs USING (response_id)) AS scoring_handoffs,
        (SELECT count(*) FROM assessment_drafts AS d WHERE {_HIS.format(row="d")}) AS assessment_drafts,
        (SELECT count(*) FROM assessment_claims AS c WHERE {_HIS.format(row="c")}) AS assessment_claims
""")

# Every row is written as it stands, without tokens and without what only concerns machines. In the order in which a
# reader needs them: answers, what became of them, drafts, claims, and what was done at his request.
_READ = {
    "response": text(f"""
        SELECT r.response_id, r.module_slug, r.question_id, r.learning_outcome_id, r.content_id, r.answer_text,
            r.answer_metadata, r.submission_key, r.question_digest, r.created_at, r.user_id IS NULL AS anonymous
        FROM assessment_responses AS r WHERE {_HIS.format(row="r")} ORDER BY r.response_id
    """),
    "score": text(f"""
        SELECT s.score_id, s.response_id, s.question_digest, s.model_id, s.prompt_version, s.score_data, s.picked_up_at,
            s.created_at
        FROM assessment_scores AS s JOIN {_RESPONSES} AS his USING (response_id) ORDER BY s.response_id, s.score_id
    """),
    "handoff": text(f"""
        SELECT h.response_id, h.question_digest, h.lane, h.state, h.due_at, h.attempts, h.postponements, h.lease_losses,
            h.last_error, h.last_error_at, h.created_at
        FROM scoring_handoffs AS h JOIN {_RESPONSES} AS his USING (response_id) ORDER BY h.response_id
    """),
    "draft": text(f"""
        SELECT d.module_slug, d.question_id, d.answer_text, d.submission_key, d.created_at, d.saved_at
        FROM assessment_drafts AS d WHERE {_HIS.format(row="d")} ORDER BY d.draft_id
    """),
    "claim": text(f"""
        SELECT c.claim_id, c.requested_at, c.applied_at, c.moved, c.skipped
        FROM assessment_claims AS c WHERE {_HIS.format(row="c")} ORDER BY c.claim_id
    """),
    # What was done at his request, or to answers of his that the record names. Without the actor's name, which is
    # somebody else's, and without the numbers of others' answers.
    "action": text(f"""
        SELECT a.acted_at, a.action, a.affected, coalesce(named.response_ids, '{{}}') AS response_ids
        FROM scoring_actions AS a LEFT JOIN (
            SELECT each.action_id, array_agg(his.response_id ORDER BY his.response_id) AS response_ids
            FROM scoring_actions AS each CROSS JOIN LATERAL jsonb_array_elements_text(
                CASE WHEN jsonb_typeof(each.details -> 'response_ids') = 'array'
                    THEN each.details -> 'response_ids' ELSE '[]' END
            ) AS named (id) JOIN {_RESPONSES} AS his ON his.response_id = CAST(named.id AS bigint)
            GROUP BY each.action_id
        ) AS named USING (action_id)
        WHERE a.details -> 'user_id' = to_jsonb(CAST(:user_id AS integer)) OR named.response_ids IS NOT NULL
        ORDER BY a.action_id
    """),
}

# One snapshot for all that follows, and longer than a statement's patience for whoever reads us through a pager.
_SNAPSHOT = text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
_PATIENCE = text("SET LOCAL idle_in_transaction_session_timeout = '15min'")


# An answer is some kilobytes.
_FETCHED_ROWS = 200


@dataclass(frozen=True, slots=True, repr=False)
class Student:
    """Who it is about: a user with the tokens that only he has claimed, or an anonymous student's token."""

    user_id: int | None
    tokens: tuple[str, ...]
    shared_tokens: int = 0

    @property
    def given(self) -> dict[str, Any]:
        """For the statements."""
        return {"user_id": self.user_id, "tokens": list(self.tokens)}


async def find_student(
    conn: AsyncConnection, *, user_id: int | None = None, anonymous_token: str | UUID | None = None
) -> Student:
    """Find under which names a student has left something.

    Args:
        conn: The caller's connection.
        user_id: The student; exactly one of this and ``anonymous_token``.
        anonymous_token: The anonymous student's secret.

    Returns:
        Whom :func:`count_holdings` and :func:`read_holdings` take. ``shared_tokens`` says how many tokens he has
        claimed that somebody else has claimed as well; those are left out.

    Raises:
        InvalidInputError: Both or neither identity, or one that cannot be.
    """
    owner = checked_owner(user_id, anonymous_token)
    if owner.anonymous_token is not None:
        return Student(None, (owner.anonymous_token,))
    with translated():
        rows = list(as_dicts(await conn.execute(_TOKENS, {"user_id": owner.user_id})))
    mine = tuple(row["anonymous_token"] for row in rows if not row["shared"])
    return Student(owner.user_id, mine, len(rows) - len(mine))


async def count_holdings(conn: AsyncConnection, student: Student) -> dict[str, int]:
    """Count what is stored about a student, by table."""
    with translated():
        [row] = as_dicts(await conn.execute(_COUNT, student.given))
    return row


async def begin_snapshot(conn: AsyncConnection) -> None:
    """Let all that is read in this transaction be of one moment, and nothing be written in it. Call it first."""
    with translated():
        await conn.execute(_SNAPSHOT)
        await conn.execute(_PATIENCE)


async def read_holdings(conn: AsyncConnection, student: Student) -> AsyncGenerator[dict[str, Any]]:
    """Read all that is stored about a student, row by row, through a cursor: however much it is, little is in memory.

    Args:
        conn: The caller's connection, after :func:`begin_snapshot`.
        student: Who.

    Yields:
        A mapping for each row: ``record`` says what it is (response, score, handoff, draft, claim, action), the rest are
        the row's columns. No token is among them.
    """
    for record, statement in _READ.items():
        with translated():
            result = (await conn.stream(statement, student.given)).mappings()
        try:
            while True:
                # Whatever the reader raises while he has a row is none of ours to translate.
                with translated():
                    rows = await result.fetchmany(_FETCHED_ROWS)
                for row in rows:
                    yield {"record": record, **row}
                if not rows:
                    break
        finally:
            await result.close()
