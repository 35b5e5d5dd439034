from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from storage import submit_responses
from storage.leases import lease_handoffs, pull_handoffs, renew_leases
from storage.settlements import postpone_handoffs
from tests.factories import (
    LEASE_SECONDS,
    SHORT_LEASE_SECONDS,
    bury,
    change_handoff,
    handoff_of,
    lease,
    make_overdue,
    publish,
    release,
    submission,
    submit,
)
from tests.races import committed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

# Longer than any server has been up: no lease counts as run out.
EVER_SECONDS = 1e9


async def pull(
    conn: AsyncConnection, *, lane: str = "live", limit: int = 10, lease_seconds: float = LEASE_SECONDS
) -> list[int]:
    leases = await pull_handoffs(
        conn, lane=lane, lease_token=uuid4(), lease_seconds=lease_seconds, limit=limit
    )
    return sorted(held["response_id"] for held in leases)


async def submitted(conn: AsyncConnection, number: int = 1) -> list[int]:
    await publish(conn)
    return [row["response_id"] for row in await submit_responses(conn, [submission()] * number)]


async def test_a_lease_carries_all_that_scoring_needs(conn: AsyncConnection) -> None:
    """The worker reads nothing else but the question: answer, metadata, counters and trace come along."""
    digest = await publish(conn)
    row = await submit(conn, answer_text="Sugar.", answer_metadata={"seconds": 5})
    await change_handoff(conn, row["response_id"], trace_context={"traceparent": "00-1"})
    before = await handoff_of(conn, row["response_id"])
    token = uuid4()

    leases = await lease_handoffs(
        conn, response_ids=[row["response_id"]], lease_token=token, lease_seconds=60, limit=1
    )

    assert before is not None
    # Submitted and leased in one transaction: due since its start.
    assert 0 < leases[0].pop("waited_seconds") < EVER_SECONDS
    assert leases == [
        {
            "handoff_id": before["handoff_id"],
            "created_at": before["created_at"],
            "response_id": row["response_id"],
            "question_digest": digest,
            "lane": "live",
            "lease_token": token,
            "attempts": 0,
            "postponements": 0,
            "suspicions": 0,
            "lease_losses": 0,
            "trace_context": {"traceparent": "00-1"},
            "answer_text": "Sugar.",
            "answer_metadata": {"seconds": 5},
        }
    ]
    state = await conn.execute(
        text(
            "SELECT due_at - leased_at = interval '60 s', leased_at <= clock_timestamp(), lease_token"
            " FROM scoring_handoffs"
        )
    )
    assert state.all() == [(True, True, token)]


async def test_a_message_leases_only_what_is_due(conn: AsyncConnection) -> None:
    """Scored, leased, postponed, dead and unpublished ones are left alone, and so are unknown ids."""
    due, leased, postponed, dead, scored = await submitted(conn, 5)
    unpublished = (await submit(conn, question_id="unheard-of"))["response_id"]
    await lease(conn, leased)
    await change_handoff(conn, postponed, due_at=text("statement_timestamp() + interval '1 minute'"))
    await bury(conn, dead)
    await conn.execute(text("DELETE FROM scoring_handoffs WHERE response_id = :id"), {"id": scored})

    leases = await lease(conn, due, leased, postponed, dead, scored, unpublished, 10**9)

    assert [held["response_id"] for held in leases] == [due]
    assert await pull(conn) == []


async def test_the_same_message_twice_leases_once(conn: AsyncConnection) -> None:
    """A duplicate of a message, or an id twice within one, costs nothing."""
    ids = await submitted(conn, 3)

    first = await lease(conn, *ids, *ids)
    second = await lease(conn, *ids)

    assert sorted(held["response_id"] for held in first) == ids
    assert second == []


async def test_no_more_than_the_free_slots_are_leased(conn: AsyncConnection) -> None:
    """The rest of a message stays due, the oldest are taken."""
    ids = await submitted(conn, 5)

    leases = await lease_handoffs(
        conn, response_ids=ids[::-1], lease_token=uuid4(), lease_seconds=60, limit=2
    )

    assert sorted(held["response_id"] for held in leases) == ids[:2]
    assert await pull(conn) == ids[2:]


async def test_nothing_asked_is_nothing_leased(conn: AsyncConnection) -> None:
    """No ids, or no slots, lease nothing."""
    await submitted(conn)

    assert await lease_handoffs(conn, response_ids=[], lease_token=uuid4(), lease_seconds=60, limit=5) == []
    assert await pull(conn, limit=0) == []


async def test_a_pull_takes_the_longest_due_of_its_lane(conn: AsyncConnection) -> None:
    """What has been due for longest goes first, whenever it was submitted."""
    ids = await submitted(conn, 4)
    for minutes, response_id in enumerate([ids[2], ids[0], ids[3], ids[1]]):
        await change_handoff(
            conn, response_id, due_at=text(f"statement_timestamp() - interval '{10 - minutes} minutes'")
        )
    await change_handoff(conn, ids[2], lane="bulk")

    assert await pull(conn, limit=2) == [ids[0], ids[3]]
    assert await pull(conn, limit=2) == [ids[1]]
    assert await pull(conn, lane="bulk") == [ids[2]]


async def test_a_lease_that_ran_out_is_due_again_and_counted(conn: AsyncConnection) -> None:
    """Whoever leases it then gets a token of his own, and the loss is on record."""
    [response_id] = await submitted(conn)
    [lost] = await lease(conn, response_id)
    await make_overdue(conn, response_id)

    [held] = await lease(conn, response_id, lease_seconds=SHORT_LEASE_SECONDS)

    assert held["lease_losses"] == 1
    assert held["lease_token"] != lost["lease_token"]
    assert held["handoff_id"] == lost["handoff_id"]
    assert held["attempts"] == 0


async def test_leasing_what_was_given_back_is_no_loss(conn: AsyncConnection) -> None:
    """Only a lease that ran out counts."""
    [response_id] = await submitted(conn)
    [held] = await lease(conn, response_id)
    await postpone_handoffs(conn, [release(held)])

    [again] = await lease(conn, response_id)

    assert again["lease_losses"] == 0


async def test_an_outage_of_postgresql_expires_no_lease(conn: AsyncConnection) -> None:
    """Within one lease time of the server's start no lease counts as run out."""
    [response_id] = await submitted(conn)
    await lease(conn, response_id)
    await make_overdue(conn, response_id)

    assert await lease(conn, response_id, lease_seconds=EVER_SECONDS) == []
    assert await pull(conn, lease_seconds=EVER_SECONDS) == []


async def test_after_a_restart_new_answers_are_leased_at_once(conn: AsyncConnection) -> None:
    """The guard is about leases: what was never leased need not wait."""
    ids = await submitted(conn, 2)

    assert len(await lease(conn, ids[0], lease_seconds=EVER_SECONDS)) == 1
    assert await pull(conn, lease_seconds=EVER_SECONDS) == ids[1:]


async def test_a_renewed_lease_lasts_from_now_on(conn: AsyncConnection) -> None:
    """Renewing moves the end of the lease and nothing else."""
    [response_id] = await submitted(conn)
    [held] = await lease(conn, response_id)
    before = await handoff_of(conn, response_id)

    renewed = await renew_leases(conn, [(held["handoff_id"], held["lease_token"])], lease_seconds=9000)

    assert renewed == {held["handoff_id"]}
    after = await handoff_of(conn, response_id)
    assert before is not None
    assert after is not None
    assert (after.pop("due_at") - before.pop("due_at")).total_seconds() >= 9000 - LEASE_SECONDS
    assert after == before


async def test_only_the_holder_renews(conn: AsyncConnection) -> None:
    """A lost, released, settled or invented lease is not renewed; the others of the batch are."""
    ids = await submitted(conn, 4)
    lost, released, settled, mine = await lease(conn, *ids)
    await make_overdue(conn, lost["response_id"])
    [holder] = await lease(conn, lost["response_id"], lease_seconds=SHORT_LEASE_SECONDS)
    await postpone_handoffs(conn, [release(released)])
    await conn.execute(
        text("DELETE FROM scoring_handoffs WHERE handoff_id = :id"), {"id": settled["handoff_id"]}
    )

    def named(leases: Sequence[dict[str, Any]]) -> list[tuple[int, Any]]:
        return [(held["handoff_id"], held["lease_token"]) for held in leases]

    assert await renew_leases(conn, named([lost, released, settled, mine]), lease_seconds=60) == {
        mine["handoff_id"]
    }
    assert await renew_leases(conn, [(mine["handoff_id"], uuid4())], lease_seconds=60) == frozenset()
    assert await renew_leases(conn, named([holder]), lease_seconds=60) == {holder["handoff_id"]}
    assert await renew_leases(conn, [], lease_seconds=60) == frozenset()


async def test_a_lease_that_ran_out_is_renewed_if_nobody_took_it(conn: AsyncConnection) -> None:
    """A worker that was too late, but not too late for anybody, goes on; no loss is counted."""
    [response_id] = await submitted(conn)
    [held] = await lease(conn, response_id)
    await make_overdue(conn, response_id)

    assert await renew_leases(conn, [(held["handoff_id"], held["lease_token"])], lease_seconds=60)
    assert await lease(conn, response_id, lease_seconds=SHORT_LEASE_SECONDS) == []


@pytest.mark.commits
async def test_leases_do_not_wait_for_the_disk(engine: AsyncEngine) -> None:
    """A lease's and a renewal's transaction commits asynchronously; the connection's next one does not."""
    [response_id] = await committed(engine, submitted)
    show = text("SHOW synchronous_commit")

    async with engine.connect() as conn:
        usual = (await conn.execute(show)).scalar_one()
        [held] = await lease(conn, response_id)
        assert (await conn.execute(show)).scalar_one() == "off"
        await conn.commit()
        assert (await conn.execute(show)).scalar_one() == usual
        await renew_leases(conn, [(held["handoff_id"], held["lease_token"])], lease_seconds=60)
        assert (await conn.execute(show)).scalar_one() == "off"
        await conn.commit()
        assert (await conn.execute(show)).scalar_one() == usual


@pytest.mark.commits
async def test_what_another_worker_is_leasing_is_his(engine: AsyncEngine) -> None:
    """Neither a message, a pull nor a renewal waits for a row that is locked."""
    ids = await committed(engine, partial(submitted, number=3))
    async with engine.connect() as other:
        [held] = await lease(other, ids[0])

        async with asyncio.timeout(5), engine.begin() as conn:
            assert [row["response_id"] for row in await lease(conn, *ids[:2])] == ids[1:2]
            assert await pull(conn) == ids[2:]
        await other.commit()
        await change_handoff(other, ids[0], last_error="being settled")
        async with asyncio.timeout(5), engine.begin() as conn:
            named = [(held["handoff_id"], held["lease_token"])]
            assert await renew_leases(conn, named, lease_seconds=60) == frozenset()


@pytest.mark.commits
@pytest.mark.parametrize("way", ["pull", "message"])
async def test_no_handoff_is_leased_twice(engine: AsyncEngine, way: str) -> None:
    """Many workers that take what they can at the same time share it without overlap, and leave nothing."""
    ids = await committed(engine, partial(submitted, number=300))

    async def worker() -> list[int]:
        taken: list[int] = []
        idle = 0
        while idle < 3:
            token = uuid4()
            options: dict[str, Any] = {"lease_token": token, "lease_seconds": LEASE_SECONDS, "limit": 7}
            work = (
                partial(pull_handoffs, lane="live", **options)
                if way == "pull"
                else partial(lease_handoffs, response_ids=ids, **options)
            )
            leases = await committed(engine, work)
            taken += [held["response_id"] for held in leases]
            idle = 0 if leases else idle + 1
        return taken

    taken = await asyncio.gather(*(worker() for _ in range(6)))

    assert sorted(response_id for some in taken for response_id in some) == ids


async def test_metadata_that_python_cannot_read_costs_no_lease(conn: AsyncConnection) -> None:
    """What was stored past our checks is left out; it takes neither its own lease nor its neighbours' with it."""
    await publish(conn)
    rows = await submit_responses(conn, [submission(answer_metadata={"a": 1}) for _ in range(3)])
    for response_id, document in (
        (rows[0]["response_id"], "[" * 2000 + "]" * 2000),
        (rows[1]["response_id"], "1e5000"),
    ):
        await conn.execute(
            text(
                "UPDATE assessment_responses SET answer_metadata = CAST(:document AS jsonb) WHERE response_id = :id"
            ),
            {"document": document, "id": response_id},
        )

    leases = await lease(conn, *(row["response_id"] for row in rows))

    assert [held["answer_metadata"] for held in leases] == [None, None, {"a": 1}]
