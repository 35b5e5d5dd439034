"""The bulk lane leaves slots, processor time and the provider's permits to live answers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from producers.contract import Drain
from storage.leases import lease_handoffs
from storage.settlements import Settlement, settle_handoffs
from tests.producers.waiting import eventually, settled
from tests.worker.scripted import ScriptedScorer, in_background, scored_once, submit_answers
from worker.intake import BULK_PIECE
from worker.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from worker.runtime import Runtime

pytestmark = pytest.mark.commits


class Busy(Pace):
    """A thread that is busy until it is told otherwise."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.is_busy = True
        self.pieces = 0

    def pause_seconds(self) -> float:
        return 0.01 if self.is_busy and self.pieces else 0.0

    def begin(self) -> None:
        self.pieces += 1


async def test_bulk_comes_in_pieces(
    make_runtime: Callable[..., Runtime], engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """However many slots are free, one piece at a time: between two of them a live answer gets its turn."""
    runtime = make_runtime(slots=200)
    runtime.intake._bulk_pace = busy = Busy()
    scorer.hold()
    ids = await submit_answers(engine, 5 * BULK_PIECE, lane="bulk")
    async with in_background(runtime.settler.run(), runtime.intake.run()):
        runtime.intake.more("bulk")
        await eventually(lambda: len(scorer.running) == BULK_PIECE)
        for _ in range(5):
            runtime.intake.changed()
            await settled()
        assert (busy.pieces, runtime.pool.in_lane("bulk")) == (1, BULK_PIECE), "the next piece waits"

        [live] = await submit_answers(engine, 1)
        assert await runtime.intake.take([live]) == 1, "and a live answer does not"
        busy.is_busy = False
        await eventually(lambda: len(scorer.running) == len(ids) + 1)
        scorer.let_go()
        await eventually(lambda: scored_once(engine, [*ids, live]))
    assert busy.pieces >= 5


async def test_rate_limits_hold_up_nothing_but_the_bulk_lane(
    make_runtime: Callable[..., Runtime], engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """A rescore uses up what it may of the provider's limit; the next live answer is taken all the same."""
    runtime = make_runtime(slots=400, requests_per_minute=600)
    scorer.hold()
    # More than fits in two windows: one may end while the bulk lane takes its part of it.
    await submit_answers(engine, 300, lane="bulk")
    async with in_background(runtime.settler.run(), runtime.intake.run()):
        runtime.intake.more("bulk")
        await eventually(lambda: len(scorer.running) >= 80 and runtime.rate_limits.pause_seconds("bulk"))
        assert len(scorer.running) < 300
        assert not runtime.rate_limits.pause_seconds("live")
        [live] = await submit_answers(engine, 1)

        assert await runtime.intake.take([live]) == 1
        scorer.let_go()


async def test_a_bell_that_finds_no_room_rings_on(
    runtime: Runtime, engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """A full worker that has read the bell must not be the only one that heard it."""
    rung: list[Drain] = []
    runtime.intake._ring = rung.append
    scorer.hold()
    runtime.intake.rung_for("live")
    assert rung == []
    await runtime.intake.take(await submit_answers(engine, runtime.pool.slots))

    runtime.intake.rung_for("live")
    runtime.intake.rung_for("bulk")

    assert rung == [Drain(lane="live")]
    scorer.let_go()


async def test_a_lease_that_comes_after_its_time_is_not_begun_with(
    make_runtime: Callable[..., Runtime],
    engine: AsyncEngine,
    scorer: ScriptedScorer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Frozen between its lease and its first step, a worker wakes up when others have scored and paid."""
    runtime = make_runtime(lease_seconds=1)
    [response_id] = await submit_answers(engine, 1)

    async def frozen(conn: AsyncConnection, **given: Any) -> list[dict[str, Any]]:
        rows = await lease_handoffs(conn, **given)
        async with engine.begin() as other:
            score = Settlement(
                rows[0]["handoff_id"], rows[0]["created_at"], "another worker", "1", {"overall_score": 1.0}
            )
            await settle_handoffs(other, [score])
        monkeypatch.setattr("worker.leasing.time.monotonic", lambda now=time.monotonic: now() + 2)
        return rows

    monkeypatch.setattr("worker.intake.lease_handoffs", frozen)
    async with in_background(runtime.settler.run()):
        await runtime.intake.take([response_id])
        await eventually(lambda: runtime.pool.holds_nothing)

    assert not scorer.started
    assert await scored_once(engine, [response_id])
