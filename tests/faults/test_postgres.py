"""PostgreSQL is killed, and its connections are cut, while everything works."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.conftest import LEASE_SECONDS, restart
from tests.faults.students import submitting
from tests.producers.waiting import eventually

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from producers import Producer
    from tests.faults.conftest import Site
    from tests.faults.processes import WorkerProcess
    from tests.faults.scorers import CallLog

    Start = Callable[..., Awaitable[WorkerProcess]]

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("published")]

CUTS = 150
# On average, between two cuts.
PAUSE_SECONDS = 0.01
# One of our connections, whichever the dice choose.
CUT_ONE = """
    SELECT pg_terminate_backend(pid) FROM (
        SELECT pid, row_number() OVER (ORDER BY backend_start, pid) - 1 AS number, count(*) OVER () AS all_of_them
        FROM pg_stat_activity WHERE application_name = 'assessment-scoring'
    ) AS ours WHERE number = floor(CAST(:luck AS double precision) * all_of_them)
"""
# Every lease runs out meanwhile.
OUTAGE_SECONDS = LEASE_SECONDS + 0.5
# Two workers with so many slots have all of these in hand.
HELD = 80


async def test_a_killed_postgres_costs_no_score(
    site: Site, start: Start, producer: Producer, calls: CallLog
) -> None:
    """Killed and away for longer than a lease, under load: finished scores wait for it and are not paid for again.

    Nor is anything counted against an answer: no attempt, no postponement, no lost lease.
    """
    workers = [await start(), await start()]
    async with submitting(producer) as students:
        await eventually(lambda: len(calls.ended) > HELD)
        calls.hold()
        await eventually(lambda: (calls.began - calls.ended).total() >= HELD)
        in_hand = calls.began - calls.ended
        # A crash forgets the leases of its last moments, and that costs a second call: not of these.
        await site.on_disk()

        await asyncio.to_thread(site.servers.postgres.kill)
        since = time.monotonic()
        calls.let_go()
        await eventually(lambda: not in_hand - calls.ended)
        await eventually(
            lambda: all(worker.logged("PostgreSQL is away", "scores wait") for worker in workers)
        )
        await eventually(lambda: time.monotonic() > since + OUTAGE_SECONDS)
        assert students.refusals
        await restart(site.servers.postgres)
        await site.engine.dispose()
        await students.stored_again(HELD)

    ids = students.response_ids
    await site.all_scored(ids)
    await site.assert_nothing_lost(ids)
    assert {response_id: calls.began[response_id] for response_id in in_hand} == dict.fromkeys(in_hand, 1)
    assert set((await site.counters()).values()) == {0}
    for worker in workers:
        await worker.stopped()


async def test_cut_connections_lose_nothing(
    site: Site, start: Start, producer: Producer, chance: random.Random
) -> None:
    """A hundred and fifty connections are cut at random: every acknowledged answer is scored once, no attempt is used up.

    A submit is refused with StorageUnavailableError or not at all, and succeeds when it is repeated with its key.
    """
    await start(scorer_seconds=0.01)
    await start(scorer_seconds=0.01)
    cut = 0

    async with submitting(producer) as students:
        await students.stored_again(HELD)
        while cut < CUTS:
            cut += len(await site.sql(CUT_ONE, luck=chance.random()))
            await asyncio.sleep(chance.expovariate(1 / PAUSE_SECONDS))

    ids = students.response_ids
    await site.all_scored(ids)
    await site.assert_nothing_lost(ids)
    assert (await site.counters())["attempts"] == 0
