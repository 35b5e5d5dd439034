"""Suspects: answers that may be what kills their workers are leased in groups, which shrink with every loss."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import text, update

from storage import submit_responses
from storage.dead import list_dead
from storage.leases import (
    BURY_AFTER_LOSSES,
    GROUPS_SHRINK_BY,
    SUSPECT_AFTER_LOSSES,
    bury_lost,
    pull_handoffs,
    pull_suspects,
    suspect_waits,
)
from storage.settlements import postpone_handoffs
from storage.tables import handoffs
from tests.factories import (
    LEASE_SECONDS,
    SHORT_LEASE_SECONDS,
    handoff_of,
    lease,
    publish,
    release,
    submission,
)
from tests.races import committed

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

# Longer than any server has been up: no lease counts as run out.
EVER_SECONDS = 1e9
# So short that what was leased a moment ago has lost its lease again.
NO_SECONDS = 1e-6
# As many as ops may set, see worker.settings.
MOST_SLOTS = 10_000
LEVELS = range(SUSPECT_AFTER_LOSSES, BURY_AFTER_LOSSES)


def group_size(slots: int, losses: int) -> int:
    """A quarter of the slots for each loss beyond the second, but one at least."""
    return max(1, slots // int(4 ** (losses - 2)))


async def suspected(conn: AsyncConnection, losses: int, number: int = 1, *, minutes: int = 1) -> list[int]:
    """Responses whose handoffs lost so many leases, the last of which ran out so many minutes ago."""
    await publish(conn)
    ids = [int(row["response_id"]) for row in await submit_responses(conn, [submission()] * number)]
    await conn.execute(
        update(handoffs)
        .where(handoffs.c.response_id.in_(ids))
        .values(
            lease_token=uuid4(),
            leased_at=text("statement_timestamp()"),
            lease_losses=losses - 1,
            due_at=text(f"statement_timestamp() - interval '{minutes} minutes'"),
        )
    )
    return ids


async def pull(conn: AsyncConnection, **changes: Any) -> list[dict[str, Any]]:
    """Pull a group, as a worker with a hundred slots does."""
    options: dict[str, Any] = {"slots": 100, "lease_seconds": SHORT_LEASE_SECONDS, "limit": MOST_SLOTS}
    return await pull_suspects(conn, lease_token=uuid4(), **options | changes)


def responses(leases: list[dict[str, Any]]) -> list[int]:
    return sorted(held["response_id"] for held in leases)


async def test_only_who_asks_for_suspects_gets_them(conn: AsyncConnection) -> None:
    """From the third loss on neither a message nor a pull takes an answer."""
    [innocent] = await suspected(conn, SUSPECT_AFTER_LOSSES - 1)
    [first] = await suspected(conn, SUSPECT_AFTER_LOSSES)
    [second] = await suspected(conn, BURY_AFTER_LOSSES - 1)

    leases = await lease(conn, innocent, first, second, lease_seconds=SHORT_LEASE_SECONDS)
    pulled = await pull_handoffs(
        conn, lane="live", lease_token=uuid4(), lease_seconds=SHORT_LEASE_SECONDS, limit=10
    )

    assert [(held["response_id"], held["lease_losses"]) for held in leases] == [
        (innocent, SUSPECT_AFTER_LOSSES - 1)
    ]
    assert pulled == []
    assert await suspect_waits(conn, lease_seconds=SHORT_LEASE_SECONDS)


@pytest.mark.parametrize("losses", LEVELS)
async def test_a_group_shrinks_with_its_losses(conn: AsyncConnection, losses: int) -> None:
    """Those that have been due for longest go first, a quarter as many after each loss; each loss is counted."""
    slots = 1024
    await suspected(conn, losses, 150)
    oldest = await suspected(conn, losses, 150, minutes=2)
    size = group_size(slots, losses)

    leases = await pull(conn, slots=slots)

    assert len(leases) == size
    assert {held["lease_losses"] for held in leases} == {losses}
    taken = set(responses(leases))
    assert taken <= set(oldest) or taken >= set(oldest)


@pytest.mark.parametrize("slots", [1, 3, 16, 100, 2000, MOST_SLOTS])
async def test_before_its_last_loss_a_suspect_is_alone(conn: AsyncConnection, slots: int) -> None:
    """However many slots a worker has: so only what kills its worker alone is buried, and no innocent neighbour."""
    await suspected(conn, BURY_AFTER_LOSSES - 1, 3)

    assert len(await pull(conn, slots=slots)) == 1


async def test_one_group_has_the_same_losses(conn: AsyncConnection) -> None:
    """The one that has been due for longest says which; the others wait for their own group."""
    once_more = await suspected(conn, SUSPECT_AFTER_LOSSES + 1, 3, minutes=2)
    oldest = await suspected(conn, SUSPECT_AFTER_LOSSES, minutes=3)
    youngest = await suspected(conn, SUSPECT_AFTER_LOSSES, 2)

    groups = [responses(await pull(conn)) for _ in range(3)]

    assert groups == [oldest + youngest, once_more, []]


async def test_neighbours_are_cleared_group_by_group(conn: AsyncConnection) -> None:
    """One of two thousand kills its worker each time: it alone is left, after few groups and nine losses."""
    slots = 2000
    ids = await suspected(conn, SUSPECT_AFTER_LOSSES, slots)
    poison = ids[777]
    sizes: dict[int, list[int]] = {}

    while group := await pull(conn, slots=slots, lease_seconds=NO_SECONDS):
        sizes.setdefault(group[0]["lease_losses"], []).append(len(group))
        if poison not in responses(group):
            scored = [held["response_id"] for held in group]
            await conn.execute(handoffs.delete().where(handoffs.c.response_id.in_(scored)))

    assert {losses: max(of_level) for losses, of_level in sizes.items()} == {
        losses: group_size(slots, losses) for losses in LEVELS
    }
    # Each loss is followed by as many groups as the lost one divides into: four, or five where a rest remains.
    assert all(len(of_level) <= GROUPS_SHRINK_BY + 1 for of_level in list(sizes.values())[:4]), sizes
    [lost] = await bury_lost(conn, lease_seconds=NO_SECONDS)
    assert lost["response_id"] == poison
    assert not await suspect_waits(conn, lease_seconds=NO_SECONDS)


async def test_no_more_than_the_limit_is_taken(conn: AsyncConnection) -> None:
    """A worker that may take less than a group, because its breaker is open, takes less; none is none."""
    await suspected(conn, SUSPECT_AFTER_LOSSES, 10)

    assert await pull(conn, limit=0) == []
    assert len(await pull(conn, limit=1)) == 1
    assert len(await pull(conn, slots=1)) == 1
    assert len(await pull(conn)) == 8


async def test_a_suspect_stays_one_after_a_release(conn: AsyncConnection) -> None:
    """A postponement clears no suspicion: only a score, or a person, does."""
    [response_id] = await suspected(conn, SUSPECT_AFTER_LOSSES)
    [held] = await pull(conn)
    await postpone_handoffs(conn, [release(held)])

    assert await lease(conn, response_id) == []
    [again] = await pull(conn)
    assert again["lease_losses"] == SUSPECT_AFTER_LOSSES


async def test_nothing_is_suspected_without_a_reason(conn: AsyncConnection) -> None:
    """Fresh, leased and twice lost answers are no suspects."""
    await publish(conn)
    rows = await submit_responses(conn, [submission()] * 2)
    await lease(conn, rows[0]["response_id"])
    await suspected(conn, SUSPECT_AFTER_LOSSES - 1)

    assert await pull(conn) == []
    assert not await suspect_waits(conn, lease_seconds=SHORT_LEASE_SECONDS)


@pytest.mark.parametrize("losses", [SUSPECT_AFTER_LOSSES, BURY_AFTER_LOSSES])
async def test_an_outage_of_postgresql_makes_no_suspect(conn: AsyncConnection, losses: int) -> None:
    """Within one lease time of the server's start no lease counts as run out, and nothing is buried."""
    await suspected(conn, losses)

    assert await pull(conn, lease_seconds=EVER_SECONDS) == []
    assert await bury_lost(conn, lease_seconds=EVER_SECONDS) == []
    assert not await suspect_waits(conn, lease_seconds=EVER_SECONDS)


async def test_ten_losses_bury_an_answer(conn: AsyncConnection) -> None:
    """It is dead with a reason, no attempt is used up, and nine losses are not enough."""
    [spared] = await suspected(conn, BURY_AFTER_LOSSES - 1)
    [lost] = await suspected(conn, BURY_AFTER_LOSSES)

    assert responses(await pull(conn, lease_seconds=LEASE_SECONDS / 1e4)) == [spared]
    assert await pull(conn) == []
    buried = await bury_lost(conn, lease_seconds=SHORT_LEASE_SECONDS)

    assert [row["response_id"] for row in buried] == [lost]
    [dead] = await list_dead(conn)
    assert (dead["response_id"], dead["attempts"], dead["lease_losses"]) == (lost, 0, BURY_AFTER_LOSSES)
    assert "10 times" in dead["last_error"]
    assert "the last time with no other answer in hand" in dead["last_error"]
    handoff = await handoff_of(conn, spared)
    assert handoff is not None
    assert handoff["state"] == "open"


@pytest.mark.commits
async def test_workers_share_the_suspects(engine: AsyncEngine) -> None:
    """While one worker is taking a group, the next takes another: it neither waits nor finds nothing."""
    await committed(engine, lambda conn: suspected(conn, SUSPECT_AFTER_LOSSES, 40, minutes=2))
    [other_level] = await committed(engine, lambda conn: suspected(conn, SUSPECT_AFTER_LOSSES + 2))

    async with engine.connect() as first, engine.connect() as second, engine.connect() as third:
        async with asyncio.timeout(5):
            groups = [responses(await pull(conn)) for conn in (first, second, third)]

    assert [len(group) for group in groups] == [25, 15, 1]
    assert groups[2] == [other_level]
    assert not set(groups[0]) & set(groups[1])
