"""Which answers a backfill hands over, and against what."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from storage.backfilling import backfill_step, survey_backfill
from storage.claims import claim_assessment_responses
from storage.runs import horizon
from storage.settlements import settle_handoffs
from storage.sweeps import revive_missed
from storage.verification import verify_settlement
from tests.commands.operating import bare_answers
from tests.factories import bury, handoff_of, lease, publish, settlement, submit, token
from tests.races import blocked, committed

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine


async def run_of(conn: AsyncConnection) -> dict[str, Any]:
    until = (await horizon(conn))["until_response_id"]
    return {"last_response_id": 0, "until_response_id": until, "filters": {}}


async def bare(conn: AsyncConnection, **changes: Any) -> int:
    """An answer whose handoff is gone."""
    response_id = int((await submit(conn, **changes))["response_id"])
    await conn.execute(text("DELETE FROM scoring_handoffs WHERE response_id = :id"), {"id": response_id})
    return response_id


async def test_what_has_neither_is_handed_over(conn: AsyncConnection) -> None:
    """Against what the student was asked, or else what is asked now, or once it is published; the rest is left alone."""
    old = await publish(conn, rubric="old")
    pinned = await bare(conn)
    new = await publish(conn, rubric="new")
    [unpinned] = await bare_answers(conn, 1)
    unpublished = await bare(conn, question_id="unheard-of")
    scored, dead, waits = [int((await submit(conn))["response_id"]) for _ in range(3)]
    [held] = await lease(conn, scored)
    await settle_handoffs(conn, [settlement(held)])
    await bury(conn, dead)
    run = await run_of(conn)
    later = await bare(conn)

    last, rows = await survey_backfill(conn, after=0, until=run["until_response_id"])
    step = await backfill_step(conn, run)

    assert (last, step.last_response_id, step.changed) == (waits, waits, 3)
    assert sorted((row["question_id"], row["answers"], row["unpublished"]) for row in rows) == [
        ("photosynthesis", 2, 0),
        ("unheard-of", 1, 1),
    ]
    assert await handoff_of(conn, scored) is await handoff_of(conn, later) is None
    made = [await handoff_of(conn, each) or {} for each in (pinned, unpinned, unpublished)]
    assert [handoff["question_digest"] for handoff in made] == [old, new, None]
    assert {handoff["lane"] for handoff in made} == {"bulk"}
    assert len(await lease(conn, pinned, unpinned, unpublished)) == 2
    await publish(conn, question_id="unheard-of")
    await revive_missed(conn)
    assert len(await lease(conn, unpublished)) == 1
    assert (await backfill_step(conn, run)).changed == 0
    assert (await verify_settlement(conn, full=True))["orphans"] == [later]


@pytest.mark.commits
async def test_two_backfills_take_turns(engine: AsyncEngine) -> None:
    """The second one sees what the first one handed over, and what was scored of it meanwhile: nobody pays twice."""
    await committed(engine, publish)
    [response_id] = await committed(engine, partial(bare_answers, number=1))
    run = await committed(engine, run_of)

    async with engine.connect() as first:
        assert (await backfill_step(first, run)).changed == 1
        async with blocked(engine, partial(backfill_step, run=run)) as second:
            [held] = await lease(first, response_id)
            await settle_handoffs(first, [settlement(held)])
            await first.commit()
        assert (await second).changed == 0

    async with engine.connect() as conn:
        assert await handoff_of(conn, response_id) is None


@pytest.mark.commits
async def test_a_submit_that_is_not_committed_is_not_bare(engine: AsyncEngine) -> None:
    """Its response and its handoff become visible together."""
    await committed(engine, publish)
    async with engine.connect() as web:
        response_id = int((await submit(web))["response_id"])
        run = {"last_response_id": 0, "until_response_id": response_id, "filters": {}}
        assert (await committed(engine, partial(backfill_step, run=run))).changed == 0
        await web.commit()

    assert (await committed(engine, partial(backfill_step, run=run))).changed == 0


@pytest.mark.commits
async def test_a_claim_and_a_backfill_do_not_wait_for_each_other(engine: AsyncEngine) -> None:
    """A handoff refers to a response, whoever owns it."""
    anonymous = token()
    await committed(engine, publish)
    response_id = await committed(engine, partial(bare, anonymous_token=anonymous))
    run = await committed(engine, run_of)

    async with engine.connect() as claiming:
        await claim_assessment_responses(claiming, anonymous_token=anonymous, user_id=5)
        assert (await committed(engine, partial(backfill_step, run=run))).changed == 1
        await claiming.commit()

    async with engine.connect() as conn:
        assert await handoff_of(conn, response_id) is not None
