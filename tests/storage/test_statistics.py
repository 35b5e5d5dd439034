from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from storage import submit_responses
from storage.claims import apply_claim, request_claim
from storage.dead import dismiss_dead
from storage.settlements import fail_handoffs, postpone_handoffs, settle_handoffs
from storage.statistics import COUNT_LIMIT, handoff_statistics
from tests.factories import (
    bury,
    change_handoff,
    lease,
    make_overdue,
    publish,
    release,
    settlement,
    submission,
    submit,
    token,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

NOTHING: dict[str, Any] = {
    "waiting_live": 0,
    "waiting_bulk": 0,
    "leased": 0,
    "postponed": 0,
    "unpublished": 0,
    "dead": 0,
    "dismissed": 0,
    "oldest_seconds": None,
    "longest_due_seconds": None,
    "scored_last_minute": 0,
    "claims_waiting": 0,
    "unpublished_questions": [],
    "troubles": [],
}


async def test_an_empty_database_has_a_status(conn: AsyncConnection) -> None:
    """Nothing waits, nothing is wrong, and nothing is divided by zero."""
    assert await handoff_statistics(conn) == NOTHING


async def test_every_handoff_is_counted_once(conn: AsyncConnection) -> None:
    """Each state has its number; a lease that ran out waits again."""
    await publish(conn)
    ids = [row["response_id"] for row in await submit_responses(conn, [submission()] * 16)]
    await change_handoff(conn, ids[0], lane="bulk")
    await lease(conn, *ids[1:4])
    await make_overdue(conn, ids[1])
    postponed = await lease(conn, *ids[4:7])
    await postpone_handoffs(conn, [release(held, delay_seconds=500, reason="503") for held in postponed])
    for response_id in ids[7:12]:
        await bury(conn, response_id)
    await dismiss_dead(conn, response_ids=ids[7:8], dismissed_by="ops")
    await submit_responses(conn, [submission(question_id="unheard-of")] * 6)
    claims = [await request_claim(conn, anonymous_token=token(), user_id=1) for _ in range(3)]
    await apply_claim(conn, claims[0])

    status = await handoff_statistics(conn)

    counts = {name: number for name, number in status.items() if isinstance(number, int)}
    assert counts == {
        "waiting_live": 1 + 4,
        "waiting_bulk": 1,
        "leased": 2,
        "postponed": 3,
        "unpublished": 6,
        "dead": 4,
        "dismissed": 1,
        "scored_last_minute": 0,
        "claims_waiting": 2,
    }


async def test_how_long_the_oldest_has_waited(conn: AsyncConnection) -> None:
    """Of both lanes; what is leased or postponed does not wait."""
    await publish(conn)
    ids = [row["response_id"] for row in await submit_responses(conn, [submission()] * 3)]
    for response_id, minutes, lane in zip(ids, (5, 10, 1), ("live", "bulk", "live"), strict=True):
        await change_handoff(
            conn, response_id, lane=lane, due_at=text(f"statement_timestamp() - interval '{minutes} minutes'")
        )

    assert 600 <= (await handoff_statistics(conn))["longest_due_seconds"] < 700
    await lease(conn, ids[1])
    assert 300 <= (await handoff_statistics(conn))["longest_due_seconds"] < 400


async def test_how_fast_answers_are_scored(conn: AsyncConnection) -> None:
    """What was scored within the last minute, whether or not anything was scored before."""
    await publish(conn)
    ids = [row["response_id"] for row in await submit_responses(conn, [submission()] * 5)]
    leases = await lease(conn, *ids)
    await settle_handoffs(conn, [settlement(held) for held in leases])
    assert (await handoff_statistics(conn))["scored_last_minute"] == 5

    await conn.execute(
        text(
            "UPDATE assessment_scores SET created_at = created_at - interval '2 minutes' WHERE response_id = ANY (:ids)"
        ),
        {"ids": ids[:3]},
    )
    assert (await handoff_statistics(conn))["scored_last_minute"] == 2

    await conn.execute(text("UPDATE assessment_scores SET created_at = created_at - interval '2 minutes'"))
    assert (await handoff_statistics(conn))["scored_last_minute"] == 0


async def test_which_questions_are_waited_for(conn: AsyncConnection) -> None:
    """Those that most answers wait for come first."""
    await submit_responses(conn, [submission(question_id="b")] * 2)
    await submit_responses(conn, [submission(question_id="a")] * 2)
    await submit_responses(conn, [submission(question_id="c", module_slug="m")] * 3)

    status = await handoff_statistics(conn)

    assert status["unpublished_questions"] == [
        {"module_slug": "m", "question_id": "c", "answers": 3},
        {"module_slug": "biology", "question_id": "a", "answers": 2},
        {"module_slug": "biology", "question_id": "b", "answers": 2},
    ]


async def test_what_troubles_the_scorer(conn: AsyncConnection) -> None:
    """The reasons of what is tried again, most frequent first; the dead have a list of their own."""
    await publish(conn)
    ids = [row["response_id"] for row in await submit_responses(conn, [submission()] * 4)]
    first, *others = await lease(conn, *ids[:3])
    await fail_handoffs(conn, [release(first, reason="nonsense", delay_seconds=60)])
    await postpone_handoffs(conn, [release(held, reason="503", delay_seconds=60) for held in others])
    await bury(conn, ids[3], reason="refused")

    troubles = (await handoff_statistics(conn))["troubles"]

    assert [(row["reason"], row["answers"]) for row in troubles] == [("503", 2), ("nonsense", 1)]
    assert all(row["last_at"] is not None for row in troubles)


async def test_counting_stops_at_ten_thousand(conn: AsyncConnection) -> None:
    """A backlog of millions is looked at as fast as a small one."""
    await publish(conn)
    await conn.execute(
        text(
            "WITH r AS (INSERT INTO assessment_responses (user_id, module_slug, question_id, answer_text)"
            " SELECT 1, 'biology', 'photosynthesis', 'a' FROM generate_series(1, :number) RETURNING response_id)"
            " INSERT INTO scoring_handoffs (response_id, question_digest)"
            " SELECT response_id, (SELECT question_digest FROM assessment_questions) FROM r"
        ),
        {"number": COUNT_LIMIT + 50},
    )
    await submit(conn)

    assert (await handoff_statistics(conn))["waiting_live"] == COUNT_LIMIT + 1
