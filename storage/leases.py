"""Leases: which worker works on which handoff, and for how long.

A lease is only the promise not to pay twice. It may be lost at any time: whoever then brings a score first
wins, see ``storage.settlements``.
"""

from __future__ import annotations

import json
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

# A handoff that lost its lease so often may be what kills its workers: from then on it is leased in a group of its
# like, by a worker that holds nothing else.
SUSPECT_AFTER_LOSSES = 3
# Each loss leaves a group this fraction of its size. The smallest whole number with which even 10,000 slots are
# down to one answer before the last loss: whoever is buried was alone then, and no innocent neighbour gets that far.
GROUPS_SHRINK_BY = 4
# So many losses are no accident any more, not even during a bad deploy: it is buried.
BURY_AFTER_LOSSES = 10

# May be leased now. A lease that ran out while PostgreSQL itself was away says nothing about its worker:
# none counts as run out within one lease time of the server's start.
DUE = """
    h.state = 'open' AND h.question_digest IS NOT NULL AND h.due_at <= statement_timestamp()
    AND (
        h.lease_token IS NULL
        OR pg_postmaster_start_time() + make_interval(secs => :lease_seconds) <= statement_timestamp()
    )
"""
# Losses, counting the one that is found out by leasing it again.
LOSSES = "h.lease_losses + (h.lease_token IS NOT NULL)::integer"
# What every suspect has in common, in the words of the index that holds nothing else.
MAY_BE_SUSPECT = f"h.lease_losses >= {SUSPECT_AFTER_LOSSES - 1}"


def _lease(which: str, *, returning: str = "") -> TextClause:
    # A lease need not survive a crash of the database: its loss costs a model call, its fsync would cost
    # every answer milliseconds. Hence synchronous_commit = off, for this transaction alone; set inside the
    # statement, because a statement of its own would be a round trip of its own.
    return text(f"""
        WITH due AS MATERIALIZED ({which}),
        relaxed AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true) AS done)
        UPDATE scoring_handoffs AS h SET
            lease_losses = {LOSSES},
            lease_token = :lease_token,
            leased_at = statement_timestamp(),
            due_at = statement_timestamp() + make_interval(secs => :lease_seconds)
        FROM due CROSS JOIN relaxed JOIN assessment_responses AS r ON r.response_id = due.response_id
        WHERE h.handoff_id = due.handoff_id
        RETURNING h.handoff_id, h.created_at, h.response_id, h.question_digest, h.lane, h.lease_token, h.attempts,
            h.postponements, h.suspicions, h.lease_losses, CAST(h.trace_context AS text),
            CAST(extract(epoch FROM statement_timestamp() - due.due_at) AS double precision) AS waited_seconds, r.answer_text, CAST(r.answer_metadata AS text)
            {returning}
    """)


# Lease what a message names, as far as it is due. SKIP LOCKED: what another worker is leasing is his.
_LEASE_BY_IDS = _lease(f"""
    SELECT h.handoff_id, h.response_id, h.due_at FROM scoring_handoffs AS h
    WHERE h.response_id = ANY (CAST(:response_ids AS bigint[])) AND {DUE} AND {LOSSES} < {SUSPECT_AFTER_LOSSES}
    ORDER BY h.handoff_id LIMIT :limit
    FOR UPDATE OF h SKIP LOCKED
""")

# Take the oldest that are due in a lane, or the oldest after some point.
_PULL = _lease(
    f"""
    SELECT h.handoff_id, h.response_id, h.due_at FROM scoring_handoffs AS h
    WHERE h.lane = :lane AND {DUE} AND {LOSSES} < {SUSPECT_AFTER_LOSSES}
        AND h.due_at >= coalesce(CAST(:after AS timestamptz), '-infinity')
    ORDER BY h.due_at, h.handoff_id LIMIT :limit
    FOR UPDATE OF h SKIP LOCKED
""",
    returning=", due.due_at AS was_due_at",
)

_SUSPECT = (
    f"{DUE} AND {MAY_BE_SUSPECT} AND {LOSSES} >= {SUSPECT_AFTER_LOSSES} AND {LOSSES} < {BURY_AFTER_LOSSES}"
)

# Take a group of those that may have killed their workers: the oldest, and others with as many losses. The oldest
# is locked first, or a group whose oldest another worker is taking would be found empty. The second limit is one that
# the planner can read: it takes a computed one for a tenth of all rows.
_PULL_SUSPECTS = _lease(f"""
    WITH oldest AS MATERIALIZED (
        SELECT {LOSSES} AS losses FROM scoring_handoffs AS h
        WHERE {_SUSPECT}
        ORDER BY h.due_at, h.handoff_id LIMIT 1
        FOR UPDATE OF h SKIP LOCKED
    ), size AS MATERIALIZED (
        SELECT greatest(
            1, CAST(:slots AS bigint) / ({GROUPS_SHRINK_BY} ^ (losses - {SUSPECT_AFTER_LOSSES - 1}))::bigint
        ) AS size FROM oldest
    )
    SELECT * FROM (
        SELECT h.handoff_id, h.response_id, h.due_at FROM scoring_handoffs AS h
        WHERE {DUE} AND {MAY_BE_SUSPECT} AND {LOSSES} = (SELECT losses FROM oldest)
        ORDER BY h.due_at, h.handoff_id LIMIT coalesce((SELECT size FROM size), 0)
        FOR UPDATE OF h SKIP LOCKED
    ) AS suspects LIMIT :limit
""")

# Does one wait that may have killed its workers?
_SUSPECT_WAITS = text(f"""
    SELECT EXISTS (SELECT 1 FROM scoring_handoffs AS h WHERE {DUE} AND {MAY_BE_SUSPECT} AND {LOSSES} >= {SUSPECT_AFTER_LOSSES})
""")

# Bury those that lost too many leases, the last one leased alone.
_BURY_LOST = text(f"""
    WITH lost AS MATERIALIZED (
        SELECT h.handoff_id FROM scoring_handoffs AS h
        WHERE {DUE} AND {MAY_BE_SUSPECT} AND {LOSSES} >= {BURY_AFTER_LOSSES}
        ORDER BY h.handoff_id FOR UPDATE OF h SKIP LOCKED
    )
    UPDATE scoring_handoffs AS h SET
        lease_losses = {LOSSES}, lease_token = NULL, due_at = 'infinity', state = 'dead',
        last_error = 'Its worker stopped without a word {BURY_AFTER_LOSSES} times while scoring this answer, the last time '
            'with no other answer in hand: it probably crashes or stalls the scorer.',
        last_error_at = statement_timestamp()
    FROM lost WHERE h.handoff_id = lost.handoff_id
    RETURNING h.handoff_id, h.response_id
""")

# Keep leases for longer. SKIP LOCKED: who holds the lock is about to settle or to take it, let him.
_RENEW = text("""
    WITH held AS MATERIALIZED (
        SELECT h.handoff_id
        FROM scoring_handoffs AS h
        JOIN unnest(CAST(:handoff_ids AS bigint[]), CAST(:lease_tokens AS uuid[])) AS given (handoff_id, lease_token)
            USING (handoff_id, lease_token)
        ORDER BY h.handoff_id FOR UPDATE OF h SKIP LOCKED
    ), relaxed AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true) AS done)
    UPDATE scoring_handoffs AS h SET due_at = statement_timestamp() + make_interval(secs => :lease_seconds)
    FROM held CROSS JOIN relaxed WHERE h.handoff_id = held.handoff_id
    RETURNING h.handoff_id
""")


def _decoded(values: dict[str, Any]) -> dict[str, Any]:
    """Read a lease's JSON, here and not in the driver: what Python cannot read must not cost its neighbours' leases."""
    for name in ("answer_metadata", "trace_context"):
        try:
            values[name] = None if values[name] is None else json.loads(values[name])
        except (ValueError, RecursionError):  # a number of 5,000 digits, a thousand levels of lists
            values[name] = None
    return values


async def lease_handoffs(
    conn: AsyncConnection,
    *,
    response_ids: Sequence[int],
    lease_token: UUID,
    lease_seconds: float,
    limit: int,
) -> list[dict[str, Any]]:
    """Lease the handoffs of these responses, as far as they are due.

    Those that are scored, leased, postponed, dead, unpublished or suspected of killing workers are left
    alone: a message that arrives twice or late leases nothing. Use a transaction of its own, it commits
    without waiting for the disk.

    Args:
        conn: The caller's connection; nothing is committed here.
        response_ids: What a message names.
        lease_token: A new random one; it guards everything the holder does with the lease.
        lease_seconds: How long the lease lasts unless it is renewed, seconds.
        limit: Lease at most so many.

    Returns:
        One mapping a lease: ``handoff_id``, ``created_at`` (of the handoff), ``response_id``, ``question_digest``, ``lane``, ``lease_token``,
        the counters, ``trace_context``, ``waited_seconds`` (since it was due), ``answer_text`` and
        ``answer_metadata``.
    """
    given = {
        "response_ids": list(response_ids),
        "lease_token": lease_token,
        "lease_seconds": lease_seconds,
        "limit": limit,
    }
    with translated():
        return [_decoded(row) for row in as_dicts(await conn.execute(_LEASE_BY_IDS, given))]


async def pull_handoffs(
    conn: AsyncConnection,
    *,
    lane: str,
    lease_token: UUID,
    lease_seconds: float,
    limit: int,
    after: datetime | None = None,
) -> list[dict[str, Any]]:
    """Lease the oldest due handoffs of a lane.

    Args:
        conn: The caller's connection, as for :func:`lease_handoffs`.
        lane: ``live`` or ``bulk``.
        lease_token: As for :func:`lease_handoffs`.
        lease_seconds: As for :func:`lease_handoffs`.
        limit: Lease at most so many; fewer come back when no more are due.
        after: Leave out what was due before.

    Returns:
        As :func:`lease_handoffs`, with ``was_due_at``.
    """
    given = {
        "lane": lane,
        "lease_token": lease_token,
        "lease_seconds": lease_seconds,
        "limit": limit,
        "after": after,
    }
    with translated():
        return [_decoded(row) for row in as_dicts(await conn.execute(_PULL, given))]


async def pull_suspects(
    conn: AsyncConnection, *, slots: int, lease_token: UUID, lease_seconds: float, limit: int
) -> list[dict[str, Any]]:
    """Lease a group of handoffs that lost their leases three times or more, to be scored with nothing else in hand.

    All of a group have lost as many: as many as the suspect that has been due for longest. A quarter of the slots is
    taken after three losses, a quarter of that after four, and so on; one at last. So innocent neighbours of an
    answer that kills its workers are scored together, a few of them are lost with it each time, and after the ninth
    loss each is alone.

    Args:
        conn: The caller's connection, as for :func:`lease_handoffs`.
        slots: How many answers the worker scores at the same time when it suspects nothing.
        lease_token: As for :func:`lease_handoffs`.
        lease_seconds: As for :func:`lease_handoffs`.
        limit: Lease at most so many, however large the group might be.

    Returns:
        As :func:`lease_handoffs`; nothing where nothing is suspect and due.
    """
    given = {"slots": slots, "lease_token": lease_token, "lease_seconds": lease_seconds, "limit": limit}
    with translated():
        return [_decoded(row) for row in as_dicts(await conn.execute(_PULL_SUSPECTS, given))]


async def suspect_waits(conn: AsyncConnection, *, lease_seconds: float) -> bool:
    """Ask whether anything waits to be scored as a suspect, or to be buried; arguments as :func:`lease_handoffs`."""
    with translated():
        return bool((await conn.execute(_SUSPECT_WAITS, {"lease_seconds": lease_seconds})).scalar_one())


async def bury_lost(conn: AsyncConnection, *, lease_seconds: float) -> list[dict[str, Any]]:
    """Bury the handoffs that lost ten leases. This uses up no attempt.

    Args:
        conn: The caller's connection; nothing is committed here.
        lease_seconds: As for :func:`lease_handoffs`.

    Returns:
        ``handoff_id`` and ``response_id`` of each.
    """
    with translated():
        return list(as_dicts(await conn.execute(_BURY_LOST, {"lease_seconds": lease_seconds})))


async def renew_leases(
    conn: AsyncConnection, leases: Sequence[tuple[int, UUID]], *, lease_seconds: float
) -> frozenset[int]:
    """Keep leases for another ``lease_seconds``.

    Args:
        conn: The caller's connection, as for :func:`lease_handoffs`.
        leases: ``handoff_id`` and ``lease_token`` of each.
        lease_seconds: From now on, seconds.

    Returns:
        The ``handoff_id`` that were renewed. One that is missing was lost, or is being settled right now.
    """
    given = {
        "handoff_ids": [handoff_id for handoff_id, _ in leases],
        "lease_tokens": [lease_token for _, lease_token in leases],
        "lease_seconds": lease_seconds,
    }
    with translated():
        return frozenset((await conn.execute(_RENEW, given)).scalars())
