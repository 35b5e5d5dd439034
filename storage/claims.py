"""Claims: what a student answered anonymously becomes the signed-in user's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from storage.translation import translated
from storage.validation import checked_token, checked_user_id

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncConnection

# First half of the advisory lock's key; the second half is the user. Any number, but always this one.
_CLAIM_LOCK_SPACE = 0x5C1A

# Store the request of the auth system; it survives everything that may happen to its announcement.
_REQUEST = text("""
    INSERT INTO assessment_claims (anonymous_token, user_id)
    VALUES (:anonymous_token, :user_id)
    RETURNING claim_id
""")

# Let the claims for one user pass one by one. A statement of its own: the next one's snapshot must be
# younger than the end of the claim before it, or both would move a first answer to the same question.
_TAKE_TURN = text("""
    SELECT pg_advisory_xact_lock(:space, user_id)
    FROM assessment_claims WHERE claim_id = :claim_id AND applied_at IS NULL
""")

# Move the drafts that lie under the token now, except where the user has a draft of his own for that question, or an
# answer. Before the answers, so that an anonymous answer to the question does not make the user somebody who has
# answered. A draft that was submitted is of no use to anybody.
# A user who saves a draft of his own at this very moment lets the unique index refuse ours: the claim is tried again.
_MOVE_DRAFTS = text("""
    WITH claim AS MATERIALIZED (
        SELECT anonymous_token, user_id FROM assessment_claims
        WHERE claim_id = :claim_id AND applied_at IS NULL
        FOR UPDATE
    ), lying AS MATERIALIZED (
        SELECT d.draft_id, claim.user_id,
            EXISTS (
                SELECT 1 FROM assessment_responses AS r WHERE r.submission_key = d.submission_key
            ) AS submitted,
            EXISTS (
                SELECT 1 FROM assessment_responses AS own
                WHERE own.user_id = claim.user_id
                    AND own.question_id = d.question_id AND own.module_slug = d.module_slug
            ) OR EXISTS (
                SELECT 1 FROM assessment_drafts AS own
                WHERE own.user_id = claim.user_id
                    AND own.question_id = d.question_id AND own.module_slug = d.module_slug
            ) AS stays
        FROM claim JOIN assessment_drafts AS d ON d.anonymous_token = claim.anonymous_token
        ORDER BY d.draft_id
        FOR UPDATE OF d
    ), forgotten AS (
        DELETE FROM assessment_drafts AS d USING lying WHERE d.draft_id = lying.draft_id AND lying.submitted
    )
    UPDATE assessment_drafts AS d SET user_id = lying.user_id, anonymous_token = NULL
    FROM lying WHERE d.draft_id = lying.draft_id AND NOT lying.submitted AND NOT lying.stays
""")

# Move what lies under the token now, except answers to questions that the user has answered.
# NO KEY UPDATE: a score that is being written refers to the response and must not wait for us.
_APPLY = text("""
    WITH claim AS MATERIALIZED (
        SELECT claim_id, anonymous_token, user_id FROM assessment_claims
        WHERE claim_id = :claim_id AND applied_at IS NULL
        FOR UPDATE
    ), lying AS MATERIALIZED (
        SELECT r.response_id, claim.user_id, EXISTS (
            SELECT 1 FROM assessment_responses AS own
            WHERE own.user_id = claim.user_id
                AND own.question_id = r.question_id AND own.module_slug = r.module_slug
        ) AS answered
        FROM claim JOIN assessment_responses AS r ON r.anonymous_token = claim.anonymous_token
        ORDER BY r.response_id
        FOR NO KEY UPDATE OF r
    ), moved AS (
        UPDATE assessment_responses AS r SET user_id = lying.user_id, anonymous_token = NULL
        FROM lying WHERE r.response_id = lying.response_id AND NOT lying.answered
        RETURNING r.response_id
    )
    UPDATE assessment_claims AS c SET
        applied_at = clock_timestamp(),
        moved = (SELECT count(*) FROM moved),
        skipped = (SELECT count(*) FROM lying WHERE answered)
    FROM claim WHERE c.claim_id = claim.claim_id
    RETURNING c.claim_id, c.user_id, c.moved, c.skipped
""")

# Which requests nobody has applied yet, oldest first.
_REQUESTED = text("""
    SELECT claim_id FROM assessment_claims
    WHERE applied_at IS NULL AND requested_at <= statement_timestamp() - make_interval(secs => :age_seconds)
    ORDER BY claim_id LIMIT :limit
""")


async def request_claim(conn: AsyncConnection, *, anonymous_token: str | UUID, user_id: int) -> int:
    """Store a claim, to be applied by a worker.

    Args:
        conn: The caller's connection; nothing is committed here.
        anonymous_token: The secret under which the student answered.
        user_id: Whose the answers shall be.

    Returns:
        The ``claim_id``.

    Raises:
        InvalidInputError: The token or the user id cannot be stored.
        UnknownUserError: There is no such user.
    """
    given = {"anonymous_token": checked_token(anonymous_token), "user_id": checked_user_id(user_id)}
    with translated():
        return int((await conn.execute(_REQUEST, given)).scalar_one())


async def apply_claim(conn: AsyncConnection, claim_id: int) -> dict[str, Any] | None:
    """Apply one stored claim: move the answers and drafts that lie under its token now.

    A draft stays where the user has a draft or an answer of his own. Applying a claim again does nothing. Claims for one user wait for each other until the caller's transaction
    ends, so keep it short.

    Args:
        conn: The caller's connection, in READ COMMITTED (PostgreSQL's default); nothing is committed here.
        claim_id: Which claim.

    Returns:
        ``claim_id``, ``user_id``, and how many answers were ``moved`` and ``skipped``; None where it was applied
        before or is unknown.

    Raises:
        StorageUnavailableError: PostgreSQL is away, or the user was saving a draft of the same question (then
            StorageBusyError): trying again, in a new transaction, is safe.
    """
    with translated():
        await conn.execute(_TAKE_TURN, {"space": _CLAIM_LOCK_SPACE, "claim_id": claim_id})
        await conn.execute(_MOVE_DRAFTS, {"claim_id": claim_id})
        row = (await conn.execute(_APPLY, {"claim_id": claim_id})).mappings().one_or_none()
    return None if row is None else dict(row)


async def claim_assessment_responses(
    conn: AsyncConnection, *, anonymous_token: str | UUID, user_id: int
) -> int:
    """Move what lies under an anonymous token to a user, in the caller's transaction.

    Answers to questions which the user has already answered stay where they are, and so do drafts of questions of
    which he has a draft or an answer, and whatever arrives later under the same token, until the next claim. Safe when
    run twice or by several at once. The web app's database role may not do this: it calls ``producer.claim``, and a
    worker does the rest.

    Args:
        conn: The caller's connection, in READ COMMITTED; nothing is committed here.
        anonymous_token: The secret under which the student answered.
        user_id: Whose the answers shall be.

    Returns:
        How many responses were moved.

    Raises:
        InvalidInputError: The token or the user id cannot be stored.
        UnknownUserError: There is no such user.
    """
    claim_id = await request_claim(conn, anonymous_token=anonymous_token, user_id=user_id)
    applied = await apply_claim(conn, claim_id)
    return 0 if applied is None else int(applied["moved"])


async def requested_claims(conn: AsyncConnection, *, age_seconds: float = 0.0, limit: int = 100) -> list[int]:
    """List claims that nobody has applied.

    Args:
        conn: The caller's connection.
        age_seconds: Only those that were requested at least so long ago.
        limit: At most so many, oldest first.

    Returns:
        Their ``claim_id``.
    """
    with translated():
        result = await conn.execute(_REQUESTED, {"age_seconds": age_seconds, "limit": limit})
        return [int(claim_id) for claim_id in result.scalars()]
