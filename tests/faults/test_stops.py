"""Workers are stopped, replaced and killed while all their slots are full."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

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

SLOTS = 20
# Three workers with so few slots are slower than the students: all are full all the time, and messages wait.
FEW_SLOTS, SCORER_SECONDS, PAUSE_SECONDS = 5, 0.1, 0.05
# What stays with a worker that is gone is due again only after the test.
ENDLESS_LEASE_SECONDS = 3600
KILLS = 20
SEATS = 4
# On average, from the start of a worker to its death: most die with answers in hand, some finish many before.
LIFE_SECONDS = 0.5
# Students bring more answers in this time than one worker has slots.
KILLED_SCORER_SECONDS = 0.2


async def test_a_stop_under_full_load_leaves_nothing_leased(
    site: Site, start: Start, producer: Producer, calls: CallLog
) -> None:
    """SIGTERM with full slots and messages waiting: what is finished is written, the rest is due at once."""
    worker = await start(SLOTS=SLOTS, GRACE_SECONDS=1, LEASE_SECONDS=ENDLESS_LEASE_SECONDS)
    async with submitting(producer) as students:
        await eventually(lambda: calls.ended.total() > 2 * SLOTS)
        calls.hold()
        await eventually(lambda: (calls.began - calls.ended).total() == SLOTS)
        await students.stored_again(SLOTS)

        worker.told_to_stop()
        did = await worker.ended()

    scores = {row[0] for row in await site.sql("SELECT response_id FROM assessment_scores")}
    assert scores == set(calls.ended)
    assert did["settle"] == len(scores)
    assert did["handback"] == SLOTS
    waiting = await site.sql("SELECT lease_token, due_at <= clock_timestamp() FROM scoring_handoffs")
    assert waiting == [(None, True)] * (len(students.stored) - len(scores))
    assert set((await site.counters()).values()) == {0}

    calls.let_go()
    await start()
    await site.all_scored(students.response_ids)
    await site.assert_nothing_lost(students.response_ids)


async def test_a_rolling_restart_costs_nothing(
    site: Site, start: Start, producer: Producer, calls: CallLog
) -> None:
    """Three workers under load are replaced one by one: no answer waits for a lease or is paid for twice."""
    variables = {
        "scorer_seconds": SCORER_SECONDS,
        "SLOTS": FEW_SLOTS,
        "LEASE_SECONDS": ENDLESS_LEASE_SECONDS,
    }
    fleet = await asyncio.gather(*(start(**variables) for _ in range(3)))
    async with submitting(producer, pause_seconds=PAUSE_SECONDS) as students:
        for worker in fleet:
            await students.stored_again(SLOTS)
            successor = await start(**variables)
            did = await worker.stopped()
            assert did.get("handback", 0) == 0
            assert did["settle"] > 0
            assert "settle_too_late" not in did
            assert successor.process.returncode is None

    await site.all_scored(students.response_ids)
    await site.assert_nothing_lost(students.response_ids)
    assert set((await site.counters()).values()) == {0}
    assert calls.began == dict.fromkeys(students.response_ids, 1)


async def test_kills_lose_nothing(
    site: Site, start: Start, producer: Producer, calls: CallLog, chance: random.Random
) -> None:
    """Workers are killed again and again with dozens of answers in hand: each response gets exactly one score."""

    async def seat(lives: list[float]) -> WorkerProcess:
        """One worker after the other lives for so many seconds; the last one stays."""
        for seconds in lives:
            worker = await start(scorer_seconds=KILLED_SCORER_SECONDS, LEASE_SECONDS=1)
            await asyncio.sleep(seconds)
            await worker.killed()
        return await start(LEASE_SECONDS=1)

    lives = [[chance.expovariate(1 / LIFE_SECONDS) for _ in range(KILLS // SEATS)] for _ in range(SEATS)]
    async with submitting(producer, pause_seconds=PAUSE_SECONDS) as students:
        await asyncio.gather(*map(seat, lives))
    unfinished = calls.began - calls.ended
    assert unfinished.total() > KILLS

    await site.all_scored(students.response_ids)
    await site.assert_nothing_lost(students.response_ids)
    counters = await site.counters()
    assert counters["attempts"] == 0
    assert counters["lease_losses"] >= unfinished.total()
