"""Dead handoffs: look at them, retry them, dismiss them; and score again what has been scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from storage.errors import InvalidInputError
from storage.settlements import MAX_REASON_CHARS
from storage.translation import translated
from storage.validation import storable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

# Dead answers that one transaction looks at and revives: some hundred milliseconds, and one row in the record of who did
# what.
RETRY_PART = 5_000

# What a person needs to decide, and no answer text.
_LIST = text("""
    SELECT h.handoff_id, h.response_id, h.state, h.lane, r.module_slug, r.question_id, h.question_digest,
        h.attempts, h.postponements, h.lease_losses, h.last_error, h.last_error_at, r.created_at AS submitted_at
    FROM scoring_handoffs AS h JOIN assessment_responses AS r USING (response_id)
    WHERE h.state = ANY (CAST(:states AS text[])) AND h.handoff_id > :after
        AND (CAST(:response_id AS bigint) IS NULL OR h.response_id = :response_id)
    ORDER BY h.handoff_id LIMIT :limit
""")

# Give dead or dismissed handoffs a new life, with nothing held against them.
_RETRY = text("""
    WITH ended AS MATERIALIZED (
        SELECT handoff_id FROM scoring_handoffs
        WHERE state <> 'open'
            AND (CAST(:response_ids AS bigint[]) IS NULL AND state = 'dead' OR response_id = ANY (:response_ids))
            AND (CAST(:reason AS text) IS NULL OR strpos(last_error, :reason) > 0)
            AND (state = 'dead' OR NOT CAST(:only_dead AS boolean))
        ORDER BY handoff_id FOR UPDATE
    )
    UPDATE scoring_handoffs AS h SET
        state = 'open', lease_token = NULL, attempts = 0, postponements = 0, suspicions = 0, lease_losses = 0,
        due_at = CASE WHEN h.question_digest IS NULL THEN 'infinity' ELSE statement_timestamp() END
    FROM ended WHERE h.handoff_id = ended.handoff_id
    RETURNING h.response_id
""")

# The newest that is dead now.
_NEWEST_DEAD = text("SELECT coalesce(max(handoff_id), 0) FROM scoring_handoffs WHERE state = 'dead'")

# Give the next dead handoffs a new life: of a bounded part, those that were dead when it was read and still are.
_RETRY_NEXT = text("""
    WITH part AS MATERIALIZED (
        SELECT handoff_id, last_error FROM scoring_handoffs
        WHERE state = 'dead' AND handoff_id > :after AND handoff_id <= :until
        ORDER BY handoff_id LIMIT :size
    ), locked AS MATERIALIZED (
        SELECT handoff_id FROM scoring_handoffs
        WHERE state = 'dead' AND handoff_id = ANY (ARRAY(
            SELECT handoff_id FROM part WHERE CAST(:reason AS text) IS NULL OR strpos(last_error, :reason) > 0
        ))
        ORDER BY handoff_id FOR UPDATE
    ), revived AS (
        UPDATE scoring_handoffs AS h SET
            state = 'open', lease_token = NULL, attempts = 0, postponements = 0, suspicions = 0, lease_losses = 0,
            due_at = CASE WHEN h.question_digest IS NULL THEN 'infinity' ELSE statement_timestamp() END
        FROM locked WHERE h.handoff_id = locked.handoff_id
        RETURNING h.response_id
    )
    SELECT (SELECT max(handoff_id) FROM part) AS last_handoff_id, ARRAY(SELECT response_id FROM revived) AS response_ids
""")

# Say that nobody will score these.
_DISMISS = text("""
    WITH dead AS MATERIALIZED (
        SELECT handoff_id FROM scoring_handoffs
        WHERE state = 'dead' AND response_id = ANY (CAST(:response_ids AS bigint[]))
        ORDER BY handoff_id FOR UPDATE
    )
    UPDATE scoring_handoffs AS h SET
        state = 'dismissed', last_error = left(h.last_error, :max_chars - length(:note)) || :note
    FROM dead WHERE h.handoff_id = dead.handoff_id
    RETURNING h.response_id
""")


async def list_dead(
    conn: AsyncConnection,
    *,
    response_id: int | None = None,
    include_dismissed: bool = False,
    after_handoff_id: int = 0,
    limit: int = 100,
) -> list[dict[str, Any]]:
    """List handoffs that will not be scored unless somebody acts, oldest first.

    Args:
        conn: The caller's connection.
        response_id: Only the one of this response.
        include_dismissed: Also those that somebody has dismissed.
        after_handoff_id: For the next page, the last ``handoff_id`` of the page before.
        limit: Rows on a page.

    Returns:
        One mapping each, with question, counters, ``last_error`` and ``last_error_at``; no answer text.
    """
    given = {
        "states": ["dead", "dismissed"] if include_dismissed else ["dead"],
        "response_id": response_id,
        "after": after_handoff_id,
        "limit": limit,
    }
    with translated():
        return [dict(row) for row in (await conn.execute(_LIST, given)).mappings()]


async def retry_dead(
    conn: AsyncConnection,
    *,
    response_ids: Sequence[int] | None = None,
    reason: str | None = None,
    only_dead: bool = False,
) -> list[int]:
    """Make dead handoffs due again, with all their attempts.

    Args:
        conn: The caller's connection; nothing is committed here.
        response_ids: Those of these responses, dismissed ones too; None: all that are dead, in this one transaction.
            Where they may be many, use :func:`retry_next_dead`.
        reason: Only those whose reason contains this text.
        only_dead: Leave dismissed ones alone: for whoever saw them dead, and does not know of the dismissal.

    Returns:
        The ``response_id`` of each that was revived.
    """
    given = {
        "response_ids": None if response_ids is None else list(response_ids),
        "reason": reason,
        "only_dead": only_dead,
    }
    with translated():
        return [int(response_id) for response_id in (await conn.execute(_RETRY, given)).scalars()]


async def newest_dead(conn: AsyncConnection) -> int:
    """Find where the dead end now: the highest ``handoff_id`` of them, 0 where nothing is dead."""
    with translated():
        return int((await conn.execute(_NEWEST_DEAD)).scalar_one())


async def retry_next_dead(
    conn: AsyncConnection, *, after_handoff_id: int, until_handoff_id: int, reason: str | None = None
) -> tuple[int | None, list[int]]:
    """Make the next part of all that is dead due again. However many are dead, a part takes moments.

    What is revived and dies again keeps its place, so whoever goes from part to part meets nothing twice.

    Args:
        conn: The caller's connection; nothing is committed here.
        after_handoff_id: Where the part before ended; 0 at the beginning.
        until_handoff_id: Where to end: what :func:`newest_dead` said at the beginning, so that nobody retries what died
            since.
        reason: Only those whose reason contains this text.

    Returns:
        Where this part ends, None where nothing was left; and the ``response_id`` of each that was revived.
    """
    given = {"after": after_handoff_id, "until": until_handoff_id, "size": RETRY_PART, "reason": reason}
    with translated():
        row = (await conn.execute(_RETRY_NEXT, given)).one()
    return row.last_handoff_id, [int(response_id) for response_id in row.response_ids]


async def dismiss_dead(conn: AsyncConnection, *, response_ids: Sequence[int], dismissed_by: str) -> list[int]:
    """Mark dead handoffs as dealt with: they stay unscored and leave the list.

    Args:
        conn: The caller's connection; nothing is committed here.
        response_ids: Those of these responses; what is not dead is left alone.
        dismissed_by: Who says so; kept with the reason.

    Returns:
        The ``response_id`` of each that was dismissed.

    Raises:
        InvalidInputError: Nobody is named.
    """
    storable("dismissed_by", dismissed_by, max_chars=MAX_REASON_CHARS // 4)
    given = {
        "response_ids": list(response_ids),
        "note": f" (dismissed by {dismissed_by})",
        "max_chars": MAX_REASON_CHARS,
    }
    with translated():
        return [int(response_id) for response_id in (await conn.execute(_DISMISS, given)).scalars()]


# Ask for another score. Over an outstanding handoff it replaces digest and identity, so that a score which
# is on its way for the old one is dropped, and never demotes the lane; the same digest changes nothing.
_RESCORE = text("""
    WITH wanted AS MATERIALIZED (
        SELECT r.response_id, coalesce(
            (
                SELECT q.question_digest FROM assessment_questions AS q
                WHERE q.module_slug = r.module_slug AND q.question_id = r.question_id
                ORDER BY q.publication DESC LIMIT 1
            ),
            r.question_digest
        ) AS question_digest
        FROM assessment_responses AS r WHERE r.response_id = ANY (CAST(:response_ids AS bigint[]))
        ORDER BY r.response_id
    ), locked AS MATERIALIZED (
        SELECT handoff_id FROM scoring_handoffs WHERE response_id = ANY (CAST(:response_ids AS bigint[]))
        ORDER BY handoff_id FOR UPDATE
    )
    INSERT INTO scoring_handoffs AS h (response_id, question_digest, lane, due_at)
    SELECT response_id, question_digest, :lane, statement_timestamp()
    FROM wanted
    WHERE question_digest IS NOT NULL AND (SELECT count(*) FROM locked) >= 0  -- locks first, in everybody's order
    ORDER BY response_id
    ON CONFLICT (response_id) DO UPDATE SET
        handoff_id = DEFAULT, question_digest = excluded.question_digest, state = 'open',
        lane = CASE WHEN h.lane = 'live' AND h.state = 'open' THEN 'live' ELSE excluded.lane END,
        due_at = statement_timestamp(), lease_token = NULL, leased_at = NULL,
        attempts = 0, postponements = 0, suspicions = 0, lease_losses = 0
    WHERE h.state <> 'open' OR h.question_digest IS DISTINCT FROM excluded.question_digest
    RETURNING response_id
""")


async def rescore_responses(
    conn: AsyncConnection, *, response_ids: Sequence[int], lane: str = "bulk"
) -> list[int]:
    """Ask for a new score of responses, against the question as it is published now.

    The scores they have stay; the new one becomes the current one. Responses whose question was never
    published are left alone.

    Args:
        conn: The caller's connection; nothing is committed here.
        response_ids: Which responses.
        lane: ``bulk`` waits for all live answers, ``live`` does not.

    Returns:
        The ``response_id`` of each that got a new handoff.

    Raises:
        InvalidInputError: No such lane.
    """
    if lane not in {"live", "bulk"}:
        raise InvalidInputError("lane", "expected live or bulk")
    with translated():
        result = await conn.execute(_RESCORE, {"response_ids": list(response_ids), "lane": lane})
        return [int(response_id) for response_id in result.scalars()]
