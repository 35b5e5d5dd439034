"""Purge what anonymous students left long ago: answers, drafts, and claims whose token opens nothing any more.

What a claim that nobody has applied yet is about to move is left alone, and a claim that is applied meanwhile has it
whole or not at all.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from storage.errors import StorageBusyError
from storage.rows import as_dicts
from storage.runs import BATCH, Step, filters_of, window_end
from storage.translation import translated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection

_CLAIM_WAITS = """EXISTS (
        SELECT 1 FROM assessment_claims AS c
        WHERE c.anonymous_token = {row}.anonymous_token AND c.applied_at IS NULL
    )"""
_OLD = """r.response_id > :after AND r.response_id <= :last
        AND r.anonymous_token IS NOT NULL AND r.created_at < :cutoff"""

# What a purge would delete of a window, and what a claim protects.
_SURVEY = text(f"""
    SELECT
        count(*) FILTER (WHERE NOT claimed) AS answers,
        coalesce(sum(scores) FILTER (WHERE NOT claimed), 0)::bigint AS scores,
        coalesce(sum(handoffs) FILTER (WHERE NOT claimed), 0)::bigint AS handoffs,
        count(*) FILTER (WHERE claimed) AS protected
    FROM (
        SELECT {_CLAIM_WAITS.format(row="r")} AS claimed,
            (SELECT count(*) FROM assessment_scores AS s WHERE s.response_id = r.response_id) AS scores,
            (SELECT count(*) FROM scoring_handoffs AS h WHERE h.response_id = r.response_id) AS handoffs
        FROM assessment_responses AS r WHERE {_OLD}
    ) AS old
""")

# The next answers to go.
_NEXT = text(f"""
    SELECT r.response_id FROM assessment_responses AS r
    WHERE {_OLD} AND NOT {_CLAIM_WAITS.format(row="r")}
    ORDER BY r.response_id LIMIT :limit
""")

# Handoffs first and in their order, then scores, as in storage.erasure and for its reasons. The ids stand there twice, so
# that PostgreSQL goes by them also where it would rather read the whole table.
_PURGE_HANDOFFS = text("""
    WITH locked AS MATERIALIZED (
        SELECT handoff_id, response_id FROM scoring_handoffs
        WHERE response_id = ANY (CAST(:response_ids AS bigint[]))
        ORDER BY handoff_id FOR UPDATE
    )
    DELETE FROM scoring_handoffs AS h USING locked
    WHERE h.response_id = locked.response_id AND h.response_id = ANY (CAST(:response_ids AS bigint[]))
""")
_PURGE_SCORES = text(
    "DELETE FROM assessment_scores WHERE response_id = ANY (CAST(:response_ids AS bigint[]))"
)

# In the order of the ids, in which claims lock responses. One that was claimed meanwhile stays, and is missed.
_PURGE_RESPONSES = text(f"""
    DELETE FROM assessment_responses AS r
    USING (SELECT unnest(CAST(:response_ids AS bigint[])) AS response_id ORDER BY 1) AS purged
    WHERE r.response_id = purged.response_id AND r.response_id = ANY (CAST(:response_ids AS bigint[]))
        AND r.anonymous_token IS NOT NULL
        AND NOT {_CLAIM_WAITS.format(row="r")}
""")

# How many drafts are old enough.
_COUNT_DRAFTS = text(f"""
    SELECT count(*) FROM assessment_drafts AS d
    WHERE d.saved_at < :cutoff AND d.anonymous_token IS NOT NULL AND NOT {_CLAIM_WAITS.format(row="d")}
""")

# Where the next part of the drafts or claims ends.
_DRAFTS_END = text("""
    SELECT max(draft_id) FROM (
        SELECT draft_id FROM assessment_drafts WHERE draft_id > :after ORDER BY draft_id LIMIT :size
    ) AS next
""")
_CLAIMS_END = text("""
    SELECT max(claim_id) FROM (
        SELECT claim_id FROM assessment_claims WHERE claim_id > :after ORDER BY claim_id LIMIT :size
    ) AS next
""")

# Forget the drafts of a part that nobody has touched for so long, in the order in which claims lock them. One that is
# saved or claimed meanwhile stays.
_PURGE_DRAFTS = text(f"""
    DELETE FROM assessment_drafts AS d
    USING (
        SELECT draft_id FROM assessment_drafts
        WHERE draft_id > :after AND draft_id <= :last ORDER BY draft_id
    ) AS part
    WHERE d.draft_id = part.draft_id AND d.draft_id > :after AND d.draft_id <= :last AND d.saved_at < :cutoff AND d.anonymous_token IS NOT NULL
        AND NOT {_CLAIM_WAITS.format(row="d")}
""")

# Forget the claims of a part that were applied long ago and whose token has nothing left: the token was a secret, and
# is of no use to anybody now. A submit that is repeated after so long would not find that its token became this user.
# OFFSET keeps PostgreSQL from joining, for which it would read all answers or drafts: each claim looks in the index.
_PURGE_CLAIMS = text("""
    DELETE FROM assessment_claims AS c
    WHERE c.claim_id > :after AND c.claim_id <= :last AND c.applied_at < :cutoff
        AND NOT EXISTS (SELECT 1 FROM assessment_responses AS r WHERE r.anonymous_token = c.anonymous_token OFFSET 0)
        AND NOT EXISTS (SELECT 1 FROM assessment_drafts AS d WHERE d.anonymous_token = c.anonymous_token OFFSET 0)
""")


async def survey_purge(
    conn: AsyncConnection, *, cutoff: datetime, after: int, until: int
) -> tuple[int, list[dict[str, Any]]]:
    """Look at the next part of what a purge would delete.

    Args:
        conn: The caller's connection.
        cutoff: Answers from before then.
        after: The id after which to begin.
        until: The id at which to end.

    Returns:
        The id up to which it looked, and ``answers``, ``scores`` and ``handoffs`` that would go, and how many answers
        are ``protected`` by a claim that waits.
    """
    last = await window_end(conn, after=after, until=until)
    with translated():
        found = await conn.execute(_SURVEY, {"cutoff": cutoff, "after": after, "last": last})
        return last, list(as_dicts(found))


def cutoff_of(run: Mapping[str, Any]) -> datetime:
    """Before when something must be from to be purged by a run; errors as of :func:`storage.runs.filters_of`."""
    return datetime.fromisoformat(filters_of(run, {"older_than_days", "cutoff"})["cutoff"])


async def count_old_drafts(conn: AsyncConnection, *, cutoff: datetime) -> int:
    """Count the anonymous drafts that were last saved before then."""
    with translated():
        return int((await conn.execute(_COUNT_DRAFTS, {"cutoff": cutoff})).scalar_one())


async def purge_step(conn: AsyncConnection, run: Mapping[str, Any]) -> Step:
    """Delete the next answers of a run, with their scores and handoffs.

    Args:
        conn: The caller's connection, in a READ COMMITTED transaction; nothing is committed here.
        run: The run's row, locked.

    Raises:
        StorageUnavailableError: One of the answers was claimed or erased meanwhile. The caller's transaction must be
            rolled back; trying again, in a new one, is safe.
    """
    after, cutoff = run["last_response_id"], cutoff_of(run)
    last = await window_end(conn, after=after, until=run["until_response_id"])
    with translated():
        found = await conn.execute(_NEXT, {"after": after, "last": last, "cutoff": cutoff, "limit": BATCH})
        ids = list(found.scalars())
        if ids:
            which = {"response_ids": ids}
            await conn.execute(_PURGE_HANDOFFS, which)
            await conn.execute(_PURGE_SCORES, which)
            if (await conn.execute(_PURGE_RESPONSES, which)).rowcount != len(ids):
                raise StorageBusyError(
                    "An answer was claimed or erased while it was to be purged; trying again is safe."
                )
    return Step(last_response_id=ids[-1] if len(ids) == BATCH else last, changed=len(ids))


async def purge_drafts(conn: AsyncConnection, *, cutoff: datetime, after: int) -> tuple[int | None, int]:
    """Delete the next anonymous drafts that were last saved before then. Doing it again is harmless.

    Args:
        conn: The caller's connection; nothing is committed here.
        cutoff: Drafts from before then.
        after: The ``draft_id`` after which to begin.

    Returns:
        The id after which to go on, None where there is no more; and how many were deleted.
    """
    return await _purge_part(conn, _DRAFTS_END, _PURGE_DRAFTS, cutoff=cutoff, after=after)


async def purge_claims(conn: AsyncConnection, *, cutoff: datetime, after: int) -> tuple[int | None, int]:
    """Delete the next claims that were applied before then and whose token has neither answers nor drafts left.

    Arguments, by ``claim_id``, and result as :func:`purge_drafts`.
    """
    return await _purge_part(conn, _CLAIMS_END, _PURGE_CLAIMS, cutoff=cutoff, after=after)


async def _purge_part(
    conn: AsyncConnection, end: Any, purge: Any, *, cutoff: datetime, after: int
) -> tuple[int | None, int]:
    with translated():
        last = (await conn.execute(end, {"after": after, "size": BATCH})).scalar_one()
        if last is None:
            return None, 0
        gone = await conn.execute(purge, {"after": after, "last": last, "cutoff": cutoff})
        return int(last), int(gone.rowcount)
