"""An hour of answers and scores that has just passed, made up: for pictures, and for looking at the console at leisure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

# Answers of the hour before this minute: an evening that swells, with a minute of a hanging provider in it.
_RESPONSES = text("""
    INSERT INTO assessment_responses (anonymous_token, module_slug, question_id, answer_text, question_digest, created_at)
    SELECT 'made up', q.module_slug, q.question_id, 'Made up.', q.question_digest, at
    FROM generate_series(1, 62) AS minute
    CROSS JOIN LATERAL generate_series(1, (
        :answers_a_minute * (0.75 + 0.3 * sin(minute / 9.0) + 0.12 * sin(minute * 1.7) + 0.08 * random())
    )::integer) AS number
    CROSS JOIN LATERAL (
        SELECT statement_timestamp() - make_interval(secs => 60 * (minute - random() - 0.0001 * number)) AS at
    ) AS times
    CROSS JOIN LATERAL (
        SELECT module_slug, question_id, question_digest FROM assessment_questions
        ORDER BY random() * (1 + (publication % 4)) + 0.0 * number LIMIT 1
    ) AS q
    WHERE at < statement_timestamp() - interval '5 seconds'
    ORDER BY at
""")

# Their scores. A pickup takes some milliseconds, scoring some seconds; both longer while the provider hung.
_SCORES = text("""
    INSERT INTO assessment_scores (
        response_id, handoff_id, question_digest, model_id, prompt_version, score_data, picked_up_at, created_at
    )
    SELECT response_id, nextval(pg_get_serial_sequence('scoring_handoffs', 'handoff_id')), question_digest,
        'random-1', '1', jsonb_build_object(
            'overall_score', round((scale_min + (scale_max - scale_min) * least(1, greatest(0,
                0.45 + 0.08 * (publication % 6) + 0.17 * (random() + random() + random() - 1.5)
            )))::numeric, 2),
            'reasoning', 'Made up.',
            'usage', jsonb_build_object(
                'requests', 1, 'input_tokens', 640 + floor(540 * random()), 'output_tokens', 90 + floor(170 * random()),
                'cost_usd', 0.0004 + 0.0007 * random(), 'seconds', scoring
            )
        ), picked_up_at, picked_up_at + make_interval(secs => scoring) AS scored_at
    FROM (
        SELECT r.response_id, r.created_at, q.*,
            r.created_at + make_interval(secs => (0.006 + 0.008 * random() + 0.03 * random() ^ 12) * strain) AS picked_up_at,
            (1.8 * exp(0.45 * (random() + random() + random() + random() - 2) * 1.73)) * (1 + 0.15 * (strain - 1)) AS scoring
        FROM assessment_responses AS r JOIN assessment_questions AS q USING (question_digest)
        CROSS JOIN LATERAL (
            SELECT CASE WHEN r.created_at BETWEEN statement_timestamp() - interval '23 minutes'
                AND statement_timestamp() - interval '20 minutes' THEN 5.0 ELSE 1.0 END AS strain
        ) AS provider
        WHERE r.anonymous_token = 'made up'
    ) AS answered
    ORDER BY scored_at
""")

# Whoever wrote these has been scored: nothing of them waits.
_KNOWN = text("ANALYZE assessment_responses, assessment_scores")


async def make_up_an_hour(conn: AsyncConnection, *, answers_a_minute: int = 240) -> None:
    """Store an hour that has just passed: answers with their scores, times and costs, none of which took place.

    Args:
        conn: A connection of the tables' owner to a database of its own; nothing is committed here.
        answers_a_minute: About so many.
    """
    await conn.execute(_RESPONSES, {"answers_a_minute": answers_a_minute})
    await conn.execute(_SCORES)
    await conn.execute(_KNOWN)
