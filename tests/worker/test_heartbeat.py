"""The heartbeat: says that this worker runs, and never disturbs it."""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING

import pytest

from storage.errors import NotMigratedError
from storage.workers import list_workers
from tests.producers.waiting import eventually
from tests.worker.scripted import ScriptedScorer, in_background, submit_answers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.producers.proxy import Proxy
    from worker.runtime import Runtime

pytestmark = pytest.mark.commits


async def test_a_worker_reports_itself(runtime: Runtime, engine: AsyncEngine, scorer: ScriptedScorer) -> None:
    """Host, process, slots and what is free now; one row however often it reports."""
    await runtime.heartbeat.run_once()
    scorer.hold()
    await runtime.intake.take(await submit_answers(engine, 3))

    await runtime.heartbeat.run_once()

    async with engine.connect() as conn:
        [row] = await list_workers(conn)
    assert (row["host"], row["pid"]) == (socket.gethostname(), os.getpid())
    assert (row["slots"], row["free_slots"], row["note"]) == (16, 13, None)
    scorer.let_go()


async def test_a_worker_says_why_it_takes_less(runtime: Runtime, engine: AsyncEngine) -> None:
    """The note is for the person who looks at the status."""
    for handoff_id in range(5):
        runtime.breaker.failed(handoff_id, "HTTP 503")

    await runtime.heartbeat.run_once()

    async with engine.connect() as conn:
        [row] = await list_workers(conn)
    assert (row["free_slots"], row["note"]) == (0, "breaker open")


async def test_a_worker_says_that_its_bell_is_out_of_order(runtime: Runtime, engine: AsyncEngine) -> None:
    """It works without Redis; a person should know all the same."""
    runtime.redis_is_away = lambda: True

    await runtime.heartbeat.run_once()

    async with engine.connect() as conn:
        [row] = await list_workers(conn)
    assert (row["free_slots"], row["note"]) == (16, "Redis is away")


async def test_a_worker_that_leaves_is_not_listed(runtime: Runtime, engine: AsyncEngine) -> None:
    """A clean stop is seen at once."""
    await runtime.heartbeat.run_once()
    await runtime.heartbeat.leave()

    async with engine.connect() as conn:
        assert await list_workers(conn) == []


async def test_an_outage_only_silences_it(
    make_runtime: Callable[..., Runtime],
    engine: AsyncEngine,
    proxied_database_url: str,
    postgres_proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It goes on by itself, logs nothing that the others log already, and leaving never fails."""
    monkeypatch.setattr("worker.heartbeat.PERIOD_SECONDS", 0.01)
    caplog.set_level(logging.DEBUG, "worker.heartbeat")
    runtime = make_runtime(database_url=proxied_database_url)
    postgres_proxy.break_down()
    async with in_background(runtime.heartbeat.run()):
        await eventually(lambda: caplog.records)
        await runtime.heartbeat.leave()
        postgres_proxy.refuses = False

        async def listed() -> bool:
            async with engine.connect() as conn:
                return len(await list_workers(conn)) == 1

        await eventually(listed)

    assert {record.levelname for record in caplog.records} == {"DEBUG"}


async def test_an_unmigrated_database_stops_the_start(
    make_runtime: Callable[..., Runtime], make_database: Callable[[], Awaitable[str]]
) -> None:
    """The first report tells a worker that the tables are missing, before it takes anything."""
    runtime = make_runtime(database_url=await make_database())

    with pytest.raises(NotMigratedError, match="scoring migrate"):
        await runtime.start()
    await runtime.close()
