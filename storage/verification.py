"""The invariants, checked in the database. Each check counts what breaks one and names a few examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from storage.leases import DUE
from storage.translation import translated

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

# How far back a verification must lie before what it saw counts as verified for good. Together with the
# transaction horizon below this covers a submit that was drawing its id while we looked.
_SETTLING_SECONDS = 60.0

# Where the last verification stopped.
_WATERMARK = text("SELECT * FROM scoring_watermarks WHERE name = 'verify'")

# Remember where this one looked. What was pending becomes verified once every transaction that ran then has
# ended: until then one of them could still commit a response with a lower id.
_ADVANCE = text("""
    INSERT INTO scoring_watermarks AS w (name, verified_response_id, pending_response_id, pending_xid, pending_at)
    VALUES ('verify', 0, :last, pg_snapshot_xmax(pg_current_snapshot())::text::bigint, statement_timestamp())
    ON CONFLICT (name) DO UPDATE SET
        verified_response_id = w.pending_response_id, pending_response_id = excluded.pending_response_id,
        pending_xid = excluded.pending_xid, pending_at = excluded.pending_at
    WHERE pg_snapshot_xmin(pg_current_snapshot())::text::bigint >= w.pending_xid
        AND w.pending_at < statement_timestamp() - make_interval(secs => :settling_seconds)
""")

# The newest response there is.
_LAST = text("SELECT coalesce(max(response_id), 0) FROM assessment_responses")

# 1. A response that has neither a score nor a handoff.
_ORPHANS = text("""
    SELECT r.response_id AS id FROM assessment_responses AS r
    WHERE r.response_id > :after
        AND NOT EXISTS (SELECT 1 FROM scoring_handoffs AS h WHERE h.response_id = r.response_id)
        AND NOT EXISTS (SELECT 1 FROM assessment_scores AS s WHERE s.response_id = r.response_id)
    ORDER BY r.response_id
""")

# 2. A handoff that two scores settled, or that lives on although a score settled it. The unique constraint
# refuses the first; this asks whether the constraint is there and valid.
_SETTLED_TWICE = text("""
    SELECT h.handoff_id AS id FROM scoring_handoffs AS h
    JOIN assessment_scores AS s ON s.handoff_id = h.handoff_id
    UNION ALL
    SELECT 0 WHERE NOT EXISTS (
        SELECT 1 FROM pg_index AS i JOIN pg_constraint AS c ON c.conindid = i.indexrelid
        WHERE c.conname = 'uq_assessment_scores_handoff' AND c.conrelid = 'assessment_scores'::regclass
            AND i.indisunique AND i.indisvalid
    )
""")
_SETTLED_TWICE_FULL = text("""
    SELECT handoff_id AS id FROM assessment_scores GROUP BY handoff_id HAVING count(*) > 1
""")

# 3. A due handoff that nobody took for longer than a sweep; the oldest of each lane, read from the index.
_LEFT_LYING = text(f"""
    SELECT lying.response_id AS id
    FROM unnest(ARRAY['live', 'bulk']) AS lanes (lane) CROSS JOIN LATERAL (
        SELECT h.response_id FROM scoring_handoffs AS h
        WHERE h.lane = lanes.lane AND {DUE}
            AND h.due_at <= statement_timestamp() - make_interval(secs => :sweep_seconds)
        ORDER BY h.due_at, h.handoff_id LIMIT 1000
    ) AS lying
""")

# 4. A handoff that waits as unpublished although its question exists.
_MISSED_PUBLICATION = text("""
    SELECT h.response_id AS id FROM scoring_handoffs AS h JOIN assessment_responses AS r USING (response_id)
    WHERE h.state = 'open' AND h.question_digest IS NULL
        AND EXISTS (
            SELECT 1 FROM assessment_questions AS q
            WHERE q.module_slug = r.module_slug AND q.question_id = r.question_id
                AND q.published_at <= statement_timestamp() - make_interval(secs => :sweep_seconds)
        )
    ORDER BY h.handoff_id LIMIT 1000
""")

# 5. A claim that nobody applied for longer than a sweep.
_LATE_CLAIMS = text("""
    SELECT claim_id AS id FROM assessment_claims
    WHERE applied_at IS NULL AND requested_at <= statement_timestamp() - make_interval(secs => :sweep_seconds)
    ORDER BY claim_id LIMIT 1000
""")


async def _ids(conn: AsyncConnection, statement: Any, given: dict[str, Any] | None = None) -> list[int]:
    return [int(found) for found in (await conn.execute(statement, given or {})).scalars()]


async def verify_settlement(conn: AsyncConnection, *, full: bool = False) -> dict[str, Any]:
    """Check that every response has a score or a handoff, and that none was settled twice.

    Looks at what came since the last verification, which is remembered in the caller's transaction, or at
    everything.

    Args:
        conn: The caller's connection; nothing is committed here.
        full: Look at everything.

    Returns:
        ``checked_from`` (the response id below which everything was verified before), ``orphans`` (response
        ids) and ``settled_twice`` (handoff ids; 0 stands for a lost unique constraint).
    """
    with translated():
        watermark = (await conn.execute(_WATERMARK)).mappings().one_or_none()
        after = 0 if full or watermark is None else int(watermark["verified_response_id"])
        last = int((await conn.execute(_LAST)).scalar_one())
        orphans = await _ids(conn, _ORPHANS, {"after": after})
        twice = await _ids(conn, _SETTLED_TWICE)
        if full:
            twice += await _ids(conn, _SETTLED_TWICE_FULL)
        if not orphans:
            await conn.execute(_ADVANCE, {"last": last, "settling_seconds": _SETTLING_SECONDS})
    return {"checked_from": after, "orphans": orphans, "settled_twice": twice}


async def verify_timeliness(
    conn: AsyncConnection, *, lease_seconds: float, sweep_seconds: float
) -> dict[str, list[int]]:
    """Check that nothing lies about that a sweep should have moved.

    What is found may still be moved the next moment; ask twice before you call it broken.

    Args:
        conn: The caller's connection.
        lease_seconds: How long leases last, seconds.
        sweep_seconds: How old something may be, seconds.

    Returns:
        ``left_lying`` and ``missed_publication`` (response ids) and ``late_claims`` (claim ids), the oldest;
        at most 1,000 of each (of each lane, for the first).
    """
    with translated():
        lying = {"lease_seconds": lease_seconds, "sweep_seconds": sweep_seconds}
        age = {"sweep_seconds": sweep_seconds}
        return {
            "left_lying": await _ids(conn, _LEFT_LYING, lying),
            "missed_publication": await _ids(conn, _MISSED_PUBLICATION, age),
            "late_claims": await _ids(conn, _LATE_CLAIMS, age),
        }
