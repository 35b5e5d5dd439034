"""What a sweep asks and mends: overdue handoffs, forgotten publications."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from storage.leases import BURY_AFTER_LOSSES, DUE, LOSSES, MAY_BE_SUSPECT, SUSPECT_AFTER_LOSSES
from storage.translation import translated

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_SWEEP_LOCK = int.from_bytes(b"sweep", "big")
LANES = ("live", "bulk")
_SUSPECT = f"{MAY_BE_SUSPECT} AND {LOSSES} >= {SUSPECT_AFTER_LOSSES}"


def _overdue(condition: str) -> str:
    # Not EXISTS: it would drop the order, and with it the index, wherever the statistics, which lag behind in
    # such a table, promise a match on the first page.
    return f"""(
        SELECT true FROM scoring_handoffs AS h
        WHERE {DUE} AND h.due_at <= statement_timestamp() - make_interval(secs => :overdue_seconds) AND {condition}
        ORDER BY h.due_at LIMIT 1
    ) IS NOT NULL"""


# Is anything overdue? The lock lets one worker at a time ask; it ends with the statement's transaction, so
# it works through PgBouncer. Each part reads one row of an index: a backlog of a million costs nothing.
_OVERDUE = text(f"""
    WITH turn AS MATERIALIZED (SELECT pg_try_advisory_xact_lock(:key) OR :insist AS mine)
    SELECT
        mine AND {_overdue(f"h.lane = 'live' AND {LOSSES} < {SUSPECT_AFTER_LOSSES}")} AS live,
        mine AND {_overdue(f"h.lane = 'bulk' AND {LOSSES} < {SUSPECT_AFTER_LOSSES}")} AS bulk,
        mine AND {_overdue(f"{_SUSPECT} AND {LOSSES} < {BURY_AFTER_LOSSES}")} AS suspect,
        mine AND {_overdue(f"{MAY_BE_SUSPECT} AND {LOSSES} >= {BURY_AFTER_LOSSES}")} AS lost
    FROM turn
""")

# Publishing and submitting at the same moment can leave a handoff unpublished, because neither statement
# saw the other's rows. Look at some of those that wait, and make due those whose question exists.
_REVIVE_MISSED = text("""
    WITH waiting AS MATERIALIZED (
        SELECT h.handoff_id, r.module_slug, r.question_id
        FROM scoring_handoffs AS h JOIN assessment_responses AS r USING (response_id)
        WHERE h.state = 'open' AND h.question_digest IS NULL AND h.handoff_id > :after
        ORDER BY h.handoff_id LIMIT :limit
        FOR UPDATE OF h SKIP LOCKED
    ), revived AS (
        UPDATE scoring_handoffs AS h SET question_digest = published.question_digest, due_at = statement_timestamp()
        FROM waiting CROSS JOIN LATERAL (
            SELECT q.question_digest FROM assessment_questions AS q
            WHERE q.module_slug = waiting.module_slug AND q.question_id = waiting.question_id
            ORDER BY q.publication DESC LIMIT 1
        ) AS published
        WHERE h.handoff_id = waiting.handoff_id
        RETURNING h.handoff_id
    )
    SELECT (SELECT count(*) FROM revived) AS revived, (SELECT count(*) FROM waiting) AS seen,
        (SELECT max(handoff_id) FROM waiting) AS last
""")


async def overdue(
    conn: AsyncConnection, *, lease_seconds: float, overdue_seconds: float, insist: bool = False
) -> frozenset[str]:
    """Ask whether anything has been due for a while and nobody took it. Writes nothing.

    Args:
        conn: The caller's connection.
        lease_seconds: How long leases last, seconds.
        overdue_seconds: How long "a while" is, seconds.
        insist: Look even if somebody else is looking, or says so: any login of the database can take that lock, and
            keep it.

    Returns:
        Of ``live`` and ``bulk``, the lanes with overdue handoffs; ``suspect`` where some wait to be scored
        among their like; ``lost`` where one has lost too many leases. Empty where another worker is asking just now.
    """
    given = {
        "key": _SWEEP_LOCK,
        "insist": insist,
        "lease_seconds": lease_seconds,
        "overdue_seconds": overdue_seconds,
    }
    with translated():
        row = (await conn.execute(_OVERDUE, given)).mappings().one()
    return frozenset(name for name, is_overdue in row.items() if is_overdue)


async def revive_missed(
    conn: AsyncConnection, *, after_handoff_id: int = 0, limit: int = 1000
) -> tuple[int, int]:
    """Make some handoffs due that wait as unpublished although their question exists.

    Looks at a bounded number in one call, so that a question which was forgotten for a million answers does
    not burden every sweep; the next call goes on where this one stopped.

    Args:
        conn: The caller's connection; nothing is committed here.
        after_handoff_id: Where the call before stopped; 0 for the beginning.
        limit: Look at so many.

    Returns:
        How many were revived, and where to go on: 0 where the end was reached.
    """
    with translated():
        row = (await conn.execute(_REVIVE_MISSED, {"after": after_handoff_id, "limit": limit})).one()
    return int(row.revived), int(row.last) if row.seen == limit else 0
