"""Counts for people: what waits, what is worked on, what is dead, how fast it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from storage.translation import translated

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

# Counting stops here, so that a look at a backlog of millions costs what a look at a small one does.
COUNT_LIMIT = 10_000


def _count(condition: str) -> str:
    return f"""(
        SELECT count(*) FROM (
            SELECT 1 FROM scoring_handoffs AS h WHERE {condition} LIMIT {COUNT_LIMIT + 1}
        ) AS counted
    )"""


_OPEN = "h.state = 'open' AND h.question_digest IS NOT NULL"
_IN_LANE = f"{_OPEN} AND h.lane = 'live'", f"{_OPEN} AND h.lane = 'bulk'"

# All that `scoring status` shows of the handoffs. Each part reads an index and stops early. The rate is a
# difference of ids, not a count: it stays cheap at any rate, and gaps from rolled back inserts are rare.
_STATUS = text(f"""
    SELECT
        {_count(f"{_IN_LANE[0]} AND h.due_at <= statement_timestamp()")} AS waiting_live,
        {_count(f"{_IN_LANE[1]} AND h.due_at <= statement_timestamp()")} AS waiting_bulk,
        {_count(f"{_OPEN} AND h.lane IN ('live', 'bulk') AND h.due_at > statement_timestamp() AND h.lease_token IS NOT NULL")} AS leased,
        {_count(f"{_OPEN} AND h.lane IN ('live', 'bulk') AND h.due_at > statement_timestamp() AND h.lease_token IS NULL")} AS postponed,
        {_count("h.state = 'open' AND h.question_digest IS NULL")} AS unpublished,
        {_count("h.state = 'dead'")} AS dead,
        {_count("h.state = 'dismissed'")} AS dismissed,
        (
            SELECT EXTRACT(epoch FROM statement_timestamp() - h.created_at)::double precision
            FROM scoring_handoffs AS h WHERE {_OPEN} ORDER BY h.handoff_id LIMIT 1
        ) AS oldest_seconds,
        (
            SELECT EXTRACT(epoch FROM statement_timestamp() - min(oldest.due_at))::double precision
            FROM unnest(ARRAY['live', 'bulk']) AS lanes (lane) CROSS JOIN LATERAL (
                SELECT h.due_at FROM scoring_handoffs AS h
                WHERE {_OPEN} AND h.lane = lanes.lane AND h.due_at <= statement_timestamp()
                ORDER BY h.due_at LIMIT 1
            ) AS oldest
        ) AS longest_due_seconds,
        coalesce((SELECT max(score_id) FROM assessment_scores), 0) - coalesce((
            SELECT score_id FROM assessment_scores
            WHERE created_at <= statement_timestamp() - interval '1 minute' ORDER BY created_at DESC LIMIT 1
        ), (SELECT min(score_id) - 1 FROM assessment_scores), 0) AS scored_last_minute,
        (SELECT count(*) FROM assessment_claims WHERE applied_at IS NULL) AS claims_waiting
""")

# Which questions answers wait for, most waited for first.
_UNPUBLISHED = text(f"""
    SELECT module_slug, question_id, count(*) AS answers FROM (
        SELECT r.module_slug, r.question_id
        FROM scoring_handoffs AS h JOIN assessment_responses AS r USING (response_id)
        WHERE h.state = 'open' AND h.question_digest IS NULL
        ORDER BY h.handoff_id LIMIT {COUNT_LIMIT}
    ) AS counted
    GROUP BY module_slug, question_id ORDER BY answers DESC, module_slug, question_id LIMIT 20
""")

# Why unscored answers failed the last time, most frequent reason first; the most recent ones, from their index.
_TROUBLES = text("""
    SELECT last_error AS reason, count(*) AS answers, max(last_error_at) AS last_at FROM (
        SELECT h.last_error, h.last_error_at FROM scoring_handoffs AS h
        WHERE h.state = 'open' AND h.last_error IS NOT NULL
        ORDER BY h.last_error_at DESC LIMIT 1000
    ) AS counted
    GROUP BY last_error ORDER BY answers DESC LIMIT 5
""")


async def handoff_statistics(conn: AsyncConnection) -> dict[str, Any]:
    """Count handoffs by state, and how fast they are scored.

    Args:
        conn: The caller's connection.

    Returns:
        ``waiting_live``, ``waiting_bulk``, ``leased``, ``postponed``, ``unpublished``, ``dead``,
        ``dismissed`` (each counted up to 10,001), ``oldest_seconds`` (since the oldest handoff that may be
        scored was made) and ``longest_due_seconds`` (None where there is nothing),
        ``scored_last_minute``, ``claims_waiting``, ``unpublished_questions`` and ``troubles``.
    """
    with translated():
        status = dict((await conn.execute(_STATUS)).mappings().one())
        status["unpublished_questions"] = [dict(row) for row in (await conn.execute(_UNPUBLISHED)).mappings()]
        status["troubles"] = [dict(row) for row in (await conn.execute(_TROUBLES)).mappings()]
    return status
