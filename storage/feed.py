"""What the live feed reads: what is new, what has changed, and what an owner has missed.

All of it is read in one snapshot: call these in one REPEATABLE READ transaction. Nothing here writes or locks.

An owner's cursor is a transaction id, the ``xmin`` of a snapshot: whatever was committed by transactions below it, that
snapshot saw. So what a row's own ``xmin`` says is enough to tell what came since, whatever order ids were committed in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError

from storage.errors import AccessDeniedError
from storage.rows import as_dicts
from storage.translation import translated

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from storage.validation import Owner

# Of an owner's answers so many are looked at, the newest.
MAX_ANSWERS = 10_000
# One page of news of each kind; what is left comes with the next one.
NEWS_LIMIT = 5_000

# As storage.responses says it, for a handoff that exists.
_STATE = """
    CASE
        WHEN h.state <> 'open' THEN 'failed'
        WHEN h.question_digest IS NULL THEN 'unpublished'
        WHEN h.lease_token IS NOT NULL AND h.due_at > now() THEN 'scoring'
        ELSE 'waiting'
    END
"""

# How many transactions ago a row was written. A row keeps 32 bits of its transaction's id: one that is older than four
# thousand million transactions looks younger than it is, and is told once more than it need be.
_AGE = """
    mod(
        CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint)
            - CAST(CAST({row}.xmin AS text) AS bigint) + 4294967296,
        4294967296
    )
"""

# Which line of transaction ids this server goes on with. A standby that takes over (another timeline), a restored backup
# and a recovery after a crash (which forgets the statistics) may give ids anew that were given before: what committed
# last is lost then, with leases even on the same server, because those do not wait for the disk.
_LINEAGE = text("""
    SELECT concat_ws('/',
        (SELECT system_identifier FROM pg_control_system()),
        CASE WHEN pg_is_in_recovery() THEN 'standby' ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END,
        (SELECT extract(epoch FROM stats_reset) FROM pg_stat_bgwriter)
    )
""")

# The highest ids that are visible.
_MARKS = text("""
    SELECT
        (SELECT coalesce(max(response_id), 0) FROM assessment_responses) AS response,
        (SELECT coalesce(max(score_id), 0) FROM assessment_scores) AS score,
        (SELECT coalesce(max(handoff_id), 0) FROM scoring_handoffs) AS handoff,
        (SELECT coalesce(max(claim_id), 0) FROM assessment_claims) AS claim
""")

# New rows by their primary keys, those of gaps, and watched answers whose state is another now. A watched answer
# without a handoff has no state: it was scored, or erased.
_NEWS = text(f"""
    WITH news AS (
        (
            SELECT 'response' AS kind, response_id AS id, response_id,
                CAST(NULL AS integer) AS claimed_by, CAST(NULL AS boolean) AS is_applied
            FROM assessment_responses WHERE response_id > CAST(:response AS bigint)
            ORDER BY response_id LIMIT :limit
        )
        UNION ALL
        SELECT 'response', response_id, response_id, NULL, NULL
        FROM assessment_responses WHERE response_id = ANY (CAST(:response_gaps AS bigint[]))
        UNION ALL
        (
            SELECT 'score', score_id, response_id, NULL, NULL
            FROM assessment_scores WHERE score_id > CAST(:score AS bigint)
            ORDER BY score_id LIMIT :limit
        )
        UNION ALL
        SELECT 'score', score_id, response_id, NULL, NULL
        FROM assessment_scores WHERE score_id = ANY (CAST(:score_gaps AS bigint[]))
        UNION ALL
        (
            SELECT 'handoff', handoff_id, response_id, NULL, NULL
            FROM scoring_handoffs WHERE handoff_id > CAST(:handoff AS bigint)
            ORDER BY handoff_id LIMIT :limit
        )
        UNION ALL
        (
            SELECT 'claim', claim_id, NULL, user_id, applied_at IS NOT NULL
            FROM assessment_claims WHERE claim_id > CAST(:claim AS bigint)
            ORDER BY claim_id LIMIT :limit
        )
        UNION ALL
        SELECT 'claim', claim_id, NULL, user_id, applied_at IS NOT NULL
        FROM assessment_claims WHERE claim_id = ANY (CAST(:claim_gaps AS bigint[]))
        UNION ALL
        SELECT 'watched', watched.response_id, watched.response_id, NULL, NULL
        FROM unnest(CAST(:watched_ids AS bigint[]), CAST(:watched_states AS text[])) AS watched (response_id, state)
        LEFT JOIN LATERAL (
            SELECT {_STATE} AS state FROM scoring_handoffs AS h WHERE h.response_id = watched.response_id LIMIT 1
        ) AS handoff ON true
        WHERE handoff.state IS DISTINCT FROM watched.state
    )
    SELECT
        CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint) AS oldest_running,
        CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint) AS next_to_start,
        news.kind, news.id, news.response_id, news.claimed_by, news.is_applied, r.user_id, r.anonymous_token
    FROM (SELECT 1) AS snapshot LEFT JOIN news ON true
    LEFT JOIN LATERAL (
        SELECT user_id, anonymous_token FROM assessment_responses WHERE response_id = news.response_id LIMIT 1
    ) AS r ON true
""")

_COLUMNS = """
    r.response_id, r.user_id, r.anonymous_token, r.module_slug, r.question_id,
    coalesce(handoff.state, 'scored') AS state,
    score.score_id, score.score_data, score.model_id, score.created_at AS scored_at, asked.scale_min, asked.scale_max
"""
# Each by its index, one step an answer, however many wait: LIMIT keeps the planner from reading them all.
_STATE_OF_RESPONSE = f"""
    LEFT JOIN LATERAL (
        SELECT {_STATE} AS state FROM scoring_handoffs AS h WHERE h.response_id = r.response_id LIMIT 1
    ) AS handoff ON true
    LEFT JOIN LATERAL (
        SELECT s.score_id, s.score_data, s.model_id, s.question_digest, s.created_at, {_AGE.format(row="s")} AS age
        FROM assessment_scores AS s WHERE s.response_id = r.response_id ORDER BY s.score_id DESC LIMIT 1
    ) AS score ON true
    LEFT JOIN LATERAL (
        SELECT q.scale_min, q.scale_max FROM assessment_questions AS q
        WHERE q.question_digest = score.question_digest LIMIT 1
    ) AS asked ON true
"""

# How these answers stand now.
_STATES = text(f"""
    SELECT {_COLUMNS}
    FROM unnest(CAST(:response_ids AS bigint[])) AS changed (response_id)
    JOIN assessment_responses AS r USING (response_id)
    {_STATE_OF_RESPONSE}
    ORDER BY r.response_id
""").columns(score_data=JSONB)


def _newest(whose: str) -> str:
    return f"""(
        SELECT r.response_id, r.user_id, r.anonymous_token, r.module_slug, r.question_id, {_AGE.format(row="r")} AS age,
            row_number() OVER (ORDER BY r.response_id DESC) AS place
        FROM assessment_responses AS r WHERE {whose}
        ORDER BY r.response_id DESC LIMIT :max_answers
    )"""


# What owners are to be told at once: everything that is not scored; and with a cursor what came since, that is answers
# that are new or were claimed, and scores; without one, or with one from a future that was lost, the newest.
_OWNED = text(f"""
    SELECT wanted.position, {_COLUMNS}
    FROM (
        SELECT given.position, given.user_id, given.anonymous_token,
            CASE WHEN given.since <= horizon.next_to_start THEN horizon.next_to_start - given.since END AS max_age
        FROM unnest(CAST(:user_ids AS integer[]), CAST(:tokens AS text[]), CAST(:since AS bigint[]))
            WITH ORDINALITY AS given (user_id, anonymous_token, since, position)
        CROSS JOIN (
            SELECT CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint) AS next_to_start
        ) AS horizon
    ) AS wanted
    CROSS JOIN LATERAL (
        {_newest("r.user_id = wanted.user_id")} UNION ALL {_newest("r.anonymous_token = wanted.anonymous_token")}
    ) AS r
    {_STATE_OF_RESPONSE}
    WHERE handoff.state IS NOT NULL OR r.age <= wanted.max_age OR score.age <= wanted.max_age
        OR wanted.max_age IS NULL AND r.place <= :newest
    ORDER BY wanted.position, r.response_id
""").columns(score_data=JSONB)

# What these users have claimed and nobody has applied yet.
_REQUESTED = text("""
    SELECT claim_id, user_id FROM assessment_claims
    WHERE user_id = ANY (CAST(:user_ids AS integer[])) AND applied_at IS NULL
""")


async def read_lineage(conn: AsyncConnection, *, has_told: bool = False) -> str | None:
    """Read which line of transaction ids the server goes on with: cursors of another line may be of what was lost.

    Args:
        conn: The caller's connection, in a transaction.
        has_told: The server has told it before. Then no savepoint is set, and a refusal is an error as any other.

    Returns:
        A text that changes with the line; None where the server does not say: not every one that is run by others
        shows these functions.

    Raises:
        StorageUnavailableError: PostgreSQL is away.
    """
    if has_told:
        with translated():
            return str((await conn.execute(_LINEAGE)).scalar_one())
    try:
        with translated():
            async with conn.begin_nested():
                return str((await conn.execute(_LINEAGE)).scalar_one())
    except (AccessDeniedError, DBAPIError):  # no privilege, or no such function
        return None


async def read_marks(conn: AsyncConnection) -> dict[str, int]:
    """Read the highest visible ids.

    Args:
        conn: The caller's connection.

    Returns:
        ``response``, ``score``, ``handoff`` and ``claim``; 0 where there is none.
    """
    with translated():
        return dict(next(as_dicts(await conn.execute(_MARKS))))


async def read_news(
    conn: AsyncConnection,
    *,
    marks: Mapping[str, int],
    gaps: Mapping[str, Sequence[int]],
    watched: Mapping[int, str],
) -> tuple[int, int, list[dict[str, Any]]]:
    """Read what has come above some ids or in some gaps below them, and what else has changed.

    Args:
        conn: The caller's connection.
        marks: What was read before, by kind as :func:`read_marks` names them; at most ``NEWS_LIMIT`` rows above each.
        gaps: More ids, of ``response``, ``score`` and ``claim``.
        watched: The state in which the caller knows answers that are not scored.

    Returns:
        The oldest transaction that was running, the next that will start, and rows with ``kind``, ``id``,
        ``response_id``, ``user_id`` and ``anonymous_token``; a claim has ``claimed_by`` and ``is_applied``. The kind
        ``watched`` stands for an answer whose state is another than given, or that has gone.
    """
    given = {
        **marks,
        **{f"{kind}_gaps": list(gaps[kind]) for kind in ("response", "score", "claim")},
        "watched_ids": list(watched.keys()),
        "watched_states": list(watched.values()),
        "limit": NEWS_LIMIT,
    }
    with translated():
        rows = list(as_dicts(await conn.execute(_NEWS, given)))
    found = [row for row in rows if row["kind"] is not None]
    return rows[0]["oldest_running"], rows[0]["next_to_start"], found


async def read_states(conn: AsyncConnection, response_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Read how answers stand, each with its owner and its current score.

    Args:
        conn: The caller's connection.
        response_ids: Which; those that do not exist are left out.

    Returns:
        Rows with ``response_id``, ``user_id``, ``anonymous_token``, ``module_slug``, ``question_id``, ``state``, and of
        the score ``score_id``, ``score_data``, ``model_id``, ``scored_at``, ``scale_min`` and ``scale_max``, or None.
    """
    with translated():
        return list(as_dicts(await conn.execute(_STATES, {"response_ids": list(response_ids)})))


async def read_missed(
    conn: AsyncConnection, wanted: Sequence[tuple[Owner, int | None]], *, newest: int
) -> list[dict[str, Any]]:
    """Read what owners have missed, or where they are new, how they stand.

    Args:
        conn: The caller's connection.
        wanted: Each owner, and the ``xmin`` of the last snapshot of which he was told everything, or None.
        newest: So many of the newest answers for one who was told nothing yet.

    Returns:
        Rows as of :func:`read_states`, and the ``position`` in ``wanted``, counted from 1. Answers that are not scored
        are among them whether they have changed or not. Only the newest ``MAX_ANSWERS`` of each owner are looked at.
    """
    given = {
        "user_ids": [owner.user_id for owner, _ in wanted],
        "tokens": [owner.anonymous_token for owner, _ in wanted],
        "since": [since for _, since in wanted],
        "newest": newest,
        "max_answers": MAX_ANSWERS,
    }
    with translated():
        return list(as_dicts(await conn.execute(_OWNED, given)))


async def read_requested_claims(conn: AsyncConnection, user_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Read which claims of these users wait to be applied: ``claim_id`` and ``user_id``."""
    with translated():
        return list(as_dicts(await conn.execute(_REQUESTED, {"user_ids": list(user_ids)})))
