"""Pairs of things that happen at the same moment, a hundred times each, in any order and size.

``PAIRS_SEED`` repeats the choices of a run; what the server makes of a moment it does not repeat. What became of the
answers is printed, so that one sees that each side was first now and then.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from storage.dead import rescore_responses, retry_dead
from storage.leases import bury_lost, pull_handoffs, renew_leases
from storage.sweeps import overdue, revive_missed
from tests.factories import LEASE_SECONDS, SHORT_LEASE_SECONDS, change_handoff, submission
from tests.faults.operator_pairs import OPERATOR_PAIRS
from tests.faults.pairs import Round, watched_engine
from tests.races import committed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

ROUNDS = 100
# Who locks in another order than everybody must meet somebody in the middle.
MANY = 40
DEADLOCK = "40P01"
NEVER = {"due_at": text("'infinity'"), "lease_token": None, "last_error": "r"}


async def publish_and_submit(now: Round) -> Counter[str]:
    """Every answer is pinned to an edition of its question, at once, by the publication, or by the next sweep."""
    questions = now.questions(now.some())
    published = [one for one in questions if now.random.random() < 0.5]
    await now.publish([one | {"rubric": "old"} for one in published])
    given = [
        submission(question_id=now.random.choice(questions)["question_id"], user_id=now.user())
        for _ in range(now.some())
    ]

    _, rows = await now.together(
        partial(now.publish, now.shuffled(questions), now.one), partial(now.submit, given, now.other)
    )
    ids = [row["response_id"] for row in rows]
    open_digests = "SELECT count(question_digest) FROM scoring_handoffs WHERE response_id = ANY (:ids)"
    before_sweep = await now.value(open_digests, ids=ids)
    revived, _ = await committed(now.one, revive_missed)

    assert len(set(ids)) == len(given)
    assert await now.value(open_digests, ids=ids) == len(given) == before_sweep + revived
    at_once = sum(row["question_digest"] is not None for row in rows)
    return Counter(
        {
            "pinned at once": at_once,
            "revived by the publication": before_sweep - at_once,
            "by the sweep": revived,
        }
    )


async def claim_and_submit(now: Round) -> Counter[str]:
    """What the claim saw is the user's; what came later stays; a repeated key has its row, wherever that is."""
    token, user_id = f"{uuid4()}", now.user()
    keys = [uuid4() for _ in range(now.some())]
    early = [
        submission(anonymous_token=token, question_id=f"{now.name} {index}", submission_key=key)
        for index, key in enumerate(keys)
    ]
    ids = [row["response_id"] for row in await now.submit(early)]
    own = submission(user_id=user_id, question_id=f"{now.name} 0")
    late = [
        submission(anonymous_token=token, question_id=f"{now.name} late {index}")
        for index in range(now.some())
    ]
    claim_id = await now.request(token, user_id)

    moved, rows = await now.together(
        partial(now.claim, claim_id, now.one), partial(now.submit, [*early, own, *late], now.other)
    )
    owners = dict(
        await now.rows(
            "SELECT response_id, user_id FROM assessment_responses WHERE module_slug = 'biology'"
            " AND response_id = ANY (:ids)",
            ids=[row["response_id"] for row in rows],
        )
    )

    assert [row["response_id"] for row in rows[: len(ids)]] == ids
    assert len(owners) == len(early) + 1 + len(late)
    theirs = [row["response_id"] for row in [*rows[: len(ids)], *rows[len(ids) + 1 :]]]
    assert moved == sum(owners[response_id] == user_id for response_id in theirs)
    assert {owners[response_id] for response_id in ids[1:]} <= {user_id}
    late_moved = sum(owners[row["response_id"]] is not None for row in rows[len(ids) + 1 :])
    return Counter(
        {
            "late and moved": late_moved,
            "late and left": len(late) - late_moved,
            "skipped": owners[ids[0]] is None,
        }
    )


async def rescore_and_settle(now: Round) -> Counter[str]:
    """Each is scored against the old edition or not at all, and asked for again against the new one."""
    rows = await now.answers(now.some(), user_id=now.user())
    ids = [row["response_id"] for row in rows]
    leases = await now.leases()
    await now.publish(now.questions(2, rubric="new"))

    counts: Counter[str]
    rescored, counts = await now.together(
        lambda: committed(now.one, partial(rescore_responses, response_ids=now.shuffled(ids), lane="live")),
        partial(now.settle, now.shuffled(leases), now.other),
    )
    again = await now.leases()

    assert sorted(rescored) == sorted(ids) == sorted(lease.response_id for lease in again)
    old = {row["question_digest"] for row in rows}
    assert not old & {lease.question_digest for lease in again}
    scored = await now.rows(
        "SELECT question_digest FROM assessment_scores WHERE response_id = ANY (:ids)", ids=ids
    )
    assert len(scored) == counts["settle"]
    assert {digest for (digest,) in scored} <= old
    await now.settle(again, now.one)
    return counts


async def erase_and_settle(now: Round) -> Counter[str]:
    """Nothing of the student stays, whether or not it was scored first; everybody else has his score."""
    owner = now.somebody()
    mine = await now.answers(now.some(), **owner)
    others = await now.answers(now.some(), anonymous_token="somebody else")
    leases = now.shuffled(await now.leases())

    erased, counts = await now.together(
        partial(now.erase, now.one, **owner), partial(now.settle, leases, now.other)
    )

    assert counts["settle"] == len(others) + erased["assessment_scores"]
    assert erased["assessment_responses"] == len(mine)
    left = await now.rows("SELECT response_id FROM assessment_scores")
    assert sorted(left) == sorted((row["response_id"],) for row in others)
    assert await now.value("SELECT count(*) FROM assessment_responses") == len(others)
    await now.erase(now.one, anonymous_token="somebody else")
    return Counter({"scored, then erased": erased["assessment_scores"], "dropped": counts["settle_too_late"]})


async def retry_and_sweep(now: Round) -> Counter[str]:
    """What is dead comes back once, what is overdue is taken once, and what was retried while it was taken stays taken."""
    user_id = now.user()
    ids = [row["response_id"] for row in await now.answers(4 * now.some(), user_id=user_id)]
    dead, lapsed, lost, missed = (set(ids[index::4]) for index in range(4))
    states: list[tuple[set[int], dict[str, Any]]] = [
        (dead, {"state": "dead"} | NEVER),
        (lapsed, {"lease_token": uuid4(), "lease_losses": 1}),
        (lost, {"lease_token": uuid4(), "lease_losses": 9}),
        (missed, {"question_digest": None, "due_at": text("'infinity'")}),
    ]
    async with now.observer.begin() as conn:
        for some_ids, columns in states:
            for response_id in some_ids:
                await change_handoff(conn, response_id, **columns)
    token = uuid4()

    async def sweep(conn: AsyncConnection) -> tuple[list[int], int, list[dict[str, Any]]]:
        await overdue(conn, lease_seconds=SHORT_LEASE_SECONDS, overdue_seconds=0)
        buried = [row["response_id"] for row in await bury_lost(conn, lease_seconds=SHORT_LEASE_SECONDS)]
        revived, _ = await revive_missed(conn)
        pulled = await pull_handoffs(
            conn, lane="live", lease_token=token, lease_seconds=SHORT_LEASE_SECONDS, limit=1000
        )
        return buried, revived, pulled

    retried, (buried, revived, pulled) = await now.together(
        lambda: committed(now.one, partial(retry_dead, response_ids=None)),
        partial(now.once, now.other, sweep),
    )
    found = {
        response_id: (state, lease_token)
        for response_id, state, lease_token in await now.rows(
            "SELECT response_id, state, lease_token FROM scoring_handoffs WHERE response_id = ANY (:ids)",
            ids=ids,
        )
    }

    assert (set(buried), revived) == (lost, len(missed))
    assert dead <= set(retried) <= dead | lost
    assert len(retried) == len(set(retried))
    assert found.keys() == set(ids)
    assert {key for key, (state, _) in found.items() if state == "dead"} == lost - set(retried)
    taken = {row["response_id"] for row in pulled}
    assert {key for key, (_, lease_token) in found.items() if lease_token == token} == taken
    assert lapsed | missed <= taken <= set(ids)
    await now.erase(now.one, user_id=user_id)
    return Counter(
        {
            "retried, then taken": len(taken & dead),
            "not taken yet": len(dead - taken),
            "buried, then retried": len(lost & set(retried)),
        }
    )


async def erase_and_submit(now: Round) -> Counter[str]:
    """An answer that comes meanwhile is whole or gone; one that is repeated may be stored anew; none is half there."""
    owner = now.somebody()
    keys = [uuid4() for _ in range(now.some())]
    repeated = [submission(submission_key=key, **owner) for key in keys]
    before = {row["response_id"] for row in await now.submit(repeated)}
    new = [submission(**owner) for _ in range(now.some())]

    erased, rows = await now.together(
        partial(now.erase, now.one, **owner), partial(now.submit, now.shuffled([*repeated, *new]), now.other)
    )
    [column] = owner
    left = {
        response_id
        for (response_id,) in await now.rows(
            f"SELECT response_id FROM assessment_responses WHERE {column} = :owner", owner=owner[column]
        )
    }

    ever = before | {row["response_id"] for row in rows}
    assert left <= ever
    assert erased["assessment_responses"] >= len(ever - left)
    assert len(rows) == len(repeated) + len(new)
    await now.erase(now.one, **owner)
    return Counter(
        {
            "erased": erased["assessment_responses"],
            "stayed": len(left),
            "stored anew": len(ever - before) - len(new),
        }
    )


async def erase_and_claim(now: Round) -> Counter[str]:
    """Whoever is first: every answer is gone, or whole and the user's, or whole and still under the token."""
    token, user_id = f"{uuid4()}", now.user()
    owner = now.random.choice(({"user_id": user_id}, {"anonymous_token": token}))
    own = await now.answers(2, user_id=user_id)
    lying = await now.submit(
        [submission(anonymous_token=token, question_id=f"{now.name} {index}") for index in range(now.some())]
    )
    claim_id = await now.request(token, user_id)

    erased, moved = await now.together(
        partial(now.erase, now.one, **owner), partial(now.claim, claim_id, now.other)
    )
    left = dict(
        await now.rows(
            "SELECT coalesce(anonymous_token, 'the user'), count(*) FROM assessment_responses GROUP BY 1"
        )
    )

    assert sum(left.values()) + erased["assessment_responses"] == len(own) + len(lying)
    if "user_id" in owner:
        assert erased["assessment_responses"] == len(own) + moved
        assert left == ({token: len(lying) - moved} if moved < len(lying) else {})
    else:
        assert erased["assessment_responses"] == len(lying) - moved
        assert left == {"the user": len(own) + moved}
    assert erased["assessment_claims"] == 1
    assert await now.value("SELECT count(*) FROM assessment_claims") == 0
    for rest in ({"user_id": user_id}, {"anonymous_token": token}):
        await now.erase(now.one, **rest)
    return Counter({"moved": moved, "not moved": len(lying) - moved})


async def settle_and_renew(now: Round) -> Counter[str]:
    """Every score is written; a lease that is renewed meanwhile keeps nobody waiting."""
    ids = [row["response_id"] for row in await now.answers(MANY * now.some(), user_id=now.user())]
    leases = await now.leases()
    named = [(lease.handoff_id, lease.lease_token) for lease in now.shuffled(leases)]
    finished = now.shuffled(leases)[: MANY * now.some() // 2]

    counts, renewed = await now.together(
        partial(now.settle, finished, now.one),
        partial(now.once, now.other, partial(renew_leases, leases=named, lease_seconds=LEASE_SECONDS)),
    )

    scored = {lease.handoff_id for lease in finished}
    assert counts == {"settle": len(finished)}
    assert {handoff_id for handoff_id, _ in named} - scored <= renewed
    await now.settle([lease for lease in leases if lease.handoff_id not in scored], now.one)
    assert await now.value(
        "SELECT count(*) FROM assessment_scores WHERE response_id = ANY (:ids)", ids=ids
    ) == len(ids)
    return Counter({"renewed before": len(renewed & scored), "settled before": len(scored - renewed)})


@pytest.fixture
def refusals() -> Counter[str]:
    """What PostgreSQL refused, by SQLSTATE, whether or not somebody tried again and nobody heard of it."""
    return Counter()


@pytest.fixture
async def engines(database_url: str, refusals: Counter[str]) -> AsyncIterator[list[AsyncEngine]]:
    """One for each side, as two processes have them, and one to look with."""
    engines = [watched_engine(database_url, refusals) for _ in range(3)]
    yield engines
    for engine in engines:
        await engine.dispose()


@pytest.mark.commits
@pytest.mark.parametrize(
    "pair",
    [
        publish_and_submit,
        claim_and_submit,
        rescore_and_settle,
        erase_and_settle,
        retry_and_sweep,
        erase_and_submit,
        erase_and_claim,
        settle_and_renew,
        *OPERATOR_PAIRS,
    ],
)
async def test_two_at_the_same_moment(
    pair: Callable[[Round], Awaitable[Counter[str]]],
    engines: list[AsyncEngine],
    refusals: Counter[str],
    measured: Callable[[str], None],
) -> None:
    """Neither hears of the other, no two wait for each other, and the invariants hold after every round."""
    seed = int(os.environ.get("PAIRS_SEED") or SystemRandom().getrandbits(32))
    became: Counter[str] = Counter()
    one, other, observer = engines
    for number in range(ROUNDS):
        now = Round(f"{pair.__name__} {number}", one, other, observer, Random(f"{seed} {number}"))
        try:
            became += await pair(now)
            await now.assert_invariants()
            assert DEADLOCK not in refusals
        except BaseException as exc:
            exc.add_note(f"round {number} with PAIRS_SEED={seed}")
            raise
    measured(f"{pair.__name__}: {ROUNDS} rounds, PAIRS_SEED={seed}, {dict(became | refusals)}")
