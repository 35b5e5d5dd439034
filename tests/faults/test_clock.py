"""One machine's clock is an hour ahead or behind: nobody notices."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.databases import ROOT
from tests.faults.conftest import LEASE_SECONDS, unavailable
from tests.faults.students import submitting
from tests.producers.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from producers import Producer
    from tests.faults.conftest import Site
    from tests.faults.processes import WorkerProcess
    from tests.faults.scorers import CallLog

    Start = Callable[..., Awaitable[WorkerProcess]]

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("published", "_faketime")]

LIBRARIES = Path("/usr/lib")
FAKETIME = "*/faketime/libfaketime.so.1"
HOUR = 3600
# Of how much a process's clock may look right or an hour wrong.
TOLERANCE_SECONDS = HOUR / 2
# Longer than `eventually` waits: nobody sweeps during the test, what is scored was rung for.
NEVER_SWEEP = 60
ENOUGH = 50
SLOTS = 10

# A web process: submits, and says what time it thinks it is.
WEB_PROCESS = f"""
import asyncio, json, time
from producers import open_producer
from tests.factories import submission

async def main():
    async with open_producer() as producer:
        rows = await asyncio.gather(*(producer.submit(**submission()) for _ in range({ENOUGH})))
        await producer.claim(anonymous_token="nobody-answered-under-this", user_id=2)
    print(json.dumps({{"time": time.time(), "response_ids": [row["response_id"] for row in rows]}}))

asyncio.run(main())
"""


@pytest.fixture
def _faketime() -> None:
    if not list(LIBRARIES.glob(FAKETIME)):
        unavailable("libfaketime is missing: apt-get install faketime")


@pytest.fixture(params=[HOUR, -HOUR], ids=["ahead", "behind"])
def wrong_by(request: pytest.FixtureRequest) -> int:
    """So many seconds is a clock wrong."""
    return int(request.param)


def faked(wrong_by: int) -> tuple[str, ...]:
    """A command that runs another one, in its own place, as if the machine's clock were wrong.

    Only the time of day: what measures time spans goes on as it does when somebody sets the clock.
    """
    [library, *_] = LIBRARIES.glob(FAKETIME)
    return ("env", f"LD_PRELOAD={library}", f"FAKETIME={wrong_by:+d}", "DONT_FAKE_MONOTONIC=1")


def is_wrong(seen: float, wrong_by: int) -> bool:
    """Whether a time that was seen just now is wrong by as much as it should be."""
    return abs(seen - time.time() - wrong_by) < TOLERANCE_SECONDS


def clock_of(worker: WorkerProcess) -> float:
    """What time a worker thinks it is: the stamp of its last log line."""
    return datetime.fromisoformat(worker.records[-1]["timestamp"]).timestamp()


async def test_a_worker_with_a_wrong_clock_hears_the_bell(
    site: Site, start: Start, producer: Producer, calls: CallLog, wrong_by: int
) -> None:
    """It reads messages at once that a process with the right clock sent, however wrong its own is."""
    worker = await start(wrapper=faked(wrong_by), SWEEP_SECONDS=NEVER_SWEEP)
    assert is_wrong(clock_of(worker), wrong_by)

    async with submitting(producer) as students:
        await students.stored_again(ENOUGH)

    await eventually(lambda: site.scored(students.response_ids))
    await site.assert_nothing_lost(students.response_ids)
    assert set(calls.began.values()) == {1}
    assert set((await site.counters()).values()) == {0}
    await worker.stopped()


async def test_a_producer_with_a_wrong_clock_is_heard(
    site: Site, start: Start, calls: CallLog, wrong_by: int
) -> None:
    """Its messages are due at once, and its answers and claims are neither late nor early."""
    worker = await start(SWEEP_SECONDS=NEVER_SWEEP)

    process = await asyncio.create_subprocess_exec(
        *(*faked(wrong_by), sys.executable, "-c", WEB_PROCESS),
        cwd=ROOT,
        env=os.environ | {"SCORING_DATABASE_URL": site.database_url, "SCORING_REDIS_URL": site.redis_url},
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    said = json.loads(printed)

    assert is_wrong(said["time"], wrong_by)
    await eventually(lambda: site.scored(said["response_ids"]))
    await eventually(lambda: worker.logged("claim was applied"))
    await site.assert_nothing_lost(said["response_ids"])
    assert set(calls.began.values()) == {1}
    await worker.stopped()


async def test_leases_last_as_long_as_they_should(
    site: Site, start: Start, producer: Producer, calls: CallLog, wrong_by: int
) -> None:
    """What a worker with a wrong clock holds and renews nobody takes over; what it leaves by dying another takes."""
    calls.hold()
    wrong = await start(wrapper=faked(wrong_by), SLOTS=SLOTS)
    async with submitting(producer, students=1) as students:
        await eventually(lambda: calls.began.total() == SLOTS)
        held = set(calls.began)
    right = await start(SLOTS=len(students.stored))
    await eventually(lambda: calls.began.total() == len(students.stored))
    since = time.monotonic()
    # The right one sweeps all the time and has room for what the wrong one holds; both renew several times.
    await eventually(lambda: time.monotonic() > since + LEASE_SECONDS + 1)
    assert set(calls.began.values()) == {1}

    await wrong.killed()
    calls.let_go()

    await site.all_scored(students.response_ids)
    await site.assert_nothing_lost(students.response_ids)
    assert {response_id for response_id, times in calls.began.items() if times > 1} == held
    assert await site.counters() == {
        "attempts": 0,
        "postponements": 0,
        "suspicions": 0,
        "lease_losses": SLOTS,
    }
    assert "settle_too_late" not in await right.stopped()
