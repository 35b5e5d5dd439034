"""Fills a database with what years of use leave behind, quickly: without triggers and without waiting for the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

# Students who are looked at: each has so many answers, spread evenly over all that is stored.
ACTIVE_USERS = range(101, 201)
ANSWERS_OF_EACH = 60
# And the others, who have the rest.
OTHER_USERS = range(1_001, 101_001)
# And some who have answered nothing yet.
NEW_USERS = range(200_001, 201_001)
CHUNK = 250_000

_USERS = text(
    "INSERT INTO users SELECT generate_series(CAST(:first AS integer), CAST(:last AS integer)) ON CONFLICT DO NOTHING"
)
_UNCHECKED = text("SELECT set_config('session_replication_role', 'replica', true)")
_UNSYNCED = text("SELECT set_config('synchronous_commit', 'off', true)")

# Answers of 600 characters. Every so-manieth is of one of the students who are looked at.
_RESPONSES = text("""
    WITH stored AS (INSERT INTO assessment_responses (
        user_id, module_slug, question_id, answer_text, submission_key, question_digest, created_at
    )
    SELECT
        CASE WHEN i % :step = 0 THEN :active + (i / :step) % :actives ELSE :other + i % :others END,
        'bench', 'q', repeat(md5(i::text), 18) || ' and so on and so on', uuidv7(),
        (SELECT question_digest FROM assessment_questions), now() - interval '1 day'
    FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS i
    RETURNING response_id) SELECT min(response_id), max(response_id) FROM stored
""")

# Their scores. Each settled a handoff of its own, with an id that no handoff to come will have.
_SCORES = text("""
    INSERT INTO assessment_scores (
        response_id, handoff_id, question_digest, model_id, prompt_version, score_data, created_at
    )
    SELECT
        response_id, -response_id, question_digest, 'model', '1',
        '{"overall_score": 4.0, "reasoning": "Names both pigments, and says which colours they take up and which not."}',
        created_at
    FROM assessment_responses WHERE response_id BETWEEN :first AND :last
""")

# Or their handoffs, due one after the other.
_HANDOFFS = text("""
    INSERT INTO scoring_handoffs (response_id, question_digest, due_at)
    SELECT response_id, question_digest, now() - interval '1 hour' + response_id * interval '1 microsecond'
    FROM assessment_responses WHERE response_id BETWEEN :first AND :last
""")

_VERIFIED = text("""
    INSERT INTO scoring_watermarks AS w (name, verified_response_id, pending_response_id, pending_xid, pending_at)
    SELECT 'verify', max(response_id) - :answers, max(response_id) - :answers,
        pg_snapshot_xmin(pg_current_snapshot())::text::bigint, now()
    FROM assessment_responses
    ON CONFLICT (name) DO UPDATE SET
        verified_response_id = excluded.verified_response_id, pending_response_id = excluded.pending_response_id,
        pending_at = excluded.pending_at
""")


async def add_many_users(engine: AsyncEngine) -> None:
    """Make the students."""
    async with engine.begin() as conn:
        for users in (ACTIVE_USERS, OTHER_USERS, NEW_USERS):
            await conn.execute(_USERS, {"first": users[0], "last": users[-1]})


async def store(engine: AsyncEngine, answers: int, *, scored: bool) -> None:
    """Store answers, each with its score or each with a due handoff.

    Args:
        engine: Logged in as a superuser: foreign keys are not checked.
        answers: How many.
        scored: Whether they have scores.
    """
    step = max(1, answers // (len(ACTIVE_USERS) * ANSWERS_OF_EACH))
    for start in range(1, answers + 1, CHUNK):
        end = min(answers, start + CHUNK - 1)
        async with engine.begin() as conn:
            await conn.execute(_UNCHECKED)
            await conn.execute(_UNSYNCED)
            await _store_chunk(conn, start, end, step=step, scored=scored)


async def _store_chunk(conn: AsyncConnection, start: int, end: int, *, step: int, scored: bool) -> None:
    given = {
        "first": start,
        "last": end,
        "step": step,
        "active": ACTIVE_USERS[0],
        "actives": len(ACTIVE_USERS),
        "other": OTHER_USERS[0],
        "others": len(OTHER_USERS),
    }
    first, last = (await conn.execute(_RESPONSES, given)).one()
    await conn.execute(_SCORES if scored else _HANDOFFS, {"first": first, "last": last})


async def settle_down(engine: AsyncEngine) -> None:
    """Do what autovacuum and the checkpointer would have done long ago."""
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with autocommit.connect() as conn:
        await conn.execute(text("SET statement_timeout = 0"))
        await conn.execute(text("VACUUM ANALYZE"))
        await conn.execute(text("CHECKPOINT"))


async def verified_but(engine: AsyncEngine, answers: int) -> None:
    """Remember all but the last answers as verified long ago."""
    async with engine.begin() as conn:
        await conn.execute(_VERIFIED, {"answers": answers})
