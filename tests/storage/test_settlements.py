from __future__ import annotations

import asyncio
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import select, text

from storage import InvalidInputError, submit_responses
from storage.dead import rescore_responses
from storage.leases import renew_leases
from storage.settlements import (
    MAX_REASON_CHARS,
    Settlement,
    bury_handoffs,
    fail_handoffs,
    hand_back_handoffs,
    postpone_handoffs,
    settle_handoffs,
)
from storage.tables import handoffs
from tests.factories import (
    LEASE_SECONDS,
    SHORT_LEASE_SECONDS,
    bury,
    count,
    handoff_of,
    lease,
    make_overdue,
    publish,
    release,
    scores_of,
    settlement,
    submission,
    submit,
)
from tests.races import blocked, committed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

ROUNDS = 50
ENDED = {"due_at": text("'infinity'"), "lease_token": None, "last_error": "r"}
RELEASES = [postpone_handoffs, fail_handoffs, bury_handoffs, hand_back_handoffs]


async def leased(conn: AsyncConnection, number: int = 1) -> list[dict[str, Any]]:
    await publish(conn)
    rows = await submit_responses(conn, [submission()] * number)
    leases = await lease(conn, *(row["response_id"] for row in rows))
    assert len(leases) == number
    return sorted(leases, key=lambda held: int(held["handoff_id"]))


async def handoff(conn: AsyncConnection, held: dict[str, Any]) -> dict[str, Any]:
    found = await handoff_of(conn, held["response_id"])
    assert found is not None
    return found


async def seconds_until_due(conn: AsyncConnection, held: dict[str, Any]) -> float:
    query = text(
        "SELECT EXTRACT(epoch FROM due_at - statement_timestamp())::float FROM scoring_handoffs WHERE handoff_id = :id"
    )
    return float((await conn.execute(query, {"id": held["handoff_id"]})).scalar_one())


async def test_a_score_is_written_and_its_handoff_deleted(conn: AsyncConnection) -> None:
    """The score says by what, against what and from when on it was made."""
    [held] = await leased(conn)
    before = await handoff(conn, held)

    [settled] = await settle_handoffs(
        conn,
        [
            Settlement(
                held["handoff_id"],
                held["created_at"],
                "gpt",
                "v3",
                {"overall_score": 3.5, "reasoning": "größer 🌱"},
            )
        ],
    )

    assert settled["handoff_id"] == held["handoff_id"]
    assert settled["response_id"] == held["response_id"]
    assert await handoff_of(conn, held["response_id"]) is None
    [score] = await scores_of(conn, held["response_id"])
    assert score.pop("created_at") is not None
    assert score == {
        "score_id": settled["score_id"],
        "response_id": held["response_id"],
        "handoff_id": held["handoff_id"],
        "question_digest": held["question_digest"],
        "model_id": "gpt",
        "prompt_version": "v3",
        "score_data": {"overall_score": 3.5, "reasoning": "größer 🌱"},
        "picked_up_at": before["leased_at"],
    }


async def test_many_are_settled_at_once_each_with_its_own_score(conn: AsyncConnection) -> None:
    """Whatever order they are given in, scores and answers are not mixed up; unknown ids do no harm."""
    leases = await leased(conn, 20)
    Random(7).shuffle(leases)
    given = [settlement(held, overall_score=held["response_id"]) for held in leases]

    settled = await settle_handoffs(
        conn, [*given[:10], settlement(leases[0] | {"handoff_id": 10**9}), *given[10:]]
    )

    assert {row["handoff_id"] for row in settled} == {held["handoff_id"] for held in leases}
    for held in leases:
        [score] = await scores_of(conn, held["response_id"])
        assert score["score_data"]["overall_score"] == held["response_id"]
    assert await count(conn, "scoring_handoffs") == 0


async def test_the_second_score_of_a_handoff_is_dropped(conn: AsyncConnection) -> None:
    """Settling again touches no row, and is no error."""
    [held] = await leased(conn)

    assert len(await settle_handoffs(conn, [settlement(held, overall_score=1.0)])) == 1
    assert await settle_handoffs(conn, [settlement(held, overall_score=2.0)]) == []

    [score] = await scores_of(conn, held["response_id"])
    assert score["score_data"]["overall_score"] == 1.0


async def test_the_database_itself_refuses_a_second_score(conn: AsyncConnection) -> None:
    """Whatever a future statement forgets: one handoff, one score."""
    [held] = await leased(conn)
    await settle_handoffs(conn, [settlement(held)])

    with pytest.raises(Exception, match="uq_assessment_scores_handoff"):
        await conn.execute(
            text(
                "INSERT INTO assessment_scores"
                " (response_id, handoff_id, question_digest, model_id, prompt_version, score_data)"
                " SELECT response_id, handoff_id, question_digest, model_id, prompt_version, score_data"
                " FROM assessment_scores"
            )
        )


async def test_a_late_score_counts(conn: AsyncConnection) -> None:
    """A slow worker whose lease went to another wins if it is first; the other's score is dropped."""
    [slow] = await leased(conn)
    await make_overdue(conn, slow["response_id"])
    [fast] = await lease(conn, slow["response_id"], lease_seconds=SHORT_LEASE_SECONDS)

    assert len(await settle_handoffs(conn, [settlement(slow, model_id="slow")])) == 1
    assert await settle_handoffs(conn, [settlement(fast, model_id="fast")]) == []
    assert await fail_handoffs(conn, [release(fast, reason="too late")]) == frozenset()

    assert [score["model_id"] for score in await scores_of(conn, slow["response_id"])] == ["slow"]


async def test_a_late_score_counts_for_the_dead(conn: AsyncConnection) -> None:
    """A finished score is worth more than the reason why there was to be none."""
    [held] = await leased(conn)
    await bury_handoffs(conn, [release(held, reason="given up")])

    assert len(await settle_handoffs(conn, [settlement(held)])) == 1
    assert await handoff_of(conn, held["response_id"]) is None


async def test_a_score_for_the_old_question_is_dropped(conn: AsyncConnection) -> None:
    """A rescore against a new rubric replaces the handoff: what is on its way for the old one comes too late."""
    [held] = await leased(conn)
    digest = await publish(conn, rubric="better")
    assert await rescore_responses(conn, response_ids=[held["response_id"]]) == [held["response_id"]]

    assert await settle_handoffs(conn, [settlement(held)]) == []

    replaced = await handoff(conn, held)
    assert (replaced["question_digest"], replaced["lease_token"]) == (digest, None)
    assert await scores_of(conn, held["response_id"]) == []


async def test_nothing_is_settled_without_a_question(conn: AsyncConnection) -> None:
    """A handoff that waits as unpublished has nothing to be scored against."""
    row = await submit(conn)
    waiting = await handoff_of(conn, row["response_id"])
    assert waiting is not None

    assert await settle_handoffs(conn, [settlement(waiting)]) == []
    assert await handoff_of(conn, row["response_id"]) == waiting


@pytest.mark.parametrize(
    "score_data",
    [{"reasoning": "a\x00b"}, {"reasoning": "\ud83d"}],
    ids=["nul", "surrogate"],
)
async def test_a_score_that_cannot_be_stored_is_an_error_of_ours(
    conn: AsyncConnection, score_data: dict[str, Any]
) -> None:
    """The batch fails as a whole and changes nothing, so that its scores can be tried one by one."""
    bad, good = await leased(conn, 2)

    with pytest.raises(InvalidInputError):
        async with conn.begin_nested():
            await settle_handoffs(
                conn,
                [Settlement(bad["handoff_id"], bad["created_at"], "m", "p", score_data), settlement(good)],
            )

    assert await count(conn, "assessment_scores") == 0
    assert await count(conn, "scoring_handoffs") == 2


async def test_a_score_that_is_not_json_is_never_sent(conn: AsyncConnection) -> None:
    """NaN has no JSON; the statement is not even begun."""
    [held] = await leased(conn)

    with pytest.raises(ValueError, match="not JSON compliant"):
        await settle_handoffs(conn, [settlement(held, overall_score=float("nan"))])

    assert await handoff(conn, held)


async def test_nothing_to_settle_or_release(conn: AsyncConnection) -> None:
    """Empty batches touch nothing."""
    await leased(conn)

    assert await settle_handoffs(conn, []) == []
    for let_go in RELEASES:
        assert await let_go(conn, []) == frozenset()


async def test_a_postponement_uses_up_no_attempt(conn: AsyncConnection) -> None:
    """It is counted by itself, its reason is kept, and the handoff is due after the pause."""
    [held] = await leased(conn)

    assert await postpone_handoffs(conn, [release(held, delay_seconds=500, reason="503")]) == {
        held["handoff_id"]
    }

    after = await handoff(conn, held)
    assert (after["attempts"], after["postponements"], after["suspicions"]) == (0, 1, 0)
    assert (after["state"], after["lease_token"], after["last_error"]) == ("open", None, "503")
    assert after["last_error_at"] is not None
    assert 400 < await seconds_until_due(conn, held) <= 500


async def test_suspicious_postponements_are_counted_until_a_verdict(conn: AsyncConnection) -> None:
    """Only those that the caller calls suspicious count, and a failed attempt settles the account."""
    [held] = await leased(conn)
    seen = []
    for suspicious in (True, False, True):
        await postpone_handoffs(conn, [release(held, suspicious=suspicious)])
        [held] = await lease(conn, held["response_id"])
        seen.append((held["postponements"], held["suspicions"]))
    await fail_handoffs(conn, [release(held, reason="nonsense")])
    [held] = await lease(conn, held["response_id"])

    assert seen == [(1, 1), (2, 1), (3, 2)]
    assert (held["postponements"], held["suspicions"], held["attempts"]) == (3, 0, 1)


async def test_a_failure_uses_up_one_attempt(conn: AsyncConnection) -> None:
    """The reason is kept and the next try waits for the pause."""
    [held] = await leased(conn)

    assert await fail_handoffs(conn, [release(held, delay_seconds=500, reason="nonsense")]) == {
        held["handoff_id"]
    }

    after = await handoff(conn, held)
    assert (after["attempts"], after["postponements"]) == (1, 0)
    assert (after["state"], after["lease_token"], after["last_error"]) == ("open", None, "nonsense")
    assert 400 < await seconds_until_due(conn, held) <= 500
    assert await lease(conn, held["response_id"]) == []


async def test_the_dead_are_never_due(conn: AsyncConnection) -> None:
    """Burying uses up an attempt and keeps the reason; no message and no sweep brings the answer back."""
    [held] = await leased(conn)

    assert await bury_handoffs(conn, [release(held, delay_seconds=5, reason="refused")]) == {
        held["handoff_id"]
    }

    after = await handoff(conn, held)
    assert (after["state"], after["attempts"], after["last_error"]) == ("dead", 1, "refused")
    assert await seconds_until_due(conn, held) == float("inf")
    assert await lease(conn, held["response_id"]) == []


async def test_nobody_is_buried_without_a_reason(conn: AsyncConnection) -> None:
    """A person shall be able to act on it: the database insists."""
    [held] = await leased(conn)

    with pytest.raises(InvalidInputError, match="ck_scoring_handoffs_ended"):
        await bury_handoffs(conn, [release(held)])


async def test_handing_back_counts_nothing(conn: AsyncConnection) -> None:
    """A worker that stops leaves no trace: due at once, and the reason of an earlier trouble stays."""
    [held] = await leased(conn)
    await postpone_handoffs(conn, [release(held, reason="503")])
    [held] = await lease(conn, held["response_id"])
    before = await handoff(conn, held)

    assert await hand_back_handoffs(conn, [release(held)]) == {held["handoff_id"]}

    after = await handoff(conn, held)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"lease_token", "due_at"}
    assert len(await lease(conn, held["response_id"])) == 1


@pytest.mark.parametrize("let_go", RELEASES, ids=lambda let_go: let_go.__name__)
async def test_only_the_holder_lets_go(conn: AsyncConnection, let_go: Any) -> None:
    """Who lost the lease has no say any more; the others of his batch are released all the same."""
    lost, mine = await leased(conn, 2)
    await make_overdue(conn, lost["response_id"])
    [holder] = await lease(conn, lost["response_id"], lease_seconds=SHORT_LEASE_SECONDS)
    before = await handoff(conn, holder)

    released = await let_go(
        conn,
        [
            release(lost, reason="lost"),
            release(mine, reason="mine"),
            release(mine, handoff_id=10**9, reason="unknown"),
            release(holder, lease_token=uuid4(), reason="invented"),
        ],
    )

    assert released == {mine["handoff_id"]}
    assert await handoff(conn, holder) == before
    assert await let_go(conn, [release(mine, reason="again")]) == frozenset()


@pytest.mark.parametrize("let_go", RELEASES, ids=lambda let_go: let_go.__name__)
async def test_a_reason_is_cut_to_size(conn: AsyncConnection, let_go: Any) -> None:
    """Whatever a scorer makes of its reason, rows stay small."""
    [held] = await leased(conn)

    await let_go(conn, [release(held, reason="x" * 5 * MAX_REASON_CHARS)])

    assert (await handoff(conn, held))["last_error"] == "x" * MAX_REASON_CHARS


async def test_each_of_a_batch_has_its_own_pause_and_reason(conn: AsyncConnection) -> None:
    """Releases of one batch are not mixed up."""
    leases = await leased(conn, 6)
    Random(3).shuffle(leases)

    await postpone_handoffs(
        conn,
        [
            release(
                held,
                delay_seconds=held["handoff_id"] * 1000,
                reason=f"reason {held['handoff_id']}",
                suspicious=held["handoff_id"] % 2 == 0,
            )
            for held in leases
        ],
    )

    for held in leases:
        after = await handoff(conn, held)
        assert after["last_error"] == f"reason {held['handoff_id']}"
        assert after["suspicions"] == (held["handoff_id"] % 2 == 0)
        due = await seconds_until_due(conn, held)
        assert held["handoff_id"] * 1000 - 100 < due <= held["handoff_id"] * 1000


@pytest.mark.commits
async def test_two_scores_at_the_same_moment(engine: AsyncEngine) -> None:
    """The second waits until the first is decided; where that is undone, the second one counts."""
    held, undone = await committed(engine, partial(leased, number=2))
    for row, commits in ((held, True), (undone, False)):
        async with engine.connect() as first:
            assert await settle_handoffs(first, [settlement(row, model_id="first")])
            late = partial(settle_handoffs, settlements=[settlement(row, model_id="second")])
            async with blocked(engine, late) as second:
                await (first.commit() if commits else first.rollback())
            assert bool(await second) is not commits

    async with engine.connect() as conn:
        assert [score["model_id"] for score in await scores_of(conn, held["response_id"])] == ["first"]
        assert [score["model_id"] for score in await scores_of(conn, undone["response_id"])] == ["second"]


@pytest.mark.commits
async def test_exactly_one_score_whoever_comes_first(engine: AsyncEngine) -> None:
    """Three workers settle the same answers again and again, in any order: each answer has one score."""
    leases = await committed(engine, partial(leased, number=ROUNDS))

    async def worker(seed: int) -> int:
        mine = Random(seed).sample(leases, len(leases))
        settled = 0
        for start in range(0, ROUNDS, 5):
            batch = [settlement(held) for held in mine[start : start + 5]]
            settled += len(await committed(engine, partial(settle_handoffs, settlements=batch)))
        return settled

    settled = await asyncio.gather(*(worker(seed) for seed in range(3)))

    assert sum(settled) == ROUNDS
    async with engine.connect() as conn:
        assert await count(conn, "assessment_scores") == ROUNDS
        assert await count(conn, "scoring_handoffs") == 0


async def _erase(conn: AsyncConnection, response_ids: list[int]) -> None:
    """Delete responses as the design asks for it: handoffs first, in everybody's order."""
    await conn.execute(
        text(
            "WITH locked AS MATERIALIZED ("
            " SELECT handoff_id FROM scoring_handoffs WHERE response_id = ANY (:ids) ORDER BY handoff_id FOR UPDATE"
            ") DELETE FROM scoring_handoffs AS h USING locked WHERE h.handoff_id = locked.handoff_id"
        ),
        {"ids": response_ids},
    )
    await conn.execute(
        text("DELETE FROM assessment_scores WHERE response_id = ANY (:ids)"), {"ids": response_ids}
    )
    await conn.execute(
        text("DELETE FROM assessment_responses WHERE response_id = ANY (:ids)"), {"ids": response_ids}
    )


@pytest.mark.commits
async def test_nothing_deadlocks(engine: AsyncEngine) -> None:
    """Settle, renew, every release, rescore, publish, lease and erase the same rows at once, each in its own order."""
    for number in range(12):
        random = Random(number)
        leases = await committed(engine, partial(leased, number=24))

        def some(source: list[dict[str, Any]] = leases, random: Random = random) -> list[dict[str, Any]]:
            return random.sample(source, 16)

        ids = [held["response_id"] for held in leases]
        work: list[Callable[[AsyncConnection], Awaitable[Any]]] = [
            partial(settle_handoffs, settlements=[settlement(held) for held in some()]),
            partial(settle_handoffs, settlements=[settlement(held) for held in some()]),
            partial(
                renew_leases,
                leases=[(held["handoff_id"], held["lease_token"]) for held in some()],
                lease_seconds=LEASE_SECONDS,
            ),
            partial(postpone_handoffs, releases=[release(held) for held in some()]),
            partial(fail_handoffs, releases=[release(held, reason="r") for held in some()]),
            partial(bury_handoffs, releases=[release(held, reason="r") for held in some()]),
            partial(rescore_responses, response_ids=random.sample(ids[6:], 12)),
            partial(_erase, response_ids=random.sample(ids[:6], 6)),
        ]
        random.shuffle(work)

        async with asyncio.timeout(10):
            await asyncio.gather(*(committed(engine, one) for one in work))

        async with engine.connect() as conn:
            orphans = await conn.execute(
                text(
                    "SELECT count(*) FROM assessment_responses AS r"
                    " WHERE NOT EXISTS (SELECT 1 FROM scoring_handoffs AS h WHERE h.response_id = r.response_id)"
                    " AND NOT EXISTS (SELECT 1 FROM assessment_scores AS s WHERE s.response_id = r.response_id)"
                )
            )
            assert orphans.scalar_one() == 0, f"round {number}"


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        ({"state": "lost", **ENDED}, "ck_scoring_handoffs_state"),
        ({"lane": "fast"}, "ck_scoring_handoffs_lane"),
        ({"due_at": text("'infinity'")}, "ck_scoring_handoffs_due"),
        ({"question_digest": None}, "ck_scoring_handoffs_unpublished"),
        ({**ENDED, "state": "dead", "last_error": None}, "ck_scoring_handoffs_ended"),
        ({"state": "dead", "last_error": "r"}, "ck_scoring_handoffs_ended"),
    ],
)
async def test_the_database_knows_the_states(
    conn: AsyncConnection, changes: dict[str, Any], constraint: str
) -> None:
    """No statement, ours or by hand, can bring a handoff into a state that nobody would find it in."""
    [held] = await leased(conn)

    with pytest.raises(Exception, match=constraint):
        await conn.execute(
            handoffs.update().where(handoffs.c.handoff_id == held["handoff_id"]).values(**changes)
        )


@pytest.mark.commits
async def test_a_dead_handoff_is_buried_once(engine: AsyncEngine) -> None:
    """A burial that waits for a score finds that there is nothing left to bury."""
    [held] = await committed(engine, leased)
    async with engine.connect() as first:
        assert await settle_handoffs(first, [settlement(held)])
        burial = partial(bury_handoffs, releases=[release(held, reason="given up")])
        async with blocked(engine, burial) as second:
            await first.commit()
        assert await second == frozenset()

    async with engine.connect() as conn:
        assert (await conn.execute(select(handoffs))).all() == []
        await publish(conn)
        row = await submit(conn)
        await bury(conn, row["response_id"])
