"""Steps of operators' runs, beside what web apps and workers do at the same moment. See :mod:`tests.faults.pairs`."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from storage.backfilling import backfill_step
from storage.errors import StorageUnavailableError
from storage.leases import pull_handoffs
from storage.purging import purge_step
from storage.rescoring import rescore_step
from storage.runs import advance_run, horizon, start_run
from storage.translation import translated
from tests.factories import LEASE_SECONDS, submission
from tests.races import committed

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from storage.runs import Kind
    from tests.faults.pairs import Round

STEPS: dict[Kind, Any] = {"rescore": rescore_step, "backfill": backfill_step, "purge": purge_step}
# More tries than the command makes without a pause: here the other side never rests for long.
TRIES = 20
MOST_PULLED = 1000


async def begin(now: Round, kind: Kind) -> int:
    """A run over everything that is there."""

    async def start(conn: AsyncConnection) -> int:
        end = await horizon(conn)
        filters: dict[str, Any] = {
            "rescore": {"until_score_id": end["until_score_id"]},
            "backfill": {},
            "purge": {"cutoff": (datetime.now(UTC) + timedelta(days=1)).isoformat()},
        }[kind]
        return await start_run(
            conn,
            kind=kind,
            filters=filters,
            started_by="ops",
            until_response_id=end["until_response_id"],
            expected=0,
        )

    return await committed(now.observer, start)


async def run_on(now: Round, kind: Kind, run_id: int, engine: AsyncEngine) -> int:
    """To its end, trying again as the command does; returns how many it changed."""
    tries = 0
    while True:
        try:
            with translated():
                async with engine.begin() as conn:
                    run = await advance_run(conn, run_id, kind=kind, actor="ops", work=STEPS[kind])
        except StorageUnavailableError:
            tries += 1
            assert tries < TRIES
            continue
        if run["finished_at"] is not None:
            return int(run["changed"])


async def bare(now: Round, ids: list[int]) -> None:
    """Take the handoffs of answers away, as if they were from before there were any."""
    async with now.observer.begin() as conn:
        await conn.exec_driver_sql("DELETE FROM scoring_handoffs WHERE response_id = ANY ($1)", (ids,))


async def rescore_run_and_settle(now: Round) -> Counter[str]:
    """A run asks anew for what it found scored, whatever is settled meanwhile; nothing is asked for or scored twice."""
    user_id = now.user()
    scored = [row["response_id"] for row in await now.answers(now.some(), user_id=user_id)]
    await now.settle(await now.leases(), now.observer)
    await now.answers(now.some(), user_id=user_id)
    leases = await now.leases()
    run_id = await begin(now, "rescore")

    changed, counts = await now.together(
        partial(run_on, now, "rescore", run_id, now.one),
        partial(now.settle, now.shuffled(leases), now.other),
    )

    assert changed == len(scored)
    assert counts["settle"] == len(leases)
    waiting = await now.rows("SELECT response_id FROM scoring_handoffs")
    assert sorted(waiting) == sorted((response_id,) for response_id in scored)
    await now.erase(now.one, user_id=user_id)
    return Counter({"asked anew": changed})


async def rescore_run_and_erase(now: Round) -> Counter[str]:
    """What is erased is not asked for, and what is asked for is erased."""
    mine, other = now.shuffled(range(1, 21))[:2]
    await now.answers(now.some(), user_id=mine)
    kept = await now.answers(now.some(), user_id=other)
    await now.settle(await now.leases(), now.observer)
    run_id = await begin(now, "rescore")

    changed, erased = await now.together(
        partial(run_on, now, "rescore", run_id, now.one), partial(now.erase, now.other, user_id=mine)
    )

    assert await now.value("SELECT count(*) FROM scoring_handoffs") == len(kept)
    # One that was asked for after the erasure had looked for handoffs goes with its answer, and is not counted.
    assert erased["scoring_handoffs"] <= changed - len(kept) <= erased["assessment_responses"]
    await now.erase(now.one, user_id=other)
    return Counter({"asked for, then erased": changed - len(kept), "erased": erased["assessment_responses"]})


async def backfill_and_erase(now: Round) -> Counter[str]:
    """What is erased stays so, what is left is handed over, in however many tries."""
    mine, other = now.shuffled(range(1, 21))[:2]
    gone = await now.answers(now.some(), user_id=mine)
    kept = await now.answers(now.some(), user_id=other)
    await bare(now, [row["response_id"] for row in [*gone, *kept]])
    run_id = await begin(now, "backfill")

    await now.together(
        partial(run_on, now, "backfill", run_id, now.one), partial(now.erase, now.other, user_id=mine)
    )

    assert await now.value("SELECT count(*) FROM scoring_handoffs") == len(kept)
    await now.erase(now.one, user_id=other)
    return Counter({"kept": len(kept)})


async def backfill_and_submit(now: Round) -> Counter[str]:
    """Each answer has one handoff, whoever made it."""
    user_id = now.user()
    old = await now.answers(now.some(), user_id=user_id)
    await bare(now, [row["response_id"] for row in old])
    run_id = await begin(now, "backfill")
    new = [submission(user_id=user_id, question_id=f"{now.name} 0") for _ in range(now.some())]

    changed, rows = await now.together(
        partial(run_on, now, "backfill", run_id, now.one), partial(now.submit, new, now.other)
    )

    assert changed == len(old)
    assert await now.value("SELECT count(*) FROM scoring_handoffs") == len(old) + len(rows)
    await now.erase(now.one, user_id=user_id)
    return Counter({"handed over": changed})


async def purge_and_settle(now: Round) -> Counter[str]:
    """What is purged is gone, scored first or not; what belongs to users is scored."""
    await now.answers(now.some(), anonymous_token="somebody")
    user_id = now.user()
    kept = await now.answers(now.some(), user_id=user_id)
    leases = now.shuffled(await now.leases())
    run_id = await begin(now, "purge")

    purged, counts = await now.together(
        partial(run_on, now, "purge", run_id, now.one), partial(now.settle, leases, now.other)
    )

    left = await now.rows("SELECT response_id FROM assessment_scores")
    assert sorted(left) == sorted((row["response_id"],) for row in kept)
    assert await now.value("SELECT count(*) FROM assessment_responses") == len(kept)
    assert purged == len(leases) - len(kept)
    await now.erase(now.one, user_id=user_id)
    return Counter(
        {"scored, then purged": counts["settle"] - len(kept), "dropped": counts["settle_too_late"]}
    )


async def purge_and_pull(now: Round) -> Counter[str]:
    """Whoever takes what is due takes what is left of it."""
    await now.answers(now.some(), anonymous_token="somebody")
    run_id = await begin(now, "purge")

    async def pull(conn: AsyncConnection) -> list[dict[str, Any]]:
        return await pull_handoffs(
            conn, lane="live", lease_token=uuid4(), lease_seconds=LEASE_SECONDS, limit=MOST_PULLED
        )

    _, pulled = await now.together(
        partial(run_on, now, "purge", run_id, now.one), partial(now.once, now.other, pull)
    )

    assert await now.value("SELECT count(*) FROM assessment_responses") == 0
    assert await now.value("SELECT count(*) FROM scoring_handoffs") == 0
    return Counter({"taken, then purged": len(pulled)})


async def purge_and_claim(now: Round) -> Counter[str]:
    """The claim has all answers under its token or none of them, each whole."""
    token, user_id = f"{uuid4()}", now.user()
    lying = await now.submit(
        [submission(anonymous_token=token, question_id=f"{now.name} {index}") for index in range(now.some())]
    )
    run_id = await begin(now, "purge")

    async def request_and_claim() -> int:
        return await now.claim(await now.request(token, user_id), now.other)

    purged, moved = await now.together(partial(run_on, now, "purge", run_id, now.one), request_and_claim)

    assert {purged, moved} == {0, len(lying)}
    assert (
        await now.value("SELECT count(*) FROM assessment_responses WHERE user_id = :id", id=user_id) == moved
    )
    assert await now.value("SELECT count(*) FROM scoring_handoffs") == moved
    await now.erase(now.one, user_id=user_id)
    return Counter({"moved": moved, "purged": purged})


async def purge_and_submit(now: Round) -> Counter[str]:
    """An answer that comes meanwhile stays whole; one that is repeated may be stored anew."""
    token = f"{uuid4()}"
    keys = [uuid4() for _ in range(now.some())]
    repeated = [submission(anonymous_token=token, submission_key=key) for key in keys]
    await now.submit(repeated)
    run_id = await begin(now, "purge")
    new = [submission(anonymous_token=token) for _ in range(now.some())]

    purged, rows = await now.together(
        partial(run_on, now, "purge", run_id, now.one),
        partial(now.submit, now.shuffled([*repeated, *new]), now.other),
    )

    left = await now.value("SELECT count(*) FROM assessment_responses")
    assert purged == len(keys)
    assert len(new) <= left <= len(rows)
    assert await now.value("SELECT count(*) FROM scoring_handoffs") == left
    await now.erase(now.one, anonymous_token=token)
    return Counter({"stored anew": left - len(new)})


OPERATOR_PAIRS = (
    rescore_run_and_settle,
    rescore_run_and_erase,
    backfill_and_erase,
    backfill_and_submit,
    purge_and_settle,
    purge_and_pull,
    purge_and_claim,
    purge_and_submit,
)
