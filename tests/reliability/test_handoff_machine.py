"""The real storage layer on the real server, driven by random interleavings of everything that can happen.

After every step the whole database is compared with what the step should have made of it, and every invariant
is checked. A failing run is shrunk to the shortest one that fails, printed with the blob that replays it (as a
decorator of the machine's class), and outside CI tried first the next time.

``HANDOFF_MACHINE_RUNS=5000`` searches for longer; ``HANDOFF_MACHINE_SEED`` repeats a random run that CI printed.
"""

from __future__ import annotations

import asyncio
import os
import random
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text

from storage import create_engine, settlements
from tests.databases import driver_url
from tests.measuring import note
from tests.reliability.machine import RUBRICS, World, just_started, lanes, owners, questions
from tests.reliability.operators import Operators
from tests.reliability.overlapping import OverlappingMachine
from tests.reliability.students import Students
from tests.reliability.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.reliability.picture import Question

IN_CI = os.environ.get("CI") == "true"
STEPS = 50
# What was tried so often must have had something to do.
OFTEN = 100
# Less than half a minute for each machine on a slow core.
RUNS = int(os.environ.get("HANDOFF_MACHINE_RUNS", "100"))
SETTINGS = settings(
    max_examples=RUNS,
    stateful_step_count=STEPS,
    deadline=None,
    print_blob=True,
    # Every example talks to a server, and a machine may be slow.
    suppress_health_check=list(HealthCheck),
)


class HandoffMachine(Students, Workers, Operators):
    """Everything that can happen to an answer, one transaction after the other."""

    @initialize(
        published=st.sets(questions, min_size=1),
        given=st.lists(st.tuples(owners, questions), min_size=3, max_size=6),
        leased=st.integers(min_value=0, max_value=6),
        scored=st.booleans(),
        lane=lanes,
    )
    def begin(
        self,
        published: set[Question],
        given: list[tuple[dict[str, Any], Question]],
        leased: int,
        scored: bool,  # noqa: FBT001
        lane: str,
    ) -> None:
        """Begin with something rather than nothing, so that few steps lead far."""
        for question in sorted(published):
            self.publish_content(question, RUBRICS[0])
            self.holds()
        self.submit_all([(owner, question, uuid4()) for owner, question in given], lost=False)
        if not leased:
            return
        self.holds()
        self.pull("live", limit=leased, fresh=False)
        if not scored or not self.leases:
            return
        self.holds()
        self.settle_all(self.leases)
        self.holds()
        self.rescore_all([lease.response_id for lease in self.leases], lane)

    @precondition(lambda self: self.before.responses)
    @rule(
        data=st.data(),
        owner=owners,
        yes=just_started,
        waited=st.sampled_from((0, 0, 30)),
    )
    def look(self, data: st.DataObject, owner: dict[str, Any], yes: bool, waited: int) -> None:  # noqa: FBT001
        """Somebody looks: a student, a person who operates (when there is something dead), the sweep."""
        dead = ("dead",) if self.ended() else ()
        match data.draw(st.sampled_from(("answers", "overdue", *dead))):
            case "answers":
                self.read(owner)
            case "dead":
                self.look_at_the_dead(include_dismissed=yes)
            case _:
                self.sweep(fresh=yes, waited=waited)


Machines = pytest.mark.parametrize("machine", [HandoffMachine, OverlappingMachine])


@pytest.fixture
def world(database_url: str, request: pytest.FixtureRequest) -> Iterator[World]:
    """A loop of the machine's own: Hypothesis is not asynchronous, and pytest's loop stands still meanwhile."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        engine = create_engine(database_url, pool_size=4)
        observer = runner.run(asyncpg.connect(driver_url(database_url)))
        world = World(runner, engine, observer)
        yield world
        runner.run(world.empty())
        runner.run(observer.close())
        runner.run(engine.dispose())
    total, kinds = sum(world.steps.values()), sorted(world.steps)
    shown = ", ".join(f"{kind} {world.steps[kind]} ({world.rows[kind]})" for kind in kinds)
    note(
        request.config,
        f"state machine: {request.node.name}: {total:,} steps of {len(kinds)} kinds (and the rows they touched): {shown}",
    )


@pytest.fixture(autouse=True)
def _endless_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settling gives up a locked row after a while; here only steps may decide, not the clock."""
    for name in ("_SETTLE", "_POSTPONE", "_FAIL", "_HAND_BACK", "_BURY"):
        patient = str(getattr(settlements, name).text).replace(f"'{settlements.LOCK_PATIENCE_MS}'", "'0'")
        assert "set_config('lock_timeout', '0', true)" in patient
        monkeypatch.setattr(settlements, name, text(patient))


@pytest.mark.commits
@Machines
def test_no_interleaving_breaks_an_invariant(
    machine: type[RuleBasedStateMachine], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happens in whatever order, nothing is lost, nothing is scored twice, and all is as expected.

    In CI these are always the same runs.
    """
    monkeypatch.setattr(machine, "world", world, raising=False)
    same_runs = settings(SETTINGS, derandomize=True, database=None)
    run_state_machine_as_test(machine, settings=same_runs if IN_CI else SETTINGS)
    idle = {kind for kind, times in world.steps.items() if times > OFTEN and not world.rows[kind]}
    assert not idle, f"these were tried, but never had anything to do: {idle}"


@pytest.mark.commits
@Machines
def test_neither_does_a_run_that_nobody_has_tried(
    machine: type[RuleBasedStateMachine],
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """The same with a new seed each time, which is printed."""
    seed = int(os.environ.get("HANDOFF_MACHINE_SEED") or random.SystemRandom().getrandbits(32))
    note(request.config, f"state machine: {request.node.name}: HANDOFF_MACHINE_SEED={seed}")
    monkeypatch.setattr(machine, "world", world, raising=False)
    monkeypatch.setattr(machine, "_hypothesis_internal_use_seed", seed, raising=False)
    run_state_machine_as_test(
        machine, settings=settings(SETTINGS, max_examples=max(1, RUNS // 3), database=None)
    )
