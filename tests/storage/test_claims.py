from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import select, text

from storage import (
    InvalidInputError,
    UnknownUserError,
    claim_assessment_responses,
    get_responses,
    get_scores,
    submit_responses,
)
from storage.claims import apply_claim, request_claim, requested_claims
from storage.leases import pull_handoffs
from storage.settlements import settle_handoffs
from storage.tables import claims, responses
from tests.factories import (
    LEASE_SECONDS,
    count,
    lease,
    publish,
    scores_of,
    settlement,
    submission,
    submit,
    token,
)
from tests.races import blocked, committed

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

ROUNDS = 15


async def answer(conn: AsyncConnection, anonymous_token: str, *questions: str) -> list[int]:
    rows = await submit_responses(
        conn, [submission(anonymous_token=anonymous_token, question_id=name) for name in questions]
    )
    return [row["response_id"] for row in rows]


async def owned(conn: AsyncConnection, user_id: int) -> list[int]:
    query = (
        select(responses.c.response_id)
        .where(responses.c.user_id == user_id)
        .order_by(responses.c.response_id)
    )
    return list((await conn.execute(query)).scalars())


async def audit(conn: AsyncConnection) -> list[dict[str, Any]]:
    query = select(claims.c.user_id, claims.c.moved, claims.c.skipped).order_by(claims.c.claim_id)
    return [dict(row) for row in (await conn.execute(query)).mappings()]


async def test_a_claim_moves_what_lies_under_the_token(conn: AsyncConnection) -> None:
    """The answers become the user's, scores and all; nobody reads them by the token any more."""
    await publish(conn, question_id="q1")
    mine, stranger = token(), token()
    ids = await answer(conn, mine, "q1", "q2")
    await answer(conn, stranger, "q1")
    [held] = await lease(conn, ids[0])
    await settle_handoffs(conn, [settlement(held)])

    moved = await claim_assessment_responses(conn, anonymous_token=mine, user_id=3)

    assert moved == 2
    assert await owned(conn, 3) == ids
    assert await get_responses(conn, anonymous_token=mine) == []
    assert len(await get_responses(conn, anonymous_token=stranger)) == 1
    assert len(await get_scores(conn, response_id=ids[0], user_id=3)) == 1
    assert await get_scores(conn, response_id=ids[0], anonymous_token=mine) == []
    assert await audit(conn) == [{"user_id": 3, "moved": 2, "skipped": 0}]


async def test_questions_that_the_user_has_answered_are_skipped(conn: AsyncConnection) -> None:
    """A user never gets a second first answer: all anonymous attempts at such a question stay where they are."""
    await submit(conn, user_id=3, question_id="q1")
    await submit(conn, user_id=4, question_id="q3")
    mine = token()
    ids = await answer(conn, mine, "q1", "q2", "q1", "q3")
    [elsewhere] = await submit_responses(
        conn, [submission(anonymous_token=mine, question_id="q1", module_slug="elsewhere")]
    )

    moved = await claim_assessment_responses(conn, anonymous_token=mine, user_id=3)

    assert moved == 3
    assert (await owned(conn, 3))[1:] == [ids[1], ids[3], elsewhere["response_id"]]
    left = await get_responses(conn, anonymous_token=mine)
    assert [row["response_id"] for row in left] == [ids[2], ids[0]]
    assert await audit(conn) == [{"user_id": 3, "moved": 3, "skipped": 2}]


async def test_all_attempts_at_one_question_move_together(conn: AsyncConnection) -> None:
    """The first anonymous attempt does not make the user somebody who has answered."""
    mine = token()
    ids = await answer(conn, mine, "q1", "q1", "q1")

    assert await claim_assessment_responses(conn, anonymous_token=mine, user_id=3) == 3
    assert await owned(conn, 3) == ids


async def test_a_claim_may_be_repeated(conn: AsyncConnection) -> None:
    """The second of two claims finds nothing; what arrived in between comes with the next, if it is new."""
    mine = token()
    await answer(conn, mine, "q1")

    assert await claim_assessment_responses(conn, anonymous_token=mine, user_id=3) == 1
    assert await claim_assessment_responses(conn, anonymous_token=mine, user_id=3) == 0
    late = await answer(conn, mine, "q1", "q2")
    assert await claim_assessment_responses(conn, anonymous_token=mine, user_id=3) == 1

    assert (await owned(conn, 3))[1:] == late[1:]
    assert [(row["moved"], row["skipped"]) for row in await audit(conn)] == [(1, 0), (0, 0), (1, 1)]


async def test_a_stored_claim_is_applied_once(conn: AsyncConnection) -> None:
    """The auth system stores it, a worker applies it, and whoever applies it again finds that it is done."""
    mine = token()
    ids = await answer(conn, mine, "q1")

    claim_id = await request_claim(conn, anonymous_token=mine, user_id=3)
    assert await owned(conn, 3) == []
    assert await requested_claims(conn) == [claim_id]
    applied = await apply_claim(conn, claim_id)
    await answer(conn, mine, "q2")

    assert applied == {"claim_id": claim_id, "user_id": 3, "moved": 1, "skipped": 0}
    assert await apply_claim(conn, claim_id) is None
    assert await apply_claim(conn, claim_id + 1) is None
    assert await owned(conn, 3) == ids
    assert await requested_claims(conn) == []


async def test_requested_claims_are_listed_oldest_first(conn: AsyncConnection) -> None:
    """Only those that have waited for the given time, and at most so many."""
    ids = [await request_claim(conn, anonymous_token=token(), user_id=3) for _ in range(3)]
    await conn.execute(
        text(
            "UPDATE assessment_claims SET requested_at = requested_at - interval '1 hour' WHERE claim_id <> :id"
        ),
        {"id": ids[0]},
    )

    assert await requested_claims(conn) == ids
    assert await requested_claims(conn, limit=2) == ids[:2]
    assert await requested_claims(conn, age_seconds=1800) == ids[1:]


async def test_a_claim_of_a_token_under_which_nothing_lies(conn: AsyncConnection) -> None:
    """Nothing to move is no error."""
    assert await claim_assessment_responses(conn, anonymous_token=uuid4(), user_id=3) == 0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"anonymous_token": ""}, "anonymous_token"),
        ({"anonymous_token": None}, "anonymous_token"),
        ({"anonymous_token": "a\x00"}, "anonymous_token"),
        ({"user_id": 0}, "user_id"),
        ({"user_id": None}, "user_id"),
        ({"user_id": "3"}, "user_id"),
    ],
)
async def test_a_bad_claim_is_refused(conn: AsyncConnection, changes: dict[str, Any], field: str) -> None:
    """A claim without a token or without a user would move nothing, or everything: neither is accepted."""
    await answer(conn, token(), "q1")
    given: dict[str, Any] = {"anonymous_token": "t", "user_id": 3} | changes

    with pytest.raises(InvalidInputError) as refusal:
        await claim_assessment_responses(conn, **given)

    assert refusal.value.field == field
    assert await count(conn, "assessment_claims") == 0


async def test_a_claim_for_an_unknown_user_is_refused(conn: AsyncConnection) -> None:
    """The answers stay where they are."""
    mine = token()
    await answer(conn, mine, "q1")

    with pytest.raises(UnknownUserError, match="user_id: there is no such user; nothing was stored"):
        async with conn.begin_nested():
            await claim_assessment_responses(conn, anonymous_token=mine, user_id=999_999)

    assert len(await get_responses(conn, anonymous_token=mine)) == 1


@pytest.mark.commits
async def test_claims_for_one_user_pass_one_by_one(engine: AsyncEngine) -> None:
    """The second of two claims waits for the first one's commit, and then sees what that moved."""
    mine = token(), token()
    ids = [await committed(engine, partial(_answer_q, anonymous_token=one)) for one in mine]

    async with engine.connect() as first:
        assert await claim_assessment_responses(first, anonymous_token=mine[0], user_id=3) == 1
        claim = partial(claim_assessment_responses, anonymous_token=mine[1], user_id=3)
        async with blocked(engine, claim) as second:
            await first.commit()
        assert await second == 0

    async with engine.connect() as conn:
        assert await owned(conn, 3) == [ids[0]]
        assert [(row["moved"], row["skipped"]) for row in await audit(conn)] == [(1, 0), (0, 1)]


async def _answer_q(conn: AsyncConnection, *, anonymous_token: str, attempts: int = 1) -> int:
    return (await answer(conn, anonymous_token, *["q"] * attempts))[0]


@pytest.mark.commits
async def test_two_tokens_of_one_user_at_once(engine: AsyncEngine) -> None:
    """However two claims for one user race, he never owns answers of two tokens to one question."""
    for number in range(ROUNDS):
        user_id = number + 1
        mine = token(), token()
        async with engine.begin() as conn:
            sets = [frozenset(await answer(conn, one, "q1", "q1", f"only {one}")) for one in mine]

        await asyncio.gather(
            *(
                committed(engine, partial(claim_assessment_responses, anonymous_token=one, user_id=user_id))
                for one in mine
            )
        )

        async with engine.connect() as conn:
            got = frozenset(await owned(conn, user_id))
        assert sorted(len(got & one) for one in sets) == [1, 3], f"round {number}"


@pytest.mark.commits
async def test_one_token_for_two_users_at_once(engine: AsyncEngine) -> None:
    """Each answer goes to one of them, none is lost, and the counts tell the truth."""
    for number in range(ROUNDS):
        mine = token()
        async with engine.begin() as conn:
            ids = await answer(conn, mine, "q1", "q2", "q3")
            before = [await owned(conn, user_id) for user_id in (1, 2)]
            await conn.execute(text("DELETE FROM assessment_claims"))

        moved = await asyncio.gather(
            *(
                committed(engine, partial(claim_assessment_responses, anonymous_token=mine, user_id=user_id))
                for user_id in (1, 2)
            )
        )

        async with engine.begin() as conn:
            after = [await owned(conn, user_id) for user_id in (1, 2)]
            gained = [len(new) - len(old) for new, old in zip(after, before, strict=True)]
            assert gained == list(moved), f"round {number}"
            assert sum(moved) == 3
            assert not set(after[0]) & set(after[1])
            await conn.execute(text("DELETE FROM scoring_handoffs"))
            await conn.execute(text("DELETE FROM assessment_responses"))
        assert len(ids) == 3


@pytest.mark.commits
async def test_one_claim_applied_by_two_workers_at_once(engine: AsyncEngine) -> None:
    """Its message may arrive twice: one applies it, the other finds it done."""
    mine = token()
    async with engine.begin() as conn:
        await answer(conn, mine, "q1", "q2")
        claim_id = await request_claim(conn, anonymous_token=mine, user_id=3)

    results = await asyncio.gather(
        *(committed(engine, partial(apply_claim, claim_id=claim_id)) for _ in range(4))
    )

    assert [row["moved"] for row in results if row is not None] == [2]


@pytest.mark.commits
async def test_claims_while_answers_arrive_and_are_scored(engine: AsyncEngine) -> None:
    """Submit, claim, lease and settle the same answers at once: no deadlock, nothing lost, all scored."""
    mine = token()
    await committed(engine, publish)
    stored: list[int] = []

    async def submits() -> None:
        for _ in range(25):
            row = await committed(engine, partial(submit, anonymous_token=mine))
            stored.append(row["response_id"])

    async def claims_() -> None:
        for _ in range(15):
            await committed(engine, partial(claim_assessment_responses, anonymous_token=mine, user_id=3))

    async def scoring() -> int:
        settled = 0
        while settled < 25:
            leases = await committed(
                engine,
                partial(
                    pull_handoffs, lane="live", lease_token=uuid4(), lease_seconds=LEASE_SECONDS, limit=3
                ),
            )
            settlements = [settlement(held) for held in leases]
            settled += len(await committed(engine, partial(settle_handoffs, settlements=settlements)))
        return settled

    async with asyncio.timeout(20):
        await asyncio.gather(submits(), claims_(), claims_(), scoring())

    async with engine.connect() as conn:
        mine_now = await owned(conn, 3)
        still = [row["response_id"] for row in await get_responses(conn, anonymous_token=mine)]
        assert sorted([*mine_now, *still]) == sorted(stored)
        for response_id in stored:
            assert len(await scores_of(conn, response_id)) == 1
        assert await count(conn, "scoring_handoffs") == 0


@pytest.mark.commits
async def test_a_score_does_not_wait_for_a_claim(engine: AsyncEngine) -> None:
    """A claim that is still open holds up neither lease nor settle of the answers that it moves."""
    mine = token()
    await committed(engine, publish)
    row = await committed(engine, partial(submit, anonymous_token=mine))

    async with engine.connect() as claiming:
        assert await claim_assessment_responses(claiming, anonymous_token=mine, user_id=3) == 1
        async with asyncio.timeout(5), engine.begin() as worker:
            [held] = await lease(worker, row["response_id"])
            assert len(await settle_handoffs(worker, [settlement(held)])) == 1
        await claiming.commit()

    async with engine.connect() as conn:
        [read] = await get_responses(conn, user_id=3)
    assert read["scoring_state"] == "scored"
