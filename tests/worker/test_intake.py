"""The intake: takes what there is room for, live before bulk, and loses no lease."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import event

from tests.producers.waiting import eventually, settled
from tests.worker.conftest import SLOTS
from tests.worker.scripted import (
    ScriptedScorer,
    change,
    good_score,
    in_background,
    read_handoffs,
    scored_once,
    submit_answers,
)
from worker.intake import BULK_SHARE
from worker.scorers.outcomes import ProviderTrouble

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from producers.contract import Drain
    from tests.producers.proxy import Proxy
    from worker.runtime import Runtime
    from worker.scorers.protocol import Answer, Score

pytestmark = pytest.mark.commits


@pytest.fixture
def rung(runtime: Runtime) -> list[Drain]:
    """What the intake rang for, instead of Redis."""
    drains: list[Drain] = []
    runtime.intake._ring = drains.append
    return drains


def open_breaker(runtime: Runtime) -> None:
    """Let the provider be in trouble."""
    for handoff_id in range(-5, 0):
        runtime.breaker.failed(handoff_id, "503")
    assert runtime.breaker.is_open


async def test_a_message_is_leased_and_scored(
    runtime: Runtime, engine: AsyncEngine, rung: list[Drain]
) -> None:
    """What fits is taken at once, and no bell is rung for others."""
    ids = await submit_answers(engine, 5)

    assert await runtime.intake.take(ids) == 5

    await eventually(lambda: scored_once(engine, ids))
    assert not rung


async def test_a_message_that_comes_twice_is_taken_once(
    runtime: Runtime, engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """The second delivery finds nothing to lease, while the first is being scored and afterwards."""
    ids = await submit_answers(engine, 3)
    scorer.hold()

    taken = [await runtime.intake.take(ids), await runtime.intake.take(ids)]
    scorer.let_go()
    await eventually(lambda: scored_once(engine, ids))
    taken.append(await runtime.intake.take(ids))

    assert taken == [3, 0, 0]
    assert set(scorer.started.values()) == {1}


async def test_a_message_larger_than_the_room(
    runtime: Runtime, engine: AsyncEngine, scorer: ScriptedScorer, rung: list[Drain]
) -> None:
    """As many as there are slots are taken; one drain is rung for other workers, and the rest is pulled."""
    ids = await submit_answers(engine, 3 * SLOTS)
    scorer.hold()

    assert await runtime.intake.take(ids) == SLOTS
    assert runtime.intake.allowance == 0
    assert [drain.lane for drain in rung] == ["live"]
    async with in_background(runtime.intake.run()):
        scorer.let_go()
        await eventually(lambda: scored_once(engine, ids))

    assert scorer.most_at_once <= SLOTS


async def test_without_room_nothing_is_leased(
    runtime: Runtime, engine: AsyncEngine, scorer: ScriptedScorer, rung: list[Drain]
) -> None:
    """A full worker sends no statement and passes the word on."""
    first = await submit_answers(engine, SLOTS)
    scorer.hold()
    await runtime.intake.take(first)
    [late] = await submit_answers(engine, 1)

    assert await runtime.intake.take([late]) == 0

    assert (await read_handoffs(engine))[late]["lease_token"] is None
    assert [drain.lane for drain in rung] == ["live"]
    assert not runtime.intake.wants_messages
    scorer.let_go()


async def test_few_free_slots_wait_for_company_but_not_for_ever(
    runtime: Runtime, engine: AsyncEngine, scorer: ScriptedScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slot that is free by itself is not worth a statement at once; it is after a moment, though no other comes free."""
    monkeypatch.setattr("worker.intake.PULL_SHARE", 2)
    sent: list[str] = []
    first = await submit_answers(engine, SLOTS - 1)
    scorer.hold()
    await runtime.intake.take(first)
    late = await submit_answers(engine, 3)
    event.listen(runtime.engine.sync_engine, "before_cursor_execute", lambda *given: sent.append(given[2]))

    async with in_background(runtime.intake.run()):
        runtime.intake.more("live")
        await settled()
        assert not sent
        assert not runtime.intake.wants_messages
        await eventually(lambda: runtime.pool.free_slots == 0)
        assert len(sent) == 1
        scorer.let_go()
        await eventually(lambda: scored_once(engine, first + late))


class HeldUp:
    """A pace that says wait."""

    def pause_seconds(self) -> float:
        return 60.0

    def begin(self) -> None:
        return


async def test_a_lane_that_is_held_up_does_not_gather(runtime: Runtime, engine: AsyncEngine) -> None:
    """Free slots that waited for company, when the bulk lane was told to pause: the loop waits too, and does not spin."""
    await submit_answers(engine, 3, lane="bulk")
    runtime.intake._bulk_pace = HeldUp()  # type: ignore[assignment]
    runtime.intake._gathering_since = -60.0
    waits: list[float | None] = []
    original = runtime.intake._wait_for_change

    async def wait(pause_seconds: float | None) -> None:
        waits.append(pause_seconds)
        await original(pause_seconds)

    runtime.intake._wait_for_change = wait  # type: ignore[method-assign]
    async with in_background(runtime.intake.run()):
        runtime.intake.more("bulk")
        await eventually(lambda: waits)
        for _ in range(5):
            await settled()

    assert len(waits) <= 2
    assert all(pause is None or pause > 1 for pause in waits)


async def test_room_that_a_pull_held_in_vain_is_told_of(runtime: Runtime) -> None:
    """A message that came while an empty pull had all slots was left unread: it is read now, not at the next beat."""
    told: list[bool] = []
    runtime.on_room = lambda: told.append(runtime.intake.wants_messages)
    async with in_background(runtime.intake.run()):
        runtime.intake.more("live")

        await eventually(lambda: told)

    assert told[-1]


async def test_many_messages_at_once_never_take_too_much(
    runtime: Runtime, engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """Concurrent leases share the slots: together they never hold more than there are."""
    ids = await submit_answers(engine, 3 * SLOTS)
    scorer.hold()

    taken = await asyncio.gather(*(runtime.intake.take(ids[n : n + 5]) for n in range(0, len(ids), 5)))

    assert sum(taken) == SLOTS == len(scorer.running)
    assert runtime.pool.free_slots == 0
    scorer.let_go()


async def test_a_small_message_reserves_only_what_it_needs(
    runtime: Runtime, engine: AsyncEngine, rung: list[Drain]
) -> None:
    """Messages of one answer each, at the same moment, are all taken: none waits for another's statement."""
    ids = await submit_answers(engine, SLOTS)

    taken = await asyncio.gather(*(runtime.intake.take([response_id]) for response_id in ids))

    assert taken == [1] * SLOTS
    assert not rung


async def test_a_backlog_is_pulled_until_it_is_empty(
    runtime: Runtime, engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """One drain is enough for any backlog; afterwards nothing is asked any more."""
    ids = await submit_answers(engine, 10 * SLOTS)
    async with in_background(runtime.intake.run()):
        runtime.intake.more("live")
        await eventually(lambda: scored_once(engine, ids))
        await eventually(lambda: not runtime.intake._more)

    assert set(scorer.started.values()) == {1}
    assert scorer.most_at_once <= SLOTS


async def test_live_goes_first(runtime: Runtime, engine: AsyncEngine, scorer: ScriptedScorer) -> None:
    """With both lanes full of work, every slot goes to the live lane."""
    bulk = await submit_answers(engine, 2 * SLOTS, lane="bulk")
    live = await submit_answers(engine, 2 * SLOTS)
    scorer.hold()
    async with in_background(runtime.intake.run()):
        runtime.intake.more("bulk")
        runtime.intake.more("live")
        await eventually(lambda: len(scorer.running) == SLOTS)
        assert scorer.running <= set(live)
        scorer.let_go()
        await eventually(lambda: scored_once(engine, live + bulk))

    assert max(list(scorer.started).index(n) for n in live) < 3 * SLOTS


async def test_bulk_leaves_slots_for_live(
    runtime: Runtime, engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """Bulk holds four fifths at most, so that a live answer finds a slot at once."""
    bulk = await submit_answers(engine, 2 * SLOTS, lane="bulk")
    [live] = await submit_answers(engine, 1)
    most = int(SLOTS * BULK_SHARE)
    scorer.hold()
    async with in_background(runtime.intake.run()):
        runtime.intake.more("bulk")
        await eventually(lambda: len(scorer.running) == most)
        await settled()
        assert runtime.pool.in_lane("bulk") == most

        assert await runtime.intake.take([live]) == 1
        await eventually(lambda: live in scorer.running)
        scorer.let_go()
        await eventually(lambda: scored_once(engine, [*bulk, live]))


async def test_a_single_slot_serves_bulk_too(
    make_runtime: Callable[..., Runtime], engine: AsyncEngine
) -> None:
    """Four fifths of one slot are none: a small worker still rescores."""
    runtime = make_runtime(slots=1)
    ids = await submit_answers(engine, 3, lane="bulk")

    async with in_background(runtime.settler.run(), runtime.intake.run()):
        runtime.intake.more("bulk")
        await eventually(lambda: scored_once(engine, ids))


async def test_a_cancelled_job_loses_no_lease(
    runtime: Runtime, engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """Whoever asked may be cancelled in the middle of the statement: what was leased is scored."""
    ids = await submit_answers(engine, 5)

    job = asyncio.create_task(runtime.intake.take(ids))
    await settled()
    assert runtime.intake._leasing.under_way
    job.cancel()
    await asyncio.wait([job])

    assert job.cancelled()
    await eventually(lambda: scored_once(engine, ids))
    assert runtime.intake.allowance == SLOTS


async def test_what_cannot_be_started_is_handed_back(
    runtime: Runtime, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The questions could not be read after the leases were granted: they are due again at once."""
    ids = await submit_answers(engine, 3)

    async def broken(_: object) -> dict[str, Any]:
        raise ZeroDivisionError

    monkeypatch.setattr(runtime.intake._leasing._questions, "get", broken)
    with pytest.raises(ZeroDivisionError):
        await runtime.intake.take(ids)
    await runtime.settler.wait_idle()

    rows = (await read_handoffs(engine)).values()
    assert all(row["lease_token"] is None and row["seconds_to_due"] <= 0 for row in rows)
    assert runtime.intake.allowance == SLOTS
    assert runtime.pool.holds_nothing


async def test_a_refused_lease_gives_its_room_back(
    make_runtime: Callable[..., Runtime],
    engine: AsyncEngine,
    proxied_database_url: str,
    postgres_proxy: Proxy,
) -> None:
    """PostgreSQL fails in the middle: the room is free again, and pulling goes on when it is back."""
    runtime = make_runtime(database_url=proxied_database_url)
    ids = await submit_answers(engine, 5)
    postgres_proxy.break_down()

    await runtime.take(ids)
    assert runtime.intake.allowance == SLOTS
    async with in_background(runtime.settler.run(), runtime.intake.run()):
        await eventually(lambda: runtime.intake.note == "PostgreSQL is away")
        postgres_proxy.refuses = False
        await eventually(lambda: scored_once(engine, ids))
        assert runtime.intake.note is None


async def test_while_the_breaker_is_open_only_a_probe_is_taken(
    make_runtime: Callable[..., Runtime], engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """Trouble stops the intake; one probe goes out; its success brings full speed at once."""
    runtime = make_runtime()
    ids = await submit_answers(engine, SLOTS)
    clock = [0.0]
    runtime.breaker._clock = lambda: clock[0]
    open_breaker(runtime)
    assert runtime.intake.note == "breaker open"
    scorer.hold()

    async with in_background(runtime.settler.run(), runtime.intake.run()):
        assert await runtime.intake.take(ids) == 0
        assert not runtime.intake.wants_messages
        clock[0] = 10.0
        runtime.intake.changed()
        await eventually(lambda: scorer.running)
        await settled()
        assert len(scorer.running) == 1
        scorer.let_go()
        await eventually(lambda: scored_once(engine, ids))

    assert runtime.intake.note is None


async def test_a_probe_is_sent_when_its_time_comes(
    make_runtime: Callable[..., Runtime],
    engine: AsyncEngine,
    scorer: ScriptedScorer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody rings, nothing ends: the pause of the breaker alone brings the intake back."""
    monkeypatch.setattr("worker.breaker.FIRST_PAUSE_SECONDS", 0.05)
    runtime = make_runtime()
    runtime.breaker.pause_seconds = 0.05
    trouble = True

    async def behave(_: Answer) -> Score:
        if trouble:
            raise ProviderTrouble("503")
        return good_score()

    scorer.behaviour = behave
    ids = await submit_answers(engine, 2 * SLOTS)
    async with in_background(runtime.settler.run(), runtime.intake.run()):
        runtime.intake.more("live")
        await eventually(lambda: runtime.breaker.is_open)
        await runtime.settler.wait_idle()
        trouble = False
        await change(engine, *ids, due_at="now")
        runtime.intake.more("live")  # once; from here on, only time passes
        await eventually(lambda: scored_once(engine, ids))


@pytest.mark.parametrize("more", [(), ("live",)])
async def test_a_due_probe_without_work_costs_nothing(
    make_runtime: Callable[..., Runtime],
    engine: AsyncEngine,
    scorer: ScriptedScorer,
    more: tuple[str, ...],
) -> None:
    """A probe may go out but there is no answer, or no slot for it: the loop waits and does not spin."""
    runtime = make_runtime(slots=1)
    ids = await submit_answers(engine, 2)
    rounds = 0
    original = runtime.breaker.seconds_until_probe

    def counted() -> float | None:
        nonlocal rounds
        rounds += 1
        return original()

    runtime.breaker.seconds_until_probe = counted  # type: ignore[method-assign]
    clock = [0.0]
    runtime.breaker._clock = lambda: clock[0]
    scorer.hold()
    async with in_background(runtime.settler.run(), runtime.intake.run()):
        if more:
            await runtime.intake.take(ids[:1])
        open_breaker(runtime)
        clock[0] = 10.0
        for lane in more:
            runtime.intake.more(lane)
        runtime.intake.changed()
        await eventually(lambda: rounds)
        before = rounds
        for _ in range(20):
            await settled()
        assert rounds - before <= 2
        scorer.let_go()


async def test_stopping_takes_nothing_more(
    runtime: Runtime, engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """After stopping nothing is leased; leases that were being taken are waited for."""
    ids = await submit_answers(engine, 5)
    taking = asyncio.create_task(runtime.intake.take(ids))
    await settled()
    assert runtime.intake._leasing.under_way

    await runtime.intake.stop()

    assert runtime.intake._leasing.reserved == 0
    assert await taking == 5
    assert await runtime.intake.take(ids) == 0
    assert runtime.intake.note == "stopping"


async def test_a_lease_is_one_statement(
    runtime: Runtime, engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """Once a question is known, picking an answer up costs one round trip."""
    first, second = await submit_answers(engine, 2)
    await runtime.intake.take([first])
    sent: list[str] = []
    scorer.hold()

    @event.listens_for(runtime.engine.sync_engine, "before_cursor_execute")
    def record(_conn: object, _cursor: object, statement: str, *_rest: object) -> None:
        sent.append(statement)

    await runtime.settler.wait_idle()
    sent.clear()
    await runtime.intake.take([second])

    assert len(sent) == 1
    scorer.let_go()


async def test_others_leases_are_left_alone(
    runtime: Runtime, engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """What is leased elsewhere, postponed, dead or unknown is not taken."""
    leased, postponed, dead, due = await submit_answers(engine, 4)
    await change(engine, leased, lease_token=uuid4(), due_at="2100-01-01")
    await change(engine, postponed, due_at="2100-01-01")
    await change(engine, dead, state="dead", due_at="infinity", last_error="No.")

    assert await runtime.intake.take([leased, postponed, dead, due, 2**62]) == 1

    await eventually(lambda: scorer.started)
    assert set(scorer.started) == {due}
