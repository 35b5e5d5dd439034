"""Erasure: nothing of a student stays, and nobody who works on his answers meanwhile is harmed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from storage.translation import translated
from storage.validation import checked_owner

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncConnection

# Erase his claims, each with the token that was his secret. First, because whoever applies a claim holds its row:
# he is waited for, and what he moves is seen below; one who comes later finds nothing to apply.
_FORGET_CLAIMS = text("""
    DELETE FROM assessment_claims
    WHERE user_id = CAST(:user_id AS integer) OR anonymous_token = CAST(:anonymous_token AS text)
""")

# What is his now. What follows is about these, whoever owns them then: a claim that moves one meanwhile, or an
# answer that comes meanwhile, must not be met halfway.
_OWNED = text("""
    SELECT response_id FROM assessment_responses
    WHERE user_id = CAST(:user_id AS integer) OR anonymous_token = CAST(:anonymous_token AS text)
    ORDER BY response_id
""")

# His drafts now; whoever owns them then, they go as the answers do.
_DRAFTED = text("""
    SELECT draft_id FROM assessment_drafts
    WHERE user_id = CAST(:user_id AS integer) OR anonymous_token = CAST(:anonymous_token AS text)
""")

# Before the responses, and in the order in which claims lock them.
_FORGET_DRAFTS = text("""
    WITH locked AS MATERIALIZED (
        SELECT draft_id FROM assessment_drafts WHERE draft_id = ANY (CAST(:draft_ids AS bigint[]))
        ORDER BY draft_id FOR UPDATE
    )
    DELETE FROM assessment_drafts AS d USING locked WHERE d.draft_id = locked.draft_id
""")

# Handoffs before scores: a settlement that holds one is waited for, and the next statement sees its score; one that
# comes later finds no handoff and writes nothing. Joined by the response, because a rescore that was waited for has
# given its handoff another identity.
_FORGET_HANDOFFS = text("""
    WITH locked AS MATERIALIZED (
        SELECT handoff_id, response_id FROM scoring_handoffs
        WHERE response_id = ANY (CAST(:response_ids AS bigint[]))
        ORDER BY handoff_id FOR UPDATE
    )
    DELETE FROM scoring_handoffs AS h USING locked WHERE h.response_id = locked.response_id
""")

_FORGET_SCORES = text(
    "DELETE FROM assessment_scores WHERE response_id = ANY (CAST(:response_ids AS bigint[]))"
)

# In the order of the ids, in which claims and rescores lock responses. To lock them first would need a privilege to
# change answers. A handoff that a rescore has inserted meanwhile goes with its response.
_FORGET_RESPONSES = text("""
    DELETE FROM assessment_responses AS r
    USING (SELECT unnest(CAST(:response_ids AS bigint[])) AS response_id ORDER BY 1) AS erased
    WHERE r.response_id = erased.response_id
""")


async def erase_responses(
    conn: AsyncConnection, *, user_id: int | None = None, anonymous_token: str | UUID | None = None
) -> dict[str, int]:
    """Erase everything that is stored about a student: answers, drafts, scores, handoffs and claims.

    A score that is on its way for one of the answers is dropped when it comes. An answer that is submitted while
    this runs either goes too or stays whole, and so it is with an answer that is claimed meanwhile. Erasing again
    finds nothing, or what has come since.

    What a claim left under its token, because the user had answered those questions already, belongs to the token:
    to erase that too, erase each token in the user's ``assessment_claims`` before the user.

    Args:
        conn: The caller's connection, in a READ COMMITTED transaction; nothing is committed here.
        user_id: The student; exactly one of this and ``anonymous_token``.
        anonymous_token: The anonymous student's secret.

    Returns:
        How many rows were deleted, by table.

    Raises:
        InvalidInputError: Both owners are given, or none, or one that cannot be.
        StorageUnavailableError: PostgreSQL is away, or somebody who works on the same answers was quicker:
            trying again, in a new transaction, is safe.
    """
    owner = checked_owner(user_id, anonymous_token)
    whose = {"user_id": owner.user_id, "anonymous_token": owner.anonymous_token}
    with translated():
        erased = {"assessment_claims": (await conn.execute(_FORGET_CLAIMS, whose)).rowcount}
        which = {"response_ids": list((await conn.execute(_OWNED, whose)).scalars())}
        drafted = {"draft_ids": list((await conn.execute(_DRAFTED, whose)).scalars())}
        erased["assessment_drafts"] = (await conn.execute(_FORGET_DRAFTS, drafted)).rowcount
        erased["scoring_handoffs"] = (await conn.execute(_FORGET_HANDOFFS, which)).rowcount
        erased["assessment_scores"] = (await conn.execute(_FORGET_SCORES, which)).rowcount
        erased["assessment_responses"] = (await conn.execute(_FORGET_RESPONSES, which)).rowcount
    return erased
