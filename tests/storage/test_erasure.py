from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from storage import (
    InvalidInputError,
    StorageUnavailableError,
    claim_assessment_responses,
    erasure,
    save_draft,
    submit_responses,
)
from storage.claims import apply_claim, request_claim
from storage.dead import rescore_responses
from storage.erasure import erase_responses
from storage.roles import grant_roles
from storage.settlements import settle_handoffs
from storage.verification import verify_settlement
from tests.factories import (
    MODULE,
    bury,
    count,
    handoff_of,
    lease,
    publish,
    scores_of,
    settlement,
    submission,
    submit,
    token,
)
from tests.races import blocked, committed
from tests.storage.acting import ROLES, acting_as

if TYPE_CHECKING:
    from sqlalchemy import TextClause
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

TABLES = (
    "assessment_claims",
    "assessment_drafts",
    "scoring_handoffs",
    "assessment_scores",
    "assessment_responses",
)
NOTHING = dict.fromkeys(TABLES, 0)
# What a student of these tests leaves: see student().
EVERYTHING = {
    "assessment_claims": 0,
    "assessment_drafts": 1,
    "scoring_handoffs": 5,
    "assessment_scores": 2,
    "assessment_responses": 5,
}

SCORE = text("""
    INSERT INTO assessment_scores (response_id, handoff_id, question_digest, model_id, prompt_version, score_data)
    SELECT response_id, 0, question_digest, 'm', 'p', '{}' FROM assessment_responses WHERE response_id = :id
""")


async def counted(conn: AsyncConnection) -> dict[str, int]:
    return {table: await count(conn, table) for table in TABLES}


async def scored(conn: AsyncConnection, response_id: int, *, model_id: str = "test-model") -> None:
    [held] = await lease(conn, response_id)
    assert await settle_handoffs(conn, [settlement(held, model_id=model_id)])


async def student(conn: AsyncConnection, **owner: Any) -> list[int]:
    """One who has answers that wait, are scored (twice, and asked for again), leased, dead and unpublished, and a draft."""
    draft: dict[str, Any] = {
        "question_id": "draft",
        "answer_text": "It tur",
        "module_slug": MODULE,
        "submission_key": uuid4(),
    }
    await save_draft(conn, **(owner or {"user_id": 1}), **draft)
    await publish(conn, rubric="old")
    rows = await submit_responses(conn, [submission(**owner)] * 4 + [submission(question_id="new", **owner)])
    twice, leased, dead, *_ = ids = [row["response_id"] for row in rows]
    await scored(conn, twice)
    assert await rescore_responses(conn, response_ids=[twice], lane="live")
    await scored(conn, twice, model_id="another")
    assert await rescore_responses(conn, response_ids=[twice])
    assert len(await lease(conn, leased)) == 1
    await bury(conn, dead)
    return ids


async def assert_whole(engine: AsyncEngine) -> None:
    """No response without score or handoff, whatever the order of things was."""
    async with engine.connect() as conn:
        found = await verify_settlement(conn, full=True)
        assert (found["orphans"], found["settled_twice"]) == ([], [])


@pytest.mark.parametrize("owner", [{"user_id": 3}, {"anonymous_token": "secret"}], ids=["user", "token"])
async def test_nothing_of_a_student_stays(conn: AsyncConnection, owner: dict[str, Any]) -> None:
    """And everything of others does."""
    await student(conn)
    await student(conn, anonymous_token=token())
    others = await counted(conn)
    await student(conn, **owner)

    assert await erase_responses(conn, **owner) == EVERYTHING

    assert await counted(conn) == others
    assert await erase_responses(conn, **owner) == NOTHING
    assert (await verify_settlement(conn, full=True))["orphans"] == []


async def test_claims_go_with_either_side(conn: AsyncConnection) -> None:
    """They hold the token, which was a secret of the student: applied or not, of this user or of this token."""
    mine, shared, foreign = token(), token(), token()
    for anonymous, user_id in ((mine, 3), (mine, 3), (shared, 4), (foreign, 5)):
        await claim_assessment_responses(conn, anonymous_token=anonymous, user_id=user_id)
    await request_claim(conn, anonymous_token=shared, user_id=3)

    assert await erase_responses(conn, user_id=3) == NOTHING | {"assessment_claims": 3}
    assert await erase_responses(conn, anonymous_token=shared) == NOTHING | {"assessment_claims": 1}

    left = await conn.execute(text("SELECT anonymous_token, user_id FROM assessment_claims"))
    assert left.all() == [(foreign, 5)]


async def test_what_a_claim_left_belongs_to_its_token(conn: AsyncConnection) -> None:
    """Erasing the user leaves it, erasing the token takes it."""
    anonymous = token()
    await submit(conn, user_id=3)
    await submit_responses(
        conn,
        [submission(anonymous_token=anonymous), submission(anonymous_token=anonymous, question_id="other")],
    )
    assert await claim_assessment_responses(conn, anonymous_token=anonymous, user_id=3) == 1

    by_user = await erase_responses(conn, user_id=3)
    by_token = await erase_responses(conn, anonymous_token=anonymous)

    assert (by_user["assessment_responses"], by_token["assessment_responses"]) == (2, 1)
    assert await counted(conn) == NOTHING


async def test_ops_may_erase_and_nobody_else(conn: AsyncConnection) -> None:
    """Their privileges suffice, and none lets them change an answer."""
    await grant_roles(conn, ROLES)
    await student(conn, user_id=3)
    await request_claim(conn, anonymous_token=token(), user_id=3)

    for part in ("web", "worker"):
        with pytest.raises(Exception, match="scoring grant"):
            async with acting_as(conn, part) as role:
                await erase_responses(role, user_id=3)
    async with acting_as(conn, "ops") as ops:
        assert await erase_responses(ops, user_id=3) == EVERYTHING | {"assessment_claims": 1}


@pytest.mark.parametrize(
    "owner", [{}, {"user_id": 1, "anonymous_token": "t"}, {"user_id": 0}, {"anonymous_token": " "}]
)
async def test_an_owner_must_be_named(conn: AsyncConnection, owner: dict[str, Any]) -> None:
    """Exactly one, or nobody's answers are touched."""
    with pytest.raises(InvalidInputError):
        await erase_responses(conn, **owner)


@pytest.mark.parametrize(
    "statement",
    [
        erasure._FORGET_CLAIMS,
        erasure._OWNED,
        erasure._DRAFTED,
        erasure._FORGET_DRAFTS,
        erasure._FORGET_HANDOFFS,
        erasure._FORGET_SCORES,
        erasure._FORGET_RESPONSES,
    ],
)
async def test_every_statement_has_an_index(conn: AsyncConnection, statement: TextClause) -> None:
    """However many answers others have, no table is read from one end to the other."""
    given = {"user_id": 3, "anonymous_token": None, "response_ids": [1, 2], "draft_ids": [1, 2]}
    await conn.execute(text("SET LOCAL enable_seqscan = off"))

    explained = await conn.execute(
        text(f"EXPLAIN {statement.text}"), {name: given[name] for name in statement.compile().params}
    )

    plan = "\n".join(explained.scalars())
    assert "Seq Scan" not in plan, plan
    assert "Index" in plan, plan


@pytest.mark.commits
async def test_a_score_that_is_being_written_is_erased_too(engine: AsyncEngine) -> None:
    """The settlement is waited for."""
    [response_id, *_] = await committed(engine, partial(student, user_id=3))
    async with engine.connect() as settler:
        [held] = await lease(settler, response_id)
        assert await settle_handoffs(settler, [settlement(held)])
        async with blocked(engine, partial(erase_responses, user_id=3)) as erasing:
            await settler.commit()

    assert (await erasing)["assessment_scores"] == EVERYTHING["assessment_scores"] + 1
    async with engine.connect() as conn:
        assert await counted(conn) == NOTHING


@pytest.mark.commits
async def test_who_waits_for_the_first_handoff_holds_no_other(engine: AsyncEngine) -> None:
    """The lowest id is locked first, as by everybody, wherever on disk it is."""
    ids = await committed(engine, partial(student, user_id=3))
    async with engine.connect() as holder:
        lowest = (await holder.execute(text("SELECT min(handoff_id) FROM scoring_handoffs"))).scalar_one()
        await holder.execute(
            text("UPDATE scoring_handoffs SET postponements = 1 WHERE handoff_id = :id"), {"id": lowest}
        )
        await holder.commit()
        await holder.execute(
            text("SELECT 1 FROM scoring_handoffs WHERE handoff_id = :id FOR UPDATE"), {"id": lowest}
        )
        async with blocked(engine, partial(erase_responses, user_id=3)):
            async with engine.connect() as other:
                free = await other.execute(text("SELECT 1 FROM scoring_handoffs FOR UPDATE SKIP LOCKED"))
                assert len(free.all()) == len(ids) - 1
            await holder.rollback()


@pytest.mark.commits
async def test_a_score_that_comes_later_is_dropped(engine: AsyncEngine) -> None:
    """It finds no handoff."""
    [response_id, *_] = await committed(engine, partial(student, user_id=3))
    [held] = await committed(engine, lambda conn: lease(conn, response_id))
    async with engine.connect() as eraser:
        await erase_responses(eraser, user_id=3)
        settling = partial(settle_handoffs, settlements=[settlement(held)])
        async with blocked(engine, settling) as late:
            await eraser.commit()

    assert await late == []
    async with engine.connect() as conn:
        assert await counted(conn) == NOTHING


@pytest.mark.commits
async def test_a_claim_that_is_being_applied_is_waited_for(engine: AsyncEngine) -> None:
    """What it moves to the user goes with him; of the token nothing is left to erase."""
    for owner in ({"user_id": 5}, {"anonymous_token": "t"}):
        await committed(engine, partial(student, anonymous_token="t"))
        claim_id = await committed(engine, partial(request_claim, anonymous_token="t", user_id=5))
        async with engine.connect() as claimer:
            applied = await apply_claim(claimer, claim_id)
            assert applied is not None
            async with blocked(engine, partial(erase_responses, **owner)) as erasing:
                await claimer.commit()
        expected = applied["moved"] if "user_id" in owner else applied["skipped"]
        assert (await erasing)["assessment_responses"] == expected
        await assert_whole(engine)


@pytest.mark.commits
async def test_a_claim_that_comes_later_finds_nothing(engine: AsyncEngine) -> None:
    """Neither itself, nor anything to move; and it is no trouble."""
    await committed(engine, partial(student, anonymous_token="t"))
    claim_id = await committed(engine, partial(request_claim, anonymous_token="t", user_id=5))
    async with engine.connect() as eraser:
        await erase_responses(eraser, anonymous_token="t")
        async with blocked(engine, partial(apply_claim, claim_id=claim_id)) as late:
            await eraser.commit()

    assert await late is None
    async with engine.connect() as conn:
        assert await counted(conn) == NOTHING


@pytest.mark.commits
async def test_what_is_claimed_under_its_hands_goes_with_its_handoff(engine: AsyncEngine) -> None:
    """A claim of whose request nothing could be known moves what is being erased: whole, or not at all."""
    await committed(engine, partial(student, anonymous_token="t"))
    async with engine.connect() as claimer:
        assert await claim_assessment_responses(claimer, anonymous_token="t", user_id=5) == 5
        async with blocked(engine, partial(erase_responses, anonymous_token="t")) as erasing:
            await claimer.commit()

    assert (await erasing)["assessment_responses"] == 5
    async with engine.connect() as conn:
        assert await counted(conn) == NOTHING | {"assessment_claims": 1}


@pytest.mark.commits
async def test_an_answer_that_comes_meanwhile_stays_whole(engine: AsyncEngine) -> None:
    """It was not there when the erasure looked, so nothing of it is taken."""
    await committed(engine, partial(student, user_id=3))
    async with engine.connect() as settler:
        await settler.execute(text("SELECT 1 FROM scoring_handoffs FOR UPDATE"))
        async with blocked(engine, partial(erase_responses, user_id=3)) as erasing:
            late = await committed(engine, partial(submit, user_id=3))
            await settler.rollback()

    assert await erasing == EVERYTHING
    async with engine.connect() as conn:
        assert await handoff_of(conn, late["response_id"]) is not None
    await assert_whole(engine)


@pytest.mark.commits
async def test_a_rescore_that_is_being_asked_for_is_erased_too(engine: AsyncEngine) -> None:
    """Its handoff has another identity than the one that was seen."""
    ids = await committed(engine, partial(student, user_id=3))
    await committed(engine, partial(publish, rubric="new"))
    async with engine.connect() as ops:
        assert len(await rescore_responses(ops, response_ids=ids)) == 4
        async with blocked(engine, partial(erase_responses, user_id=3)) as erasing:
            await ops.commit()

    assert await erasing == EVERYTHING
    async with engine.connect() as conn:
        assert await counted(conn) == NOTHING


@pytest.mark.commits
async def test_a_rescore_that_comes_later_may_be_tried_again(engine: AsyncEngine) -> None:
    """And then there is nothing to rescore."""
    ids = await committed(engine, partial(student, user_id=3))
    rescoring = partial(rescore_responses, response_ids=ids)
    async with engine.connect() as ops, engine.connect() as eraser:
        await ops.execute(text("DELETE FROM scoring_handoffs"))
        await ops.commit()
        await erase_responses(eraser, user_id=3)
        async with blocked(engine, rescoring) as late:
            await eraser.commit()

    with pytest.raises(StorageUnavailableError):
        await late
    assert await committed(engine, rescoring) == []


@pytest.mark.commits
async def test_a_score_in_the_very_gap_lets_it_be_tried_again(engine: AsyncEngine) -> None:
    """Rescored, leased and settled between two of its statements: it says so, and takes all the next time."""
    first, second, *_ = await committed(engine, partial(student, user_id=3))
    async with engine.connect() as holder:
        # Its scores and handoffs are deleted when the erasure comes to the responses, and waits for this one.
        await holder.execute(
            text("SELECT 1 FROM assessment_responses WHERE response_id = :id FOR KEY SHARE"), {"id": first}
        )
        async with blocked(engine, partial(erase_responses, user_id=3)) as erasing:
            async with engine.begin() as conn:
                await conn.execute(SCORE, {"id": second})
            await holder.rollback()

    with pytest.raises(StorageUnavailableError):
        await erasing
    async with engine.connect() as conn:
        assert len(await scores_of(conn, second)) == 1
    assert await committed(engine, partial(erase_responses, user_id=3)) == EVERYTHING | {
        "assessment_scores": 3
    }
