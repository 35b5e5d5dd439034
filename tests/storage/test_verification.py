from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from storage import submit_responses
from storage.claims import apply_claim, request_claim
from storage.settlements import settle_handoffs
from storage.verification import verify_settlement, verify_timeliness
from tests.factories import (
    LEASE_SECONDS,
    SHORT_LEASE_SECONDS,
    bury,
    lease,
    make_overdue,
    publish,
    settlement,
    submission,
    submit,
    token,
)
from tests.races import committed

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

SWEEP_SECONDS = 30.0
FINE: dict[str, list[int]] = {"left_lying": [], "missed_publication": [], "late_claims": []}


async def orphan(conn: AsyncConnection) -> int:
    """A response that lost its handoff, as no statement of ours can do it."""
    row = await submit(conn)
    await conn.execute(
        text("DELETE FROM scoring_handoffs WHERE response_id = :id"), {"id": row["response_id"]}
    )
    return int(row["response_id"])


async def let_time_pass(conn: AsyncConnection) -> None:
    """Let the last verification lie two minutes back."""
    await conn.execute(text("UPDATE scoring_watermarks SET pending_at = pending_at - interval '2 minutes'"))


async def punctual(
    conn: AsyncConnection, *, lease_seconds: float = SHORT_LEASE_SECONDS
) -> dict[str, list[int]]:
    return await verify_timeliness(conn, lease_seconds=lease_seconds, sweep_seconds=SWEEP_SECONDS)


async def drop_the_constraint(conn: AsyncConnection) -> None:
    await conn.execute(text("ALTER TABLE assessment_scores DROP CONSTRAINT uq_assessment_scores_handoff"))


@pytest.mark.parametrize("full", [False, True], ids=["new", "full"])
async def test_every_ordinary_state_is_fine(conn: AsyncConnection, full: bool) -> None:  # noqa: FBT001
    """Due, leased, unpublished, dead and scored answers break no invariant, and neither does an empty database."""
    fine = {"checked_from": 0, "orphans": [], "settled_twice": []}
    assert await verify_settlement(conn, full=full) == fine
    await publish(conn)
    due, leased, dead, scored = [(await submit(conn))["response_id"] for _ in range(4)]
    await submit(conn, question_id="unheard-of")
    await lease(conn, leased)
    await bury(conn, dead)
    [held] = await lease(conn, scored)
    await settle_handoffs(conn, [settlement(held)])

    assert await verify_settlement(conn, full=full) == fine
    assert await punctual(conn) == FINE
    assert due


async def test_an_answer_that_would_never_be_scored_is_found(conn: AsyncConnection) -> None:
    """A response with neither score nor handoff, every time it is asked for."""
    lost = [await orphan(conn), await orphan(conn)]
    await submit(conn)

    for _ in range(2):
        assert (await verify_settlement(conn))["orphans"] == lost
        await let_time_pass(conn)


async def test_a_handoff_that_outlives_its_score_is_found(conn: AsyncConnection) -> None:
    """It would be scored, and paid, again."""
    await publish(conn)
    row = await submit(conn)
    handoff_id = (
        await conn.execute(
            text(
                "INSERT INTO assessment_scores"
                " (response_id, handoff_id, question_digest, model_id, prompt_version, score_data)"
                " SELECT response_id, handoff_id, question_digest, 'm', 'p', '{}' FROM scoring_handoffs"
                " WHERE response_id = :id RETURNING handoff_id"
            ),
            {"id": row["response_id"]},
        )
    ).scalar_one()

    assert (await verify_settlement(conn))["settled_twice"] == [handoff_id]


async def test_a_lost_constraint_is_found(conn: AsyncConnection) -> None:
    """Without it two scores could settle one handoff: that alone breaks the invariant."""
    await drop_the_constraint(conn)

    assert (await verify_settlement(conn))["settled_twice"] == [0]


async def test_a_full_verification_finds_two_scores_of_one_handoff(conn: AsyncConnection) -> None:
    """Should the constraint have been away for a while, the rows tell."""
    await drop_the_constraint(conn)
    await publish(conn)
    row = await submit(conn)
    [held] = await lease(conn, row["response_id"])
    await settle_handoffs(conn, [settlement(held)])
    await conn.execute(
        text(
            "INSERT INTO assessment_scores"
            " (response_id, handoff_id, question_digest, model_id, prompt_version, score_data)"
            " SELECT response_id, handoff_id, question_digest, 'm', 'p', '{}' FROM assessment_scores"
        )
    )

    assert (await verify_settlement(conn, full=True))["settled_twice"] == [0, held["handoff_id"]]


@pytest.mark.commits
async def test_what_was_verified_is_not_read_again(engine: AsyncEngine) -> None:
    """What two verifications have seen, some time apart, is done with, unless everything is asked for."""
    seen = await committed(engine, submit)
    await committed(engine, verify_settlement)
    await committed(engine, submit)
    await committed(engine, let_time_pass)
    await committed(engine, verify_settlement)
    await committed(engine, lambda conn: conn.execute(text("DELETE FROM scoring_handoffs")))

    async with engine.begin() as conn:
        new = await verify_settlement(conn)
        everything = await verify_settlement(conn, full=True)

    assert new["checked_from"] == seen["response_id"]
    assert new["orphans"] == [seen["response_id"] + 1]
    assert everything["checked_from"] == 0
    assert everything["orphans"] == [seen["response_id"], seen["response_id"] + 1]


@pytest.mark.commits
async def test_a_moment_is_too_short_to_be_sure(engine: AsyncEngine) -> None:
    """Two verifications in a row move no watermark: a submit may have drawn its id and not yet have begun to write."""
    await committed(engine, submit)
    for _ in range(3):
        assert (await committed(engine, verify_settlement))["checked_from"] == 0


@pytest.mark.commits
async def test_a_transaction_that_was_running_holds_the_watermark(engine: AsyncEngine) -> None:
    """It may still commit an answer with a lower id than those that were seen."""

    async def later() -> int:
        await committed(engine, let_time_pass)
        await committed(engine, verify_settlement)
        return int((await committed(engine, verify_settlement))["checked_from"])

    async with engine.connect() as slow:
        row = await orphan(slow)
        seen = await committed(engine, submit)
        await committed(engine, verify_settlement)
        assert await later() == 0
        await slow.commit()

    found = await committed(engine, verify_settlement)
    assert found["orphans"] == [row]
    assert row < seen["response_id"]


@pytest.mark.commits
async def test_what_is_broken_holds_the_watermark(engine: AsyncEngine) -> None:
    """An orphan is reported until somebody mends it, not until somebody has looked twice."""
    row = await committed(engine, orphan)
    for _ in range(3):
        found = await committed(engine, verify_settlement)
        assert (found["checked_from"], found["orphans"]) == (0, [row])
        await committed(engine, let_time_pass)


async def test_what_a_sweep_should_have_moved_is_found(conn: AsyncConnection) -> None:
    """A due handoff, a lease that ran out, and a claim, all older than a sweep."""
    await publish(conn)
    rows = await submit_responses(conn, [submission()] * 4)
    lying, ran_out, _, leased = [row["response_id"] for row in rows]
    await lease(conn, ran_out, leased)
    await make_overdue(conn, lying)
    await make_overdue(conn, ran_out)
    claims = [await request_claim(conn, anonymous_token=token(), user_id=1) for _ in range(3)]
    await apply_claim(conn, claims[1])
    await conn.execute(
        text(
            "UPDATE assessment_claims SET requested_at = requested_at - interval '1 minute' WHERE claim_id <> :id"
        ),
        {"id": claims[2]},
    )

    found = await punctual(conn)

    assert sorted(found["left_lying"]) == [lying, ran_out]
    assert found["late_claims"] == claims[:1]
    # After a restart of PostgreSQL, leases are given time.
    assert (await punctual(conn, lease_seconds=1e9))["left_lying"] == [lying]


async def test_a_forgotten_publication_is_found(conn: AsyncConnection) -> None:
    """Once the question has been there for a sweep."""
    await publish(conn)
    row = await submit(conn)
    await conn.execute(text("UPDATE scoring_handoffs SET question_digest = NULL, due_at = 'infinity'"))
    assert await punctual(conn) == FINE

    await conn.execute(
        text("UPDATE assessment_questions SET published_at = published_at - interval '1 minute'")
    )

    assert await punctual(conn, lease_seconds=LEASE_SECONDS) == FINE | {
        "missed_publication": [row["response_id"]]
    }


async def test_looking_at_timeliness_writes_nothing(conn: AsyncConnection) -> None:
    """It may run on a connection that may only read."""
    await publish(conn)
    await submit(conn)
    await conn.execute(text("SET LOCAL transaction_read_only = on"))

    found: dict[str, Any] = await punctual(conn)

    assert found == FINE
