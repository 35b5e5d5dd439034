"""Dead handoffs by the reason why: what a person looks at, retries or dismisses all at once.

A kind is known by a short digest of its reason, so that no reason has to travel through a URL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from storage.rows import as_dicts
from storage.settlements import MAX_REASON_CHARS
from storage.statistics import COUNT_LIMIT
from storage.translation import translated
from storage.validation import storable

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

KINDS = 20
_KIND = "left(encode(sha256(convert_to(h.last_error, 'UTF8')), 'hex'), 16)"

# The oldest of the dead, by reason; bounded as every count is.
_KINDS = text(f"""
    SELECT {_KIND} AS kind, h.last_error AS reason, count(*) AS answers, min(h.last_error_at) AS first_at,
        max(h.last_error_at) AS last_at, max(h.handoff_id) AS until_handoff_id
    FROM (
        SELECT handoff_id, last_error, last_error_at FROM scoring_handoffs
        WHERE state = 'dead' ORDER BY handoff_id LIMIT {COUNT_LIMIT}
    ) AS h
    GROUP BY h.last_error ORDER BY answers DESC, reason LIMIT :limit
""")

# The dead of one kind, oldest first; no answer text.
_OF_KIND = text(f"""
    SELECT h.handoff_id, h.response_id, h.state, h.lane, r.module_slug, r.question_id, h.question_digest,
        h.attempts, h.postponements, h.lease_losses, h.last_error, h.last_error_at, r.created_at AS submitted_at
    FROM scoring_handoffs AS h JOIN assessment_responses AS r USING (response_id)
    WHERE h.state = 'dead' AND h.handoff_id > :after AND {_KIND} = :kind
    ORDER BY h.handoff_id LIMIT :limit
""")

# How many of a kind there are now, of those that were seen; bounded as what is done to them.
_COUNT_OF_KIND = text(f"""
    SELECT count(*) FROM (
        SELECT 1 FROM scoring_handoffs AS h
        WHERE h.state = 'dead' AND h.handoff_id <= :until AND {_KIND} = :kind LIMIT {COUNT_LIMIT}
    ) AS counted
""")

# What all of a kind were seen to be: none that died since, and no more than one transaction should hold locked.
_CHOSEN = f"""
    SELECT h.handoff_id FROM scoring_handoffs AS h
    WHERE h.state = 'dead' AND h.handoff_id <= :until AND {_KIND} = :kind
    ORDER BY h.handoff_id LIMIT {COUNT_LIMIT} FOR UPDATE
"""

# Give all of a kind a new life, with nothing held against them.
_RETRY = text(f"""
    WITH dead AS MATERIALIZED ({_CHOSEN})
    UPDATE scoring_handoffs AS h SET
        state = 'open', lease_token = NULL, attempts = 0, postponements = 0, suspicions = 0, lease_losses = 0,
        due_at = CASE WHEN h.question_digest IS NULL THEN 'infinity' ELSE statement_timestamp() END
    FROM dead WHERE h.handoff_id = dead.handoff_id
    RETURNING h.response_id
""")

# Say that nobody will score any of a kind.
_DISMISS = text(f"""
    WITH dead AS MATERIALIZED ({_CHOSEN})
    UPDATE scoring_handoffs AS h SET
        state = 'dismissed', last_error = left(h.last_error, {MAX_REASON_CHARS} - length(:note)) || :note
    FROM dead WHERE h.handoff_id = dead.handoff_id
    RETURNING h.response_id
""")

# May this login write down who acted? Whoever may not must not act either.
_MAY_RECORD = text("""
    SELECT has_column_privilege('scoring_actions', 'actor', 'INSERT')
        AND has_column_privilege('scoring_handoffs', 'state', 'UPDATE')
""")


async def dead_kinds(conn: AsyncConnection, *, limit: int = KINDS) -> list[dict[str, Any]]:
    """List the reasons of the oldest 10,000 dead handoffs, the most frequent first.

    Args:
        conn: The caller's connection.
        limit: At most so many reasons.

    Returns:
        ``kind``, ``reason``, ``answers``, ``first_at``, ``last_at`` and ``until_handoff_id`` of each.
    """
    with translated():
        return list(as_dicts(await conn.execute(_KINDS, {"limit": limit})))


async def list_dead_of_kind(
    conn: AsyncConnection, *, kind: str, after_handoff_id: int = 0, limit: int = 100
) -> list[dict[str, Any]]:
    """List the dead of one kind as :func:`storage.dead.list_dead` lists all of them."""
    with translated():
        given = {"kind": kind, "after": after_handoff_id, "limit": limit}
        return list(as_dicts(await conn.execute(_OF_KIND, given)))


async def count_of_kind(conn: AsyncConnection, *, kind: str, until_handoff_id: int) -> int:
    """Tell how many :func:`retry_kind` or :func:`dismiss_kind` would change now."""
    with translated():
        given = {"kind": kind, "until": until_handoff_id}
        return int((await conn.execute(_COUNT_OF_KIND, given)).scalar_one())


async def retry_kind(conn: AsyncConnection, *, kind: str, until_handoff_id: int) -> list[int]:
    """Make all dead of one kind due again, with all their attempts; at most 10,000 at a time.

    Args:
        conn: The caller's connection; nothing is committed here.
        kind: As :func:`dead_kinds` names it.
        until_handoff_id: The last one that was seen; what died since is left alone.

    Returns:
        The ``response_id`` of each that was revived.
    """
    with translated():
        found = await conn.execute(_RETRY, {"kind": kind, "until": until_handoff_id})
        return [int(response_id) for response_id in found.scalars()]


async def dismiss_kind(
    conn: AsyncConnection, *, kind: str, until_handoff_id: int, dismissed_by: str
) -> list[int]:
    """Mark all dead of one kind as dealt with; at most 10,000 at a time.

    Arguments and result as :func:`retry_kind`; who says so is kept with the reason.

    Raises:
        InvalidInputError: The name is blank, too long or no text.
    """
    name = storable("dismissed_by", dismissed_by, max_chars=200)
    with translated():
        given = {"kind": kind, "until": until_handoff_id, "note": f" (dismissed by {name})"}
        return [int(response_id) for response_id in (await conn.execute(_DISMISS, given)).scalars()]


async def may_act(conn: AsyncConnection) -> bool:
    """Tell whether this login may retry and dismiss, and write down who did."""
    with translated():
        return bool((await conn.execute(_MAY_RECORD)).scalar_one())
