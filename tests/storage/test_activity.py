from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from storage import submit_responses
from storage.activity import BINS, COUNTED, MINUTES, SAMPLE, last_hour
from storage.dead import rescore_responses
from storage.settlements import settle_handoffs
from tests.factories import lease, publish, settlement, submission

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

# Answers with their scores, given as arrays: how many seconds ago each came, was picked up and was scored.
STORE = text("""
    WITH given AS MATERIALIZED (
        SELECT * FROM unnest(
            CAST(:came AS double precision[]), CAST(:picked AS double precision[]), CAST(:scored AS double precision[]),
            CAST(:data AS text[])
        ) WITH ORDINALITY AS given (came, picked, scored, data, position)
    ), stored AS (
        INSERT INTO assessment_responses (user_id, module_slug, question_id, answer_text, question_digest, created_at)
        SELECT 1, 'biology', 'photosynthesis', 'a', :digest, statement_timestamp() - make_interval(secs => came)
        FROM given ORDER BY position RETURNING response_id
    ), numbered AS MATERIALIZED (
        SELECT response_id, row_number() OVER (ORDER BY response_id) AS position FROM stored
    )
    INSERT INTO assessment_scores
        (response_id, handoff_id, question_digest, model_id, prompt_version, score_data, picked_up_at, created_at)
    SELECT response_id, nextval(pg_get_serial_sequence('scoring_handoffs', 'handoff_id')), :digest, 'm', 'p',
        CAST(data AS jsonb), statement_timestamp() - make_interval(secs => picked),
        statement_timestamp() - make_interval(secs => scored)
    FROM given JOIN numbered USING (position) WHERE scored IS NOT NULL ORDER BY position
""")

# The same counted by looking at every row.
COUNT = """
    SELECT floor(extract(epoch FROM created_at - (date_trunc('minute', statement_timestamp()) - interval '{last} minutes')) / 60)
        ::integer AS minute, count(*) AS rows
    FROM {table} GROUP BY minute
"""


async def store(
    conn: AsyncConnection, rows: list[tuple[float, float | None, float | None]], **data: Any
) -> None:
    """Store answers and scores of some seconds ago, the oldest first."""
    score = json.dumps({"overall_score": 3.0, "reasoning": "r"} | data)
    await conn.execute(
        STORE,
        {
            "came": [row[0] for row in rows],
            "picked": [row[1] for row in rows],
            "scored": [row[2] for row in rows],
            "data": [score] * len(rows),
            "digest": await publish(conn),
        },
    )


async def counted(conn: AsyncConnection, table: str) -> dict[int, int]:
    found = await conn.execute(text(COUNT.format(table=table, last=MINUTES - 1)))
    return {row.minute: row.rows for row in found if 0 <= row.minute < MINUTES}


def burn_ids(table: str, key: str, number: int) -> str:
    return (
        f"SELECT count(nextval(pg_get_serial_sequence('{table}', '{key}'))) FROM generate_series(1, {number})"
    )


async def test_an_empty_hour_has_sixty_minutes(conn: AsyncConnection) -> None:
    """Nothing came, nothing was scored, nothing is divided by zero."""
    seen = await last_hour(conn)

    assert len(seen["minutes"]) == MINUTES
    assert all(
        minute["answers"] == minute["scores"] == 0 and minute["pickup_seconds"] is None
        for minute in seen["minutes"]
    )
    assert seen["hour"] == {
        "answers": 0,
        "scores": 0,
        "pickup_seconds": None,
        "scoring_seconds": None,
        "requests": 0,
        "input_tokens": 0,
        "output_tokens": 0,
        "cost_usd": None,
        "share_priced": None,
    }
    assert (seen["questions"], seen["looked_at"], seen["is_sample"]) == ([], 0, False)


async def test_every_answer_and_score_is_counted_in_its_minute(conn: AsyncConnection) -> None:
    """Whatever the rhythm and however many ids are missing, the halving finds what a count of all rows finds."""
    luck = random.Random(7)
    for _ in range(6):
        ago = sorted((luck.uniform(0, 5000) for _ in range(luck.randint(1, 40))), reverse=True)
        middle = len(ago) // 2
        await store(conn, [(seconds, seconds, seconds) for seconds in ago[:middle]] or [(6000, 6000, 6000)])
        await conn.execute(text(burn_ids("assessment_responses", "response_id", luck.randint(0, 3000))))
        await conn.execute(text(burn_ids("assessment_scores", "score_id", luck.randint(0, 300))))
        await store(conn, [(seconds, seconds, seconds) for seconds in ago[middle:]])

        seen = await last_hour(conn)

        for name, table in (("answers", "assessment_responses"), ("scores", "assessment_scores")):
            expected = await counted(conn, table)
            found = {number: minute[name] for number, minute in enumerate(seen["minutes"]) if minute[name]}
            assert found == expected, name
        await conn.execute(text("DELETE FROM assessment_scores"))
        await conn.execute(text("DELETE FROM assessment_responses"))


async def test_a_busy_minute_is_counted_by_its_ids(conn: AsyncConnection) -> None:
    """From some hundred rows on the difference of ids must do, and it is said so."""
    await store(conn, [(1800, 1800, 1800)] * COUNTED)
    assert not (await last_hour(conn))["is_estimated"]

    await store(conn, [(1800, 1800, 1800)])
    seen = await last_hour(conn)

    assert seen["is_estimated"]
    assert max(minute["scores"] for minute in seen["minutes"]) == COUNTED + 1
    assert seen["hour"]["answers"] == COUNTED + 1


async def test_times_are_percentiles_of_first_scores(conn: AsyncConnection) -> None:
    """Pickup counts from the submission, scoring from there; both of the minute in which the score came."""
    await store(conn, [(1800, 1800 - wait, 1800 - wait - 2) for wait in (1.0, 2.0, 3.0, 4.0, 5.0)])

    seen = await last_hour(conn)

    [minute] = [minute for minute in seen["minutes"] if minute["scores"]]
    for part in (minute, seen["hour"]):
        assert part["pickup_seconds"]["p50"] == pytest.approx(3.0)
        assert part["pickup_seconds"]["p99"] == pytest.approx(4.96)
        assert part["scoring_seconds"] == {rank: pytest.approx(2.0) for rank in ("p50", "p95", "p99")}


async def test_a_rescore_and_an_old_answer_are_no_slow_pickup(conn: AsyncConnection) -> None:
    """What waited on purpose would hide how long the others wait; how long it took to score counts."""
    await store(conn, [(9000, 100, 98)])
    assert (await last_hour(conn))["hour"]["pickup_seconds"] is None

    await store(conn, [(90, 89, 88)])
    [(response_id,)] = await conn.execute(text("SELECT max(response_id) FROM assessment_responses"))
    await rescore_responses(conn, response_ids=[response_id])
    leases = await lease(conn, response_id)
    await settle_handoffs(conn, [settlement(held) for held in leases])

    seen = (await last_hour(conn))["hour"]
    assert seen["scores"] == 3
    # The rescore was picked up a minute and a half after its answer came.
    assert seen["pickup_seconds"]["p99"] == pytest.approx(1.0)
    assert seen["scoring_seconds"]["p99"] > 1.9


async def test_money_and_tokens_add_up(conn: AsyncConnection) -> None:
    """Over the hour, for those that say so; nonsense that a foreign scorer left counts as nothing."""
    usage = {"requests": 1, "input_tokens": 700, "output_tokens": 50, "cost_usd": 0.25, "seconds": 1.0}
    await store(conn, [(7300, 7300, 7300)], usage=usage)
    await store(conn, [(60.0 * minute, 60.0 * minute, 60.0 * minute) for minute in (50, 30, 1)], usage=usage)
    await store(conn, [(30, 30, 30)], usage={"requests": 2, "input_tokens": 1, "cost_usd": None})
    for nonsense in ({"cost_usd": "much", "input_tokens": [1]}, "none", 7, None):
        await store(conn, [(20, 20, 20)], usage=nonsense)
    await store(conn, [(20, 20, 20)], overall_score="high")

    hour = (await last_hour(conn))["hour"]

    assert (hour["requests"], hour["input_tokens"], hour["output_tokens"]) == (5, 2101, 150)
    assert hour["cost_usd"] == pytest.approx(0.75)
    assert hour["share_priced"] == pytest.approx(3 / 9)


async def test_scores_spread_over_the_scale_of_their_question(conn: AsyncConnection) -> None:
    """Ten equal parts, the ends included, questions with most scores first."""
    for score in (1.0, 1.2, 3.0, 4.9, 5.0, 99.0):
        await store(conn, [(100, 100, 100)], overall_score=score)
    other = await publish(conn, question_id="water", scale_min=0, scale_max=1)
    [row] = await submit_responses(conn, [submission(question_id="water")])
    leases = await lease(conn, row["response_id"])
    await settle_handoffs(conn, [settlement(leases[0], overall_score=0.5)])

    first, second = (await last_hour(conn))["questions"]

    assert first["bins"] == [2, 0, 0, 0, 0, 1, 0, 0, 0, 3]
    assert (first["question_id"], first["looked_at"]) == ("photosynthesis", 6)
    assert (second["question_digest"], second["mean"]) == (other, 0.5)
    assert second["bins"] == [1 if number == BINS // 2 else 0 for number in range(BINS)]


async def test_of_many_scores_an_even_sample_is_looked_at(conn: AsyncConnection) -> None:
    """Never more rows than that; what was counted is the whole, tokens and money are projected to it."""
    number = 3 * SAMPLE
    await store(
        conn,
        [(3000 - row * 0.19, 2990 - row * 0.19, 2985 - row * 0.19) for row in range(number)],
        usage={"requests": 1, "input_tokens": 100, "output_tokens": 10, "cost_usd": 0.001},
    )

    seen = await last_hour(conn)

    assert seen["is_sample"]
    assert SAMPLE * 0.9 < seen["looked_at"] <= SAMPLE
    assert seen["hour"]["scores"] == number
    assert seen["hour"]["input_tokens"] == pytest.approx(100 * number, rel=0.01)
    assert seen["hour"]["cost_usd"] == pytest.approx(0.001 * number, rel=0.01)
    assert seen["hour"]["pickup_seconds"]["p50"] == pytest.approx(10)
    assert sum(question["looked_at"] for question in seen["questions"]) == seen["looked_at"]
