"""Give a handoff to answers that have neither a score nor a handoff: those from before there were handoffs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from storage.rows import as_dicts
from storage.runs import BATCH, Step, filters_of, window_end
from storage.translation import translated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection

# Any number, but always this one.
_BACKFILL_LOCK = int.from_bytes(b"backfil", "big")

# Those of a window that have neither. A submit stores response and handoff together, so none of its is seen without.
# The window stands in each part: then none is read beyond it, however PostgreSQL joins them.
_BARE = """
    SELECT r.response_id, r.module_slug, r.question_id, coalesce(r.question_digest, (
        SELECT q.question_digest FROM assessment_questions AS q
        WHERE q.module_slug = r.module_slug AND q.question_id = r.question_id
        ORDER BY q.publication DESC LIMIT 1
    )) AS question_digest
    FROM assessment_responses AS r
    WHERE r.response_id > :after AND r.response_id <= :last
        AND NOT EXISTS (
            SELECT 1 FROM scoring_handoffs AS h
            WHERE h.response_id = r.response_id AND h.response_id > :after AND h.response_id <= :last
        )
        AND NOT EXISTS (
            SELECT 1 FROM assessment_scores AS s
            WHERE s.response_id = r.response_id AND s.response_id > :after AND s.response_id <= :last
        )
"""

# One backfill after the other: what the one before has handed over, and what was scored of it, must be seen.
_TAKE_TURN = text("SELECT pg_advisory_xact_lock(:lock)")

# Hand over the next, each against what its student was asked, or else against its question as it is now. Unpublished
# ones wait as those of a submit do.
_HAND_OVER = text(f"""
    WITH bare AS MATERIALIZED (SELECT * FROM ({_BARE}) AS bare ORDER BY response_id LIMIT :limit), handed AS (
        INSERT INTO scoring_handoffs (response_id, question_digest, lane, due_at)
        SELECT response_id, question_digest, 'bulk',
            CASE WHEN question_digest IS NULL THEN 'infinity' ELSE statement_timestamp() END
        FROM bare ORDER BY response_id
        ON CONFLICT (response_id) DO NOTHING
        RETURNING response_id
    )
    SELECT (SELECT count(*) FROM bare) AS found, (SELECT max(response_id) FROM bare) AS last,
        (SELECT count(*) FROM handed) AS handed
""")

# How many of a window there are, by question.
_SURVEY = text(f"""
    SELECT module_slug, question_id, count(*) AS answers, count(*) FILTER (WHERE question_digest IS NULL) AS unpublished
    FROM ({_BARE}) AS bare GROUP BY module_slug, question_id
""")


async def survey_backfill(
    conn: AsyncConnection, *, after: int, until: int
) -> tuple[int, list[dict[str, Any]]]:
    """Look at the next part of what a backfill would hand over.

    Args:
        conn: The caller's connection.
        after: The id after which to begin.
        until: The id at which to end.

    Returns:
        The id up to which it looked, and for each question ``module_slug``, ``question_id``, ``answers``, and how many
        of them would wait as ``unpublished``.
    """
    last = await window_end(conn, after=after, until=until)
    with translated():
        return last, list(as_dicts(await conn.execute(_SURVEY, {"after": after, "last": last})))


async def backfill_step(conn: AsyncConnection, run: Mapping[str, Any]) -> Step:
    """Hand over the next answers of a run, in the bulk lane.

    Args:
        conn: The caller's connection, in a READ COMMITTED transaction; nothing is committed here.
        run: The run's row, locked.

    Raises:
        StorageUnavailableError: Somebody erased one of the answers meanwhile: trying again is safe.
    """
    filters_of(run, {"after_handoff_id"})  # it has no choice; a newer version's may
    after = run["last_response_id"]
    with translated():
        await conn.execute(_TAKE_TURN, {"lock": _BACKFILL_LOCK})
        last = await window_end(conn, after=after, until=run["until_response_id"])
        [done] = as_dicts(await conn.execute(_HAND_OVER, {"after": after, "last": last, "limit": BATCH}))
    return Step(
        last_response_id=done["last"] if done["found"] == BATCH else last,
        changed=done["handed"],
    )
