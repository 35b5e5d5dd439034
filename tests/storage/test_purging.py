"""What a purge takes, what it leaves, and who it meets while it does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from storage.claims import apply_claim, claim_assessment_responses, request_claim
from storage.errors import StorageBusyError
from storage.purging import count_old_drafts, purge_claims, purge_drafts, purge_step, survey_purge
from storage.runs import horizon
from storage.settlements import settle_handoffs
from storage.verification import verify_settlement
from tests.factories import bury, count, lease, publish, settlement, submit, token
from tests.races import blocked, committed

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

NOW = datetime.now(UTC)
CUTOFF = NOW - timedelta(days=30)
_AGE = text("UPDATE assessment_responses SET created_at = :then WHERE response_id = ANY (:ids)")
_DRAFT = text("""
    INSERT INTO assessment_drafts
        (user_id, anonymous_token, module_slug, question_id, answer_text, submission_key, saved_at)
    VALUES (:user_id, :anonymous_token, 'm', 'q', 'a', gen_random_uuid(), :saved_at)
""")


async def old(conn: AsyncConnection, **owner: Any) -> int:
    """An answer of forty days ago."""
    response_id = int((await submit(conn, **owner))["response_id"])
    await conn.execute(_AGE, {"then": NOW - timedelta(days=40), "ids": [response_id]})
    return response_id


async def draft(conn: AsyncConnection, days: int, **owner: Any) -> None:
    given: dict[str, Any] = {"user_id": None, "anonymous_token": None, **owner}
    await conn.execute(_DRAFT, given | {"saved_at": NOW - timedelta(days=days)})


async def run_of(conn: AsyncConnection) -> dict[str, Any]:
    until = (await horizon(conn))["until_response_id"]
    return {"last_response_id": 0, "until_response_id": until, "filters": {"cutoff": CUTOFF.isoformat()}}


async def left(conn: AsyncConnection) -> set[int]:
    return set((await conn.execute(text("SELECT response_id FROM assessment_responses"))).scalars())


async def test_old_anonymous_answers_go_with_all_that_is_theirs(conn: AsyncConnection) -> None:
    """Whatever became of them; those of users, new ones, and those that a claim waits for stay."""
    await publish(conn)
    wanted = token()
    gone = [await old(conn, anonymous_token=token()) for _ in range(4)]
    stay = {
        await old(conn, user_id=1),
        await old(conn, anonymous_token=wanted),
        int((await submit(conn, anonymous_token=token()))["response_id"]),
    }
    scored, leased, dead, _ = gone
    [held] = await lease(conn, scored)
    await settle_handoffs(conn, [settlement(held)])
    await lease(conn, leased)
    await bury(conn, dead)
    await request_claim(conn, anonymous_token=wanted, user_id=2)
    run = await run_of(conn)

    last, [survey] = await survey_purge(conn, cutoff=CUTOFF, after=0, until=run["until_response_id"])
    step = await purge_step(conn, run)

    assert survey == {"answers": 4, "scores": 1, "handoffs": 3, "protected": 1}
    assert (step.last_response_id, step.changed) == (last, 4)
    assert await left(conn) == stay
    assert (await count(conn, "assessment_scores"), await count(conn, "scoring_handoffs")) == (0, 3)
    assert (await verify_settlement(conn, full=True))["orphans"] == []
    assert (await purge_step(conn, run)).changed == 0


async def test_old_anonymous_drafts_go(conn: AsyncConnection) -> None:
    """By when they were last saved; those of users stay, and those that a claim waits for."""
    wanted = token()
    await draft(conn, 40, anonymous_token=token())
    await draft(conn, 10, anonymous_token=token())
    await draft(conn, 40, user_id=1)
    await draft(conn, 40, anonymous_token=wanted)
    await request_claim(conn, anonymous_token=wanted, user_id=2)

    assert await count_old_drafts(conn, cutoff=CUTOFF) == 1
    after, gone = await purge_drafts(conn, cutoff=CUTOFF, after=0)

    assert gone == 1
    assert after is not None
    assert await purge_drafts(conn, cutoff=CUTOFF, after=after) == (None, 0)
    assert await count(conn, "assessment_drafts") == 3


async def test_claims_go_when_their_token_opens_nothing(conn: AsyncConnection) -> None:
    """Those that were applied long ago; not while an answer or a draft lies under the token, or the claim waits."""
    empty, answered, drafted, recent, waits = (token() for _ in range(5))
    for anonymous in (empty, answered, drafted, recent):
        await claim_assessment_responses(conn, anonymous_token=anonymous, user_id=1)
    await conn.execute(
        text("UPDATE assessment_claims SET applied_at = :then WHERE anonymous_token <> :recent"),
        {"then": NOW - timedelta(days=40), "recent": recent},
    )
    await request_claim(conn, anonymous_token=waits, user_id=1)
    await submit(conn, anonymous_token=answered)
    await draft(conn, 1, anonymous_token=drafted)

    assert (await purge_claims(conn, cutoff=CUTOFF, after=0))[1] == 1

    found = await conn.execute(text("SELECT anonymous_token FROM assessment_claims"))
    assert set(found.scalars()) == {answered, drafted, recent, waits}


@pytest.mark.commits
async def test_a_claim_that_was_quicker_has_all_of_it(engine: AsyncEngine) -> None:
    """A purge that meets what a claim has moved takes nothing of it: not the handoffs either."""
    anonymous = token()
    async with engine.begin() as conn:
        claim_id = await request_claim(conn, anonymous_token=anonymous, user_id=5)
        for index in range(3):
            await old(conn, anonymous_token=anonymous, question_id=f"q{index}")
        # The purge shall not see that a claim waits, as if it had been requested a moment later.
        await conn.execute(text("UPDATE assessment_claims SET applied_at = now(), moved = 0, skipped = 0"))
    run = await committed(engine, run_of)

    async with engine.connect() as claiming:
        await reopen(claiming, claim_id)
        assert (await apply_claim(claiming, claim_id) or {})["moved"] == 3
        async with blocked(engine, partial(purge_step, run=run)) as purging:
            await claiming.commit()
        with pytest.raises(StorageBusyError, match="claimed"):
            await purging

    assert (await committed(engine, partial(purge_step, run=run))).changed == 0
    async with engine.connect() as conn:
        assert await count(conn, "scoring_handoffs") == 3
        assert (await verify_settlement(conn, full=True))["orphans"] == []


async def reopen(conn: AsyncConnection, claim_id: int) -> None:
    """The claim waits again, for its own transaction alone."""
    await conn.execute(
        text(
            "UPDATE assessment_claims SET applied_at = NULL, moved = NULL, skipped = NULL WHERE claim_id = :id"
        ),
        {"id": claim_id},
    )


@pytest.mark.commits
async def test_a_purge_that_was_quicker_leaves_a_claim_nothing(engine: AsyncEngine) -> None:
    """The claim waits for the purge, finds nothing, and is applied."""
    anonymous = token()
    async with engine.begin() as conn:
        for index in range(3):
            await old(conn, anonymous_token=anonymous, question_id=f"q{index}")
    run = await committed(engine, run_of)

    async with engine.connect() as purging:
        assert (await purge_step(purging, run)).changed == 3
        claim_id = await committed(engine, partial(request_claim, anonymous_token=anonymous, user_id=5))
        async with blocked(engine, partial(apply_claim, claim_id=claim_id)) as claiming:
            await purging.commit()
        applied = await claiming

    assert applied is not None
    assert (applied["moved"], applied["skipped"]) == (0, 0)


@pytest.mark.commits
async def test_a_claim_that_is_requested_meanwhile_is_respected(engine: AsyncEngine) -> None:
    """One that was requested after the purge has chosen, and before it deletes, keeps its answers."""
    anonymous = token()
    async with engine.begin() as conn:
        await old(conn, anonymous_token=anonymous)
    run = await committed(engine, run_of)

    async with engine.connect() as holding:
        await holding.execute(text("SELECT 1 FROM scoring_handoffs FOR UPDATE"))
        async with blocked(engine, partial(purge_step, run=run)) as purging:
            await committed(engine, partial(request_claim, anonymous_token=anonymous, user_id=5))
            await holding.rollback()
        with pytest.raises(StorageBusyError):
            await purging

    async with engine.connect() as conn:
        assert (await count(conn, "scoring_handoffs"), await count(conn, "assessment_responses")) == (1, 1)
