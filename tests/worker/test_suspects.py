"""Suspects in a worker: a group of them, with nothing else in hand, and other answers in between."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

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
from worker.scorers.outcomes import ProviderTrouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from worker.runtime import Runtime
    from worker.scorers.protocol import Answer, Score

pytestmark = pytest.mark.commits

# After three losses.
GROUP = SLOTS // 4
NOTE = "scoring suspicious answers by themselves"


async def suspects(engine: AsyncEngine, number: int = GROUP, *, losses: int = 3) -> list[int]:
    """Answers that lost so many leases and are due."""
    ids = await submit_answers(engine, number)
    await change(engine, *ids, lease_losses=losses)
    return ids


async def scored(engine: AsyncEngine, response_ids: Iterable[int]) -> bool:
    """Whether these are settled, whatever became of others."""
    return not set(response_ids) & set(await read_handoffs(engine))


def open_breaker(runtime: Runtime) -> None:
    for handoff_id in range(-5, 0):
        runtime.breaker.failed(handoff_id, "503")
    assert runtime.breaker.is_open


async def test_a_group_is_scored_with_nothing_else_in_hand(
    make_runtime: Callable[..., Runtime], engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """What may kill a worker waits until everything else is written, and nothing is taken meanwhile."""
    runtime = make_runtime()
    ids = await submit_answers(engine, 3)
    group = await suspects(engine)
    together: list[set[int]] = []

    async def watch(answer: Answer) -> Score:
        if answer.response_id in group:
            await settled()
            together.append(set(scorer.running))
            assert runtime.intake.allowance == 0
            assert not runtime.intake.wants_messages
            assert {number for number, _ in runtime.pool.renewable()} <= handoff_ids
        return good_score()

    handoff_ids = {(await read_handoffs(engine))[response_id]["handoff_id"] for response_id in group}
    scorer.behaviour = watch
    scorer.hold()
    async with in_background(runtime.settler.run(), runtime.intake.run()):
        await runtime.intake.take([*ids, *group])
        runtime.intake.more("suspect")
        await eventually(lambda: runtime.intake.note == NOTE)
        assert scorer.running == set(ids)
        assert await runtime.intake.take(ids) == 0
        scorer.let_go()
        await eventually(lambda: scored_once(engine, [*ids, *group]))
        await eventually(lambda: runtime.intake.allowance == SLOTS)

    assert together[0] == set(group)
    assert set().union(*together) == set(group)


async def test_other_answers_have_their_turn_between_two_groups(
    make_runtime: Callable[..., Runtime], engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """Suspects are asked for again and again, and a single worker has them all: it goes from group to others to group."""
    runtime = make_runtime()
    many = await suspects(engine, 3 * GROUP)
    scorer.hold()
    async with in_background(runtime.settler.run(), runtime.intake.run()):
        runtime.intake.more("suspect")
        await eventually(lambda: scorer.running == set(many[:GROUP]))
        others = await submit_answers(engine, 2 * SLOTS)
        runtime.intake.more("live")
        runtime.intake.more("suspect")  # a sweep rings while the group is being scored
        scorer.let_go()
        await eventually(lambda: scored(engine, many[: 2 * GROUP]))
        runtime.intake.more("suspect")
        await eventually(lambda: scored_once(engine, many + others))

    kinds = [response_id in many for response_id in scorer.started]
    assert kinds[:GROUP] == [True] * GROUP
    assert kinds[GROUP : GROUP + SLOTS] == [False] * SLOTS
    assert sum(kinds[: 2 * GROUP + 2 * SLOTS]) == 2 * GROUP


async def test_one_ring_is_one_group(
    make_runtime: Callable[..., Runtime], engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """Nobody asks a second time: the others stay for whoever is asked next."""
    runtime = make_runtime()
    many = await suspects(engine, 2 * GROUP)
    async with in_background(runtime.settler.run(), runtime.intake.run()):
        runtime.intake.more("suspect")
        await eventually(lambda: scored(engine, many[:GROUP]))
        await eventually(lambda: runtime.intake.note is None)
        await settled()

    assert set(scorer.started) == set(many[:GROUP])
    assert set(await read_handoffs(engine)) == set(many[GROUP:])


async def test_later_groups_are_smaller(
    make_runtime: Callable[..., Runtime], engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """After four losses a quarter of a quarter of the slots, which is one here."""
    runtime = make_runtime()
    many = await suspects(engine, losses=4)
    async with in_background(runtime.settler.run(), runtime.intake.run()):
        for suspect in many:
            runtime.intake.more("suspect")
            await eventually(partial(scored, engine, [suspect]))
            await eventually(lambda: runtime.intake.note is None)

    assert scorer.most_at_once == 1


async def test_an_open_breaker_allows_one_suspect(
    make_runtime: Callable[..., Runtime], engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """Until the pause is over none, then one: the probe. It closes the breaker, and the next group is whole again."""
    runtime = make_runtime()
    clock = [0.0]
    runtime.breaker._clock = lambda: clock[0]
    many = await suspects(engine, GROUP + 1)
    open_breaker(runtime)
    scorer.hold()
    async with in_background(runtime.settler.run(), runtime.intake.run()):
        runtime.intake.more("suspect")
        await settled()
        assert runtime.intake._wanted_alone
        clock[0] = 10.0
        runtime.intake.changed()
        await eventually(lambda: scorer.running)
        await settled()
        assert scorer.running == {many[0]}
        scorer.let_go()
        await eventually(lambda: not runtime.breaker.is_open)
        scorer.hold()
        await eventually(lambda: runtime.intake.note is None)
        runtime.intake.more("suspect")
        await eventually(lambda: scorer.running == set(many[1:]))
        scorer.let_go()
        await eventually(lambda: scored_once(engine, many))


async def test_a_breaker_that_opens_meanwhile_is_heard(
    make_runtime: Callable[..., Runtime], engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """It opened while the worker waited to hold nothing: no suspect is taken, and others may be again."""
    runtime = make_runtime()
    trouble = await submit_answers(engine, 5)
    group = await suspects(engine)

    async def fail(answer: Answer) -> Score:
        raise ProviderTrouble("503")

    scorer.behaviour = fail
    scorer.hold()
    async with in_background(runtime.settler.run(), runtime.intake.run()):
        await runtime.intake.take(trouble)
        runtime.intake.more("suspect")
        await eventually(lambda: runtime.intake.note == NOTE)
        scorer.let_go()
        await eventually(lambda: runtime.intake.note == "breaker open")
        await eventually(lambda: runtime.pool.holds_nothing)
        await eventually(lambda: not runtime.intake._alone)

    assert set(scorer.started) == set(trouble)
    rows = await read_handoffs(engine)
    assert {rows[response_id]["lease_token"] for response_id in group} == {None}


async def test_ten_losses_bury(
    make_runtime: Callable[..., Runtime], engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """What stopped its worker ten times is not tried an eleventh time; a person is told."""
    runtime = make_runtime()
    [response_id] = await suspects(engine, 1, losses=10)

    async with in_background(runtime.settler.run(), runtime.intake.run()):
        runtime.intake.more("suspect")
        await eventually(lambda: caplog.records)

    assert caplog.records[0].levelname == "ERROR"
    row = (await read_handoffs(engine))[response_id]
    assert (row["state"], row["attempts"]) == ("dead", 0)


async def test_a_forged_call_for_suspects_holds_up_nobody(
    make_runtime: Callable[..., Runtime], engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """Whoever can write to Redis can ask for suspects; where there are none, other answers go on being taken."""
    runtime = make_runtime()
    [busy, fresh] = await submit_answers(engine, 2)
    scorer.hold()
    async with in_background(runtime.settler.run(), runtime.intake.run()):
        await runtime.intake.take([busy])
        runtime.intake.more("suspect")
        await eventually(lambda: not runtime.intake._wanted_alone)

        assert await runtime.intake.take([fresh]) == 1

        scorer.let_go()
        await eventually(lambda: scored_once(engine, [busy, fresh]))


async def test_a_worker_that_stops_takes_no_suspect(
    make_runtime: Callable[..., Runtime], engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """Told to stop while it waits to hold nothing, it does not begin a group, and does not wait for ever."""
    runtime = make_runtime()
    [busy] = await submit_answers(engine, 1)
    await suspects(engine)
    scorer.hold()
    async with in_background(runtime.settler.run(), runtime.intake.run()):
        await runtime.intake.take([busy])
        runtime.intake.more("suspect")
        await eventually(lambda: runtime.intake.note == NOTE)
        await runtime.intake.stop()
        await eventually(lambda: not runtime.intake._alone)
        scorer.let_go()
        await eventually(lambda: scored(engine, [busy]))

    assert set(scorer.started) == {busy}
