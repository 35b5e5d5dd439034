"""How a lease ends: with a score, which deletes the handoff, or without one, which releases it.

Every transition is one guarded statement, and touching no row is an ordinary outcome: the guard failed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from storage.rows import as_dicts
from storage.translation import translated

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import TextClause
    from sqlalchemy.ext.asyncio import AsyncConnection

# A reason is one sentence; whatever a scorer makes of it, rows stay small.
MAX_REASON_CHARS = 1000


# A row that somebody else holds locked is waited for so long, and then the whole statement fails as busy. Set inside
# the statement: it is read before the first row is locked, and costs no round trip.
LOCK_PATIENCE_MS = 500
_PATIENCE = f"(SELECT set_config('lock_timeout', '{LOCK_PATIENCE_MS}', true) AS done) AS patience"


@dataclass(frozen=True, slots=True)
class Settlement:
    """A finished score on its way into the database.

    ``handoff_id`` and ``created_at``, both as the lease returned them, name the handoff. The id alone would not: a
    database that was restored, or whose asynchronous replica was promoted, gives ids away a second time.
    """

    handoff_id: int
    created_at: datetime
    model_id: str
    prompt_version: str
    score_data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Release:
    """A lease that ends without a score.

    ``delay_seconds`` is the pause until the next try; ``reason`` is stored, so it must carry no answer text.
    """

    handoff_id: int
    lease_token: UUID
    delay_seconds: float = 0.0
    reason: str | None = None
    suspicious: bool = False


# Score and delete, many at once. The guard is the handoff's existence alone, the one that was leased and none that
# has its id since the database went back in time: a slow worker's finished score
# counts, whoever holds the lease now; whoever comes second finds no row and writes nothing. Rows are locked
# in the order of their ids, as everywhere, so that two batches cannot wait for each other.
_SETTLE = text(f"""
    WITH given AS MATERIALIZED (
        SELECT * FROM unnest(
            CAST(:handoff_ids AS bigint[]), CAST(:created_at AS timestamptz[]), CAST(:model_ids AS text[]),
            CAST(:prompt_versions AS text[]), CAST(:score_data AS text[])
        ) AS given (handoff_id, created_at, model_id, prompt_version, score_data)
        CROSS JOIN {_PATIENCE}
    ), locked AS MATERIALIZED (
        SELECT h.handoff_id FROM scoring_handoffs AS h JOIN given USING (handoff_id, created_at)
        WHERE h.question_digest IS NOT NULL
        ORDER BY h.handoff_id FOR UPDATE OF h
    ), settled AS (
        DELETE FROM scoring_handoffs AS h USING locked WHERE h.handoff_id = locked.handoff_id
        RETURNING h.handoff_id, h.response_id, h.question_digest, h.leased_at
    )
    INSERT INTO assessment_scores (
        response_id, handoff_id, question_digest, model_id, prompt_version, score_data, picked_up_at
    )
    SELECT
        settled.response_id, handoff_id, settled.question_digest, given.model_id, given.prompt_version,
        CAST(given.score_data AS jsonb), settled.leased_at
    FROM settled JOIN given USING (handoff_id)
    ORDER BY handoff_id
    RETURNING handoff_id, response_id, score_id
""")


def _release(change: str) -> TextClause:
    # Guarded by the lease: who lost it has no say any more.
    return text(f"""
        WITH held AS MATERIALIZED (
            SELECT h.handoff_id, given.delay_seconds, given.reason, given.suspicious
            FROM scoring_handoffs AS h
            JOIN unnest(
                CAST(:handoff_ids AS bigint[]), CAST(:lease_tokens AS uuid[]), CAST(:delays AS double precision[]),
                CAST(:reasons AS text[]), CAST(:suspicious AS boolean[])
            ) AS given (handoff_id, lease_token, delay_seconds, reason, suspicious) USING (handoff_id, lease_token)
            CROSS JOIN {_PATIENCE}
            WHERE h.state = 'open'
            ORDER BY h.handoff_id FOR UPDATE OF h
        )
        UPDATE scoring_handoffs AS h SET
            lease_token = NULL,
            due_at = statement_timestamp() + make_interval(secs => held.delay_seconds),
            last_error = coalesce(held.reason, h.last_error),
            last_error_at = CASE WHEN held.reason IS NULL THEN h.last_error_at ELSE statement_timestamp() END
            {change}
        FROM held WHERE h.handoff_id = held.handoff_id
        RETURNING h.handoff_id
    """)


# Infrastructure trouble: no attempt is used up, but it is counted, and so is whether others fared better.
_POSTPONE = _release("""
    , postponements = h.postponements + 1, suspicions = h.suspicions + held.suspicious::integer
""")
# The scorer's verdict: one attempt is used up.
_FAIL = _release(", attempts = h.attempts + 1, suspicions = 0")
# Stopping worker: due at once, nothing is counted.
_HAND_BACK = _release("")
# No further try can help, or none is left.
_BURY = text(f"""
    WITH held AS MATERIALIZED (
        SELECT h.handoff_id, given.reason
        FROM scoring_handoffs AS h
        JOIN unnest(CAST(:handoff_ids AS bigint[]), CAST(:lease_tokens AS uuid[]), CAST(:reasons AS text[]))
            AS given (handoff_id, lease_token, reason) USING (handoff_id, lease_token)
        CROSS JOIN {_PATIENCE}
        WHERE h.state = 'open'
        ORDER BY h.handoff_id FOR UPDATE OF h
    )
    UPDATE scoring_handoffs AS h SET
        lease_token = NULL, due_at = 'infinity', state = 'dead', attempts = h.attempts + 1,
        last_error = held.reason, last_error_at = statement_timestamp()
    FROM held WHERE h.handoff_id = held.handoff_id
    RETURNING h.handoff_id
""")


async def settle_handoffs(conn: AsyncConnection, settlements: Sequence[Settlement]) -> list[dict[str, Any]]:
    """Write scores and delete their handoffs, all in one statement.

    Args:
        conn: The caller's connection; nothing is committed here.
        settlements: At most one for each handoff.

    Returns:
        ``handoff_id``, ``response_id`` and ``score_id`` of each that was settled. One that is missing was
        settled before by somebody else, has been replaced, or is unknown to a database that was restored: its
        score is dropped.
    """
    given = {
        "handoff_ids": [settlement.handoff_id for settlement in settlements],
        "created_at": [settlement.created_at for settlement in settlements],
        "model_ids": [settlement.model_id for settlement in settlements],
        "prompt_versions": [settlement.prompt_version for settlement in settlements],
        "score_data": [json.dumps(settlement.score_data, allow_nan=False) for settlement in settlements],
    }
    with translated():
        return list(as_dicts(await conn.execute(_SETTLE, given)))


async def _released(
    conn: AsyncConnection, statement: TextClause, releases: Sequence[Release]
) -> frozenset[int]:
    given: dict[str, list[Any]] = {
        "handoff_ids": [release.handoff_id for release in releases],
        "lease_tokens": [release.lease_token for release in releases],
        "reasons": [release.reason and release.reason[:MAX_REASON_CHARS] for release in releases],
    }
    if statement is not _BURY:
        given["delays"] = [release.delay_seconds for release in releases]
        given["suspicious"] = [release.suspicious for release in releases]
    with translated():
        return frozenset((await conn.execute(statement, given)).scalars())


async def postpone_handoffs(conn: AsyncConnection, releases: Sequence[Release]) -> frozenset[int]:
    """Try again later because of infrastructure. This uses up no attempt, however often it happens.

    Args:
        conn: The caller's connection; nothing is committed here.
        releases: Those whose lease is not the caller's any more are left alone.

    Returns:
        The ``handoff_id`` that were postponed.
    """
    return await _released(conn, _POSTPONE, releases)


async def fail_handoffs(conn: AsyncConnection, releases: Sequence[Release]) -> frozenset[int]:
    """Use up one attempt and try again after the pause; arguments and result as :func:`postpone_handoffs`."""
    return await _released(conn, _FAIL, releases)


async def bury_handoffs(conn: AsyncConnection, releases: Sequence[Release]) -> frozenset[int]:
    """Use up one attempt and try no more: the handoff is dead, with its reason, until a person acts.

    Arguments and result as :func:`postpone_handoffs`; the pause is ignored, the reason is needed.
    """
    return await _released(conn, _BURY, releases)


async def hand_back_handoffs(conn: AsyncConnection, releases: Sequence[Release]) -> frozenset[int]:
    """Give leases back, counting nothing; due at once unless a pause is given.

    Arguments and result as :func:`postpone_handoffs`.
    """
    return await _released(conn, _HAND_BACK, releases)
