"""The renewer: keeps leases while answers are worked on, and no longer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from tests.producers.waiting import eventually
from tests.worker.scripted import (
    ScriptedScorer,
    change,
    in_background,
    read_handoffs,
    scored_once,
    submit_answers,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.producers.proxy import Proxy
    from worker.runtime import Runtime

pytestmark = pytest.mark.commits


async def test_a_renewal_is_for_the_whole_lease(
    runtime: Runtime, engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """Every renewal starts the lease anew, for all answers in one go."""
    ids = await submit_answers(engine, 3)
    scorer.hold()
    await runtime.intake.take(ids)
    await change(engine, *ids, due_at="now")

    assert await runtime.renewer.run_once() == 3

    rows = await read_handoffs(engine)
    assert all(590 < row["seconds_to_due"] <= 600 for row in rows.values())
    scorer.let_go()


async def test_with_nothing_in_hand_nothing_is_asked(
    make_runtime: Callable[..., Runtime], proxied_database_url: str, postgres_proxy: Proxy
) -> None:
    """An idle worker sends no renewals: it would not even notice an outage."""
    postgres_proxy.break_down()
    runtime = make_runtime(database_url=proxied_database_url)

    assert await runtime.renewer.run_once() == 0


async def test_a_lost_lease_is_not_renewed(
    runtime: Runtime, engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """Another worker has it: our renewal does not touch his lease."""
    [response_id] = await submit_answers(engine, 1)
    scorer.hold()
    await runtime.intake.take([response_id])
    theirs = uuid4()
    await change(engine, response_id, lease_token=theirs, due_at="now")

    assert await runtime.renewer.run_once() == 0

    row = (await read_handoffs(engine))[response_id]
    assert row["lease_token"] == theirs
    assert row["seconds_to_due"] <= 0
    scorer.let_go()


async def test_a_long_answer_keeps_its_lease(
    make_runtime: Callable[..., Runtime], engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """An answer that takes longer than a lease is scored once: no other worker ever finds it due."""
    one = make_runtime(lease_seconds=1, renew_seconds=0.1)
    other = make_runtime(lease_seconds=1, renew_seconds=0.1)
    ids = await submit_answers(engine, 2)
    scorer.hold()
    async with in_background(one.settler.run(), other.settler.run(), one.renewer.run()):
        await one.intake.take(ids)
        ends = asyncio.get_running_loop().time() + 1.3

        async def past_its_lease() -> bool:
            assert await other.intake.take(ids) == 0
            return asyncio.get_running_loop().time() > ends

        await eventually(past_its_lease)
        scorer.let_go()
        await eventually(lambda: scored_once(engine, ids))

    assert set(scorer.started.values()) == {1}


async def test_nobody_renews_beyond_answer_seconds(
    make_runtime: Callable[..., Runtime], engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """A worker that holds an answer for too long, stuck or not, loses it to the others."""
    runtime = make_runtime(answer_seconds=1)
    [response_id] = await submit_answers(engine, 1)
    scorer.hold()
    await runtime.intake.take([response_id])  # no settler runs: the result stays in this process
    assert await runtime.renewer.run_once() == 1

    async def given_up() -> bool:
        return await runtime.renewer.run_once() == 0

    await eventually(given_up)
    assert not runtime.pool.holds_nothing


async def test_first_settle_then_renew_then_lease(
    make_runtime: Callable[..., Runtime],
    engine: AsyncEngine,
    scorer: ScriptedScorer,
    proxied_database_url: str,
    postgres_proxy: Proxy,
) -> None:
    """After an outage nothing new is taken before finished scores are written and leases are kept."""
    runtime = make_runtime(database_url=proxied_database_url, renew_seconds=0.01)
    done, running, new = await submit_answers(engine, 3)
    await runtime.intake.take([done])
    await eventually(lambda: not scorer.running)
    scorer.hold()
    await runtime.intake.take([running])
    postgres_proxy.break_down()

    async with in_background(runtime.renewer.run()):
        await eventually(lambda: runtime.renewer.troubled)
        async with in_background(runtime.settler.run()):
            await eventually(lambda: runtime.settler.troubled)
            assert runtime.intake.allowance == 0
            assert await runtime.intake.take([new]) == 0
            postgres_proxy.refuses = False
            await eventually(lambda: not runtime.settler.troubled)
            await eventually(lambda: not runtime.renewer.troubled)
            assert await runtime.intake.take([new]) == 1
            scorer.let_go()
            await eventually(lambda: scored_once(engine, [done, running, new]))


async def test_finished_scores_are_written_before_leases_are_renewed(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While results wait for PostgreSQL, the renewer lets them go first."""
    asked: list[str] = []
    renewed: list[str] = []

    async def run_once() -> int:
        renewed.append("renewed")
        return 0

    def troubled(_: object) -> bool:
        asked.append("troubled?")
        return len(asked) <= 5

    monkeypatch.setattr(type(runtime.settler), "troubled", property(troubled))
    monkeypatch.setattr(runtime.renewer, "run_once", run_once)
    monkeypatch.setattr(runtime.renewer, "_renew_seconds", 0.001)

    async with in_background(runtime.renewer.run()):
        await eventually(lambda: bool(renewed))

    assert len(asked) > 5
