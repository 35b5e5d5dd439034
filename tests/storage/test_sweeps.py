from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from storage import submit_responses
from storage.leases import BURY_AFTER_LOSSES, SUSPECT_AFTER_LOSSES
from storage.sweeps import overdue, revive_missed
from tests.factories import (
    LEASE_SECONDS,
    SHORT_LEASE_SECONDS,
    bury,
    change_handoff,
    handoff_of,
    lease,
    make_overdue,
    publish,
    submission,
    submit,
)
from tests.races import committed

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

OVERDUE_SECONDS = 30.0
EVER_SECONDS = 1e9


async def ask(conn: AsyncConnection, *, lease_seconds: float = SHORT_LEASE_SECONDS) -> frozenset[str]:
    return await overdue(conn, lease_seconds=lease_seconds, overdue_seconds=OVERDUE_SECONDS)


async def submitted(conn: AsyncConnection, **changes: Any) -> int:
    await publish(conn)
    return int((await submit(conn, **changes))["response_id"])


async def missed(conn: AsyncConnection, number: int, **changes: Any) -> list[int]:
    """Answers whose handoffs wait as unpublished, because nobody revived them."""
    return [row["response_id"] for row in await submit_responses(conn, [submission(**changes)] * number)]


async def publish_unnoticed(conn: AsyncConnection, **changes: Any) -> str:
    """Publish as if the submits that wait for it had not been committed yet."""
    await conn.execute(
        text("CREATE TEMPORARY TABLE waiting ON COMMIT DROP AS SELECT * FROM scoring_handoffs")
    )
    digest = await publish(conn, **changes)
    await conn.execute(
        text(
            "UPDATE scoring_handoffs AS h SET question_digest = waiting.question_digest, due_at = waiting.due_at"
            " FROM waiting WHERE h.handoff_id = waiting.handoff_id"
        )
    )
    await conn.execute(text("DROP TABLE waiting"))
    return digest


@pytest.mark.parametrize("lane", ["live", "bulk"])
async def test_what_nobody_took_is_overdue(conn: AsyncConnection, lane: str) -> None:
    """Only after the given time: what is due since a moment ago is on its way by message."""
    response_id = await submitted(conn)
    await change_handoff(conn, response_id, lane=lane)
    assert await ask(conn) == frozenset()

    await make_overdue(conn, response_id)

    assert await ask(conn) == {lane}
    assert await ask(conn, lease_seconds=EVER_SECONDS) == {lane}


async def test_what_has_its_time_is_not_overdue(conn: AsyncConnection) -> None:
    """Leased, postponed, dead and unpublished answers ring no bell, and neither does an empty table."""
    assert await ask(conn) == frozenset()
    await submit(conn, question_id="unheard-of")
    await lease(conn, await submitted(conn))
    await bury(conn, await submitted(conn))
    postponed = await submitted(conn)
    await change_handoff(conn, postponed, due_at=text("statement_timestamp() + interval '1 minute'"))

    assert await ask(conn) == frozenset()


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (1, "live"),
        (SUSPECT_AFTER_LOSSES - 1, "live"),
        (SUSPECT_AFTER_LOSSES, "suspect"),
        (BURY_AFTER_LOSSES - 1, "suspect"),
        (BURY_AFTER_LOSSES, "lost"),
    ],
)
async def test_a_lease_that_ran_out_is_overdue(conn: AsyncConnection, losses: int, expected: str) -> None:
    """What was lost often has a name of its own; after a restart of PostgreSQL all of it waits a lease time."""
    response_id = await submitted(conn)
    await lease(conn, response_id)
    await change_handoff(conn, response_id, lease_losses=losses - 1)
    await make_overdue(conn, response_id)

    assert await ask(conn) == {expected}
    assert await ask(conn, lease_seconds=EVER_SECONDS) == frozenset()


async def test_all_that_is_overdue_is_told_at_once(conn: AsyncConnection) -> None:
    """One question, up to four answers."""
    for losses, lane in (
        (0, "live"),
        (0, "bulk"),
        (SUSPECT_AFTER_LOSSES, "bulk"),
        (BURY_AFTER_LOSSES, "live"),
    ):
        response_id = await submitted(conn)
        await change_handoff(conn, response_id, lease_losses=losses, lane=lane)
        await make_overdue(conn, response_id)

    assert await ask(conn) == {"live", "bulk", "suspect", "lost"}


async def test_asking_writes_nothing(conn: AsyncConnection) -> None:
    """A backlog of a million costs a sweep nothing: it moves no row."""
    response_id = await submitted(conn)
    await make_overdue(conn, response_id)
    before = await handoff_of(conn, response_id)

    await ask(conn)

    assert await handoff_of(conn, response_id) == before


@pytest.mark.commits
async def test_one_worker_at_a_time_asks(engine: AsyncEngine) -> None:
    """While one transaction asks, another hears of nothing, and does not wait; the turn ends with the transaction."""
    response_id = await committed(engine, submitted)
    await committed(engine, partial(make_overdue, response_id=response_id))

    async with engine.connect() as first, engine.connect() as second:
        assert await ask(first) == {"live"}
        assert await ask(second) == frozenset()
        await first.rollback()
        assert await ask(second) == {"live"}


async def test_missed_publications_are_mended(conn: AsyncConnection) -> None:
    """Handoffs whose question exists become due against what is current; the others go on waiting."""
    [ours] = await missed(conn, 1)
    [other] = await missed(conn, 1, question_id="other")
    await publish_unnoticed(conn, rubric="old")
    digest = await publish_unnoticed(conn, rubric="new")

    assert await revive_missed(conn) == (1, 0)

    [held] = await lease(conn, ours, other)
    assert (held["response_id"], held["question_digest"]) == (ours, digest)
    assert await revive_missed(conn) == (0, 0)


async def test_the_dead_are_not_revived(conn: AsyncConnection) -> None:
    """A question that appears brings back only what waited for it."""
    [dead] = await missed(conn, 1)
    await publish_unnoticed(conn)
    await change_handoff(conn, dead, state="dead", last_error="hopeless")

    assert await revive_missed(conn) == (0, 0)


async def test_reviving_looks_at_a_few_at_a_time(conn: AsyncConnection) -> None:
    """Each call goes on where the one before stopped, until the end is reached: then it begins anew."""
    await missed(conn, 3, question_id="forgotten")
    await missed(conn, 2)
    await missed(conn, 2, question_id="forgotten")
    await publish_unnoticed(conn)
    after, revived, calls = 0, 0, 0

    while True:
        found, after = await revive_missed(conn, after_handoff_id=after, limit=2)
        revived += found
        calls += 1
        if after == 0:
            break

    assert (revived, calls) == (2, 4)


@pytest.mark.commits
async def test_reviving_does_not_wait(engine: AsyncEngine) -> None:
    """A handoff that somebody else is changing is left for the next sweep."""
    first, second = await committed(engine, partial(missed, number=2))
    await committed(engine, publish_unnoticed)

    async with engine.connect() as other:
        await change_handoff(other, first, last_error="busy")
        assert await committed(engine, revive_missed) == (1, 0)
        await other.rollback()

    assert await committed(engine, revive_missed) == (1, 0)
    leases = await committed(engine, lambda conn: lease(conn, first, second, lease_seconds=LEASE_SECONDS))
    assert len(leases) == 2
