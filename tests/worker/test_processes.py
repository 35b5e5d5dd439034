"""Worker processes as ops start, stop and lose them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from producers.bell import Bell
from producers.contract import QUEUE_NAME, Drain, ScoreResponses, job_id
from storage.tables import scores
from storage.workers import list_workers
from tests.databases import ROOT
from tests.producers.waiting import eventually
from tests.worker.scripted import read_handoffs, scored_once, submit_answers

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from redis.asyncio import Redis
    from sqlalchemy.ext.asyncio import AsyncEngine

    Start = Callable[..., AbstractAsyncContextManager[Process]]

pytestmark = [pytest.mark.commits, pytest.mark.processes]

PROGRAM = """
import asyncio, logging
from worker.main import run_worker
from worker.settings import ScoringSettings
logging.basicConfig(level="INFO")
asyncio.run(run_worker(ScoringSettings.from_environment()))
"""
WORKER = ("-c", PROGRAM)
ARQ = ("-m", "arq", "worker.main.WorkerSettings")


@pytest.fixture
def start(database_url: str, redis_url: str, engine: AsyncEngine) -> Start:
    """Starts a worker as a process of its own, and waits until it reports itself."""

    @asynccontextmanager
    async def run(*command: str, scorer: str = "lexical", **variables: str) -> AsyncIterator[Process]:
        given = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "SCORER": scorer,
            "SLOTS": "16",
            "LEASE_SECONDS": "1",
            "RENEW_SECONDS": "0.4",
            "SWEEP_SECONDS": "0.2",
        }
        environment = {f"SCORING_{name}": value for name, value in (given | variables).items()}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *(command or WORKER)),
            cwd=ROOT,
            env=os.environ | environment,
            stdout=PIPE,
            stderr=PIPE,
        )

        async def ready() -> bool:
            assert process.returncode is None, (await process.communicate())[1].decode()
            async with engine.connect() as conn:
                return process.pid in {row["pid"] for row in await list_workers(conn)}

        try:
            await eventually(ready)
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()

    return run


async def leased(engine: AsyncEngine) -> int:
    """How many answers are in a worker's hands."""
    return sum(row["lease_token"] is not None for row in (await read_handoffs(engine)).values())


async def stopped(process: Process, signal_number: signal.Signals) -> str:
    """Send a signal, wait for a clean end, and return what was logged."""
    process.send_signal(signal_number)
    _, logged = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, logged.decode()
    return logged.decode()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
async def test_a_worker_told_to_stop_hands_back_and_exits_0(
    start: Start, engine: AsyncEngine, signal_number: signal.Signals
) -> None:
    """What is not finished within the grace time is due at once for the others, with nothing counted."""
    ids = await submit_answers(engine, 10)
    async with start(
        scorer="tests.worker.foreign:hanging", GRACE_SECONDS="0.1", LEASE_SECONDS="600", RENEW_SECONDS="10"
    ) as process:

        async def all_leased() -> bool:
            return await leased(engine) == len(ids)

        await eventually(all_leased)

        logged = await stopped(process, signal_number)

    rows = (await read_handoffs(engine)).values()
    assert len(rows) == 10
    for row in rows:
        assert row["lease_token"] is None
        assert row["seconds_to_due"] <= 0
        assert (row["attempts"], row["postponements"], row["lease_losses"], row["suspicions"]) == (0, 0, 0, 0)
    assert "Traceback" not in logged
    async with engine.connect() as conn:
        assert await list_workers(conn) == []


async def test_a_killed_worker_s_answers_are_scored_by_another(start: Start, engine: AsyncEngine) -> None:
    """SIGKILL with every slot full: after the lease another worker finishes all, one score each."""
    ids = await submit_answers(engine, 24)
    async with start(scorer="tests.worker.foreign:hanging") as process:

        async def full() -> bool:
            return await leased(engine) == 16

        await eventually(full)
        process.kill()
        await process.wait()
    assert await leased(engine) == 16

    async with start() as other:
        await eventually(lambda: scored_once(engine, ids))
        await stopped(other, signal.SIGTERM)


async def test_two_workers_share_a_backlog(start: Start, engine: AsyncEngine, redis: Redis) -> None:
    """Both take part, and every answer is scored exactly once and paid for once."""
    async with (
        start(scorer="tests.worker.foreign:slow", LEASE_SECONDS="60", RENEW_SECONDS="5") as one,
        start(scorer="tests.worker.foreign:slow", LEASE_SECONDS="60", RENEW_SECONDS="5") as other,
    ):
        ids = await submit_answers(engine, 300)
        await Bell(redis).ring([ScoreResponses(response_ids=tuple(ids))])
        await eventually(lambda: scored_once(engine, ids))
        logged = await stopped(one, signal.SIGTERM) + await stopped(other, signal.SIGTERM)

    async with engine.connect() as conn:
        models = set((await conn.execute(select(scores.c.model_id))).scalars())
    assert models == {f"slow-{process.pid}" for process in (one, other)}
    assert "too late" not in logged


async def test_arq_s_own_command_scores_and_stops(start: Start, engine: AsyncEngine, redis: Redis) -> None:
    """``arq worker.main.WorkerSettings`` scores what is announced and what is found, and stops when told."""
    async with start(*ARQ) as process:
        announced = await submit_answers(engine, 20)
        await Bell(redis).ring([ScoreResponses(response_ids=tuple(announced))])
        await eventually(lambda: scored_once(engine, announced))
        found = await submit_answers(engine, 5)
        await eventually(lambda: scored_once(engine, announced + found))

        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), 30)

    async with engine.connect() as conn:
        assert await list_workers(conn) == []
    # A sweep may have rung once more, for whichever worker comes next.
    left = {member.decode() for member in await redis.zrange(QUEUE_NAME, 0, -1)}
    assert left <= {job_id(Drain(lane="live"))}
