"""What happened within the last hour, for people: how much, how fast, at what price, with which scores.

Everything here costs the same whether ten answers were scored in that hour or a million. How many came in a minute is
found from the ids at its ends; times, tokens and scores are those of a sample, spread evenly over the hour's ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from storage.rows import as_dicts
from storage.translation import translated

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

MINUTES = 60
# So many scores are looked at; where the hour has no more, all of them. Enough for a 99th percentile of an hour, and
# some tens of milliseconds of reading.
SAMPLE = 5_000
# So many rows of one minute are counted one by one. Beyond it the difference of ids must do: it also counts what was
# rolled back or sent twice, which at such a rate hardly shows.
COUNTED = 500
# A histogram has so many columns, whatever the scale of its question.
BINS = 10
# Questions with a histogram, those with most scores first.
QUESTIONS = 12

# The ends of the last sixty minutes; the last one is now, so that the last minute is not over yet.
_EDGES = f"""
    SELECT minute, least(
        statement_timestamp(), date_trunc('minute', statement_timestamp()) - make_interval(mins => {MINUTES - 1} - minute)
    ) AS ends_at
    FROM generate_series(0, {MINUTES}) AS minute
"""


def _per_minute(table: str, key: str) -> str:
    """Count the rows between the ids at both ends of each minute; expects ``edges (minute, ends_at, last_id)``."""
    return f"""
        SELECT one.minute - 1 AS minute, before.ends_at AS starts_at,
            CASE WHEN exact.rows <= {COUNTED} THEN exact.rows
            ELSE one.last_id - before.last_id END AS rows, exact.rows > {COUNTED} AS estimated
        FROM edges AS one JOIN edges AS before ON before.minute = one.minute - 1
        CROSS JOIN LATERAL (
            SELECT count(*) AS rows FROM (
                SELECT 1 FROM {table} WHERE {key} > before.last_id AND {key} <= one.last_id LIMIT {COUNTED + 1}
            ) AS counted
        ) AS exact
        ORDER BY one.minute
    """


# How many answers came in each minute. Their time has no index, which every submit would have to pay for; but ids and
# times grow together, so the last id before each end is found by halving: some thirty looks at the primary key.
_SUBMITTED = text(f"""
    WITH RECURSIVE ends AS MATERIALIZED ({_EDGES}),
    reach AS MATERIALIZED (
        SELECT coalesce(min(response_id) - 1, 0) AS low, coalesce(max(response_id), 0) AS high FROM assessment_responses
    ),
    halving (minute, ends_at, low, high) AS (
        SELECT ends.minute, ends.ends_at, reach.low, reach.high FROM ends CROSS JOIN reach
        UNION ALL
        SELECT halving.minute, halving.ends_at,
            CASE WHEN middle.created_at <= halving.ends_at THEN middle.response_id ELSE halving.low END,
            CASE WHEN middle.created_at <= halving.ends_at THEN halving.high ELSE (halving.low + halving.high) / 2 END
        FROM halving CROSS JOIN LATERAL (
            SELECT r.response_id, r.created_at FROM assessment_responses AS r
            WHERE r.response_id > (halving.low + halving.high) / 2 ORDER BY r.response_id LIMIT 1
        ) AS middle
        WHERE halving.low < halving.high
    ),
    edges AS MATERIALIZED (
        SELECT minute, ends_at, low AS last_id FROM halving WHERE low >= high
    )
    {_per_minute("assessment_responses", "response_id")}
""")

# How many scores were written in each minute.
_SCORED = text(f"""
    WITH edges AS MATERIALIZED (
        SELECT ends.minute, ends.ends_at, coalesce(
            (
                SELECT s.score_id FROM assessment_scores AS s
                WHERE s.created_at <= ends.ends_at ORDER BY s.created_at DESC, s.score_id DESC LIMIT 1
            ),
            (SELECT min(score_id) - 1 FROM assessment_scores), 0
        ) AS last_id
        FROM ({_EDGES}) AS ends
    )
    {_per_minute("assessment_scores", "score_id")}
""")

# The scores that are looked at: every one of the hour, or every so manyth. By id: a look at the primary key each, and
# an id that was rolled back is left out. OFFSET 0 keeps the planner from turning those looks into one long scan.
_SAMPLED = f"""
    reach AS MATERIALIZED (
        SELECT date_trunc('minute', statement_timestamp()) - make_interval(mins => {MINUTES - 1}) AS starts_at,
            coalesce((SELECT max(score_id) FROM assessment_scores), 0) AS high
    ),
    bounds AS MATERIALIZED (
        SELECT reach.starts_at, reach.high, coalesce(
            (
                SELECT s.score_id FROM assessment_scores AS s
                WHERE s.created_at <= reach.starts_at ORDER BY s.created_at DESC, s.score_id DESC LIMIT 1
            ),
            (SELECT min(score_id) - 1 FROM assessment_scores), 0
        ) AS low
        FROM reach
    ),
    paces AS MATERIALIZED (
        SELECT bounds.*, greatest(1, ceil((high - low) / {SAMPLE}.0))::bigint AS step FROM bounds
    ),
    sampled AS MATERIALIZED (
        SELECT s.*, paces.starts_at
        FROM paces CROSS JOIN LATERAL generate_series(paces.low + 1, paces.high, paces.step) AS chosen (score_id)
        CROSS JOIN LATERAL (
            SELECT s.score_id, s.response_id, s.question_digest, s.picked_up_at, s.created_at,
                s.score_data -> 'usage' AS usage, s.score_data -> 'overall_score' AS overall_score
            FROM assessment_scores AS s WHERE s.score_id = chosen.score_id OFFSET 0
        ) AS s
    )
"""


def _number(name: str) -> str:
    """A number of a score's usage, whoever wrote it; what is no number counts as none."""
    return f"CASE WHEN jsonb_typeof(usage -> '{name}') = 'number' THEN (usage ->> '{name}')::double precision END"


# How long answers waited for a worker, and how long they were worked on; for each minute, and for the hour (null).
# A pickup is counted for an answer's first score and within the hour in which it came: a rescore waits on purpose, and
# so does what was stored long before its question.
_TIMES = text(f"""
    WITH {_SAMPLED},
    timed AS MATERIALIZED (
        SELECT floor(extract(epoch FROM sampled.created_at - sampled.starts_at) / 60)::integer AS minute, usage,
            extract(epoch FROM sampled.created_at - sampled.picked_up_at)::double precision AS scoring_seconds,
            extract(epoch FROM sampled.picked_up_at - r.created_at)::double precision AS pickup_seconds
        FROM sampled LEFT JOIN LATERAL (
            SELECT r.created_at FROM assessment_responses AS r
            WHERE r.response_id = sampled.response_id AND r.created_at > sampled.starts_at
                AND NOT EXISTS (
                    SELECT 1 FROM assessment_scores AS earlier
                    WHERE earlier.response_id = sampled.response_id AND earlier.score_id < sampled.score_id
                )
            OFFSET 0
        ) AS r ON true
    )
    SELECT minute, count(*) AS looked_at, (SELECT step FROM paces) AS step,
        percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY greatest(0, pickup_seconds))
            FILTER (WHERE pickup_seconds IS NOT NULL) AS pickup_seconds,
        percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY greatest(0, scoring_seconds))
            FILTER (WHERE scoring_seconds IS NOT NULL) AS scoring_seconds,
        coalesce(sum({_number("requests")}), 0) AS requests,
        coalesce(sum({_number("input_tokens")}), 0) AS input_tokens,
        coalesce(sum({_number("output_tokens")}), 0) AS output_tokens,
        sum({_number("cost_usd")}) AS cost_usd,
        count({_number("cost_usd")}) AS priced
    FROM timed GROUP BY GROUPING SETS ((minute), ())
    ORDER BY minute NULLS FIRST
""")

# How scores spread over the scale of their question; questions with most scores first.
_SPREAD = text(f"""
    WITH {_SAMPLED},
    binned AS MATERIALIZED (
        SELECT question_digest, least({BINS}, greatest(1, width_bucket(
            (sampled.overall_score #>> '{{}}')::double precision, q.scale_min, q.scale_max, {BINS}
        ))) AS bin, (sampled.overall_score #>> '{{}}')::double precision AS overall_score
        FROM sampled JOIN assessment_questions AS q USING (question_digest)
        WHERE jsonb_typeof(sampled.overall_score) = 'number'
    ),
    counted AS MATERIALIZED (
        SELECT question_digest, count(*) AS looked_at, avg(overall_score) AS mean FROM binned
        GROUP BY question_digest ORDER BY looked_at DESC, question_digest LIMIT {QUESTIONS}
    )
    SELECT q.module_slug, q.question_id, q.question_digest, q.scale_min, q.scale_max, counted.looked_at, counted.mean,
        ARRAY(
            SELECT (SELECT count(*) FROM binned WHERE binned.question_digest = q.question_digest AND binned.bin = bins.bin)
            FROM generate_series(1, {BINS}) AS bins (bin) ORDER BY bins.bin
        ) AS bins
    FROM counted JOIN assessment_questions AS q USING (question_digest)
    ORDER BY counted.looked_at DESC, q.module_slug, q.question_id
""")

_PERCENTILES = ("p50", "p95", "p99")


async def last_hour(conn: AsyncConnection) -> dict[str, Any]:
    """Tell what happened within the last sixty minutes, of which the last is not over yet.

    Args:
        conn: The caller's connection, best one of :func:`storage.reading.reading`.

    Returns:
        ``minutes`` (sixty, oldest first: ``starts_at``, ``answers``, ``scores``, ``pickup_seconds`` and
        ``scoring_seconds`` with ``p50``, ``p95`` and ``p99``, or None where nothing was scored), the same for the
        whole ``hour`` with ``requests``, ``input_tokens``, ``output_tokens`` and ``cost_usd`` (None where no price
        is known), ``questions`` (``bins`` counts scores in ten equal parts of the scale), ``looked_at`` (how many
        scores the times, tokens, money and questions are taken from), ``is_sample`` (whether those are not all: then
        tokens and money are projected) and ``is_estimated`` (whether some minutes were counted by their ids alone).
    """
    with translated():
        answers = list(as_dicts(await conn.execute(_SUBMITTED)))
        scores = list(as_dicts(await conn.execute(_SCORED)))
        hour, *timed = as_dicts(await conn.execute(_TIMES))
        questions = list(as_dicts(await conn.execute(_SPREAD)))
    by_minute = {row["minute"]: row for row in timed}
    minutes = [
        {
            "starts_at": came["starts_at"],
            "answers": came["rows"],
            "scores": went["rows"],
            "pickup_seconds": _named(by_minute.get(came["minute"], {}).get("pickup_seconds")),
            "scoring_seconds": _named(by_minute.get(came["minute"], {}).get("scoring_seconds")),
        }
        for came, went in zip(answers, scores, strict=True)
    ]
    return {
        "minutes": minutes,
        "hour": _hour(hour, minutes),
        "questions": questions,
        "looked_at": hour["looked_at"],
        "is_sample": hour["step"] > 1,
        "is_estimated": any(row["estimated"] for row in (*answers, *scores)),
    }


def _named(values: list[float] | None) -> dict[str, float] | None:
    return None if values is None else dict(zip(_PERCENTILES, values, strict=True))


def _hour(sampled: dict[str, Any], minutes: list[dict[str, Any]]) -> dict[str, Any]:
    """The hour as a whole; what was summed over a sample is projected to all scores."""
    cost, looked_at, step = sampled["cost_usd"], sampled["looked_at"], sampled["step"]
    return {
        "answers": sum(minute["answers"] for minute in minutes),
        "scores": sum(minute["scores"] for minute in minutes),
        "pickup_seconds": _named(sampled["pickup_seconds"]),
        "scoring_seconds": _named(sampled["scoring_seconds"]),
        **{name: round(sampled[name] * step) for name in ("requests", "input_tokens", "output_tokens")},
        "cost_usd": None if cost is None else cost * step,
        "share_priced": sampled["priced"] / looked_at if looked_at else None,
    }
