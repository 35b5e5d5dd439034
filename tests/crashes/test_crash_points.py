"""A process may die at every single command that it sends to a server, and nothing is lost or scored twice.

``CRASH_POINT=worker:after:57`` replays one point (that run alone; where several connections are busy, the order of
commands varies a little, so try it a few times).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest

from tests.crashes.cutting import SIDES, Cut, Side
from tests.crashes.producer_run import ProducerRun
from tests.crashes.worker_run import WorkerRun
from tests.measuring import note

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.crashes.lanes import Lane

pytestmark = pytest.mark.processes

RUNS: dict[str, type[WorkerRun | ProducerRun]] = {"worker": WorkerRun, "producer": ProducerRun}
# What a run of each sends at least; with fewer commands the scenario has lost something.
LEAST_COMMANDS = {"worker": 120, "producer": 30}
# Whoever must mend something needs no hundred examples of it.
MAX_FAILURES = 3
LOG_CHARS = 2000


@dataclass(slots=True)
class CrashPoints:
    """All crash points of one kind of process, one run each."""

    role: str
    commands: dict[Side, int] = field(default_factory=dict)
    """How many a run sent that came to its end, by side."""
    cut_at: list[str] = field(default_factory=list)
    paid_twice: int = 0
    failures: list[str] = field(default_factory=list)

    def in_order(self) -> Iterator[tuple[int, Side]]:
        """The next point, until on each side a run has come to its end."""
        for at in itertools.count(1):
            for side in SIDES:
                if len(self.failures) >= MAX_FAILURES or len(self.commands) == len(SIDES):
                    return
                if side not in self.commands:
                    yield at, side

    async def run(self, lanes: list[Lane], points: Iterator[tuple[int, Side]]) -> None:
        """Try points, as many at a time as there are lanes."""

        async def take_turns(lane: Lane) -> None:
            for at, side in points:
                await self._try(lane, at, side)

        await asyncio.gather(*map(take_turns, lanes))

    async def _try(self, lane: Lane, at: int, side: Side) -> None:
        cut = Cut(at, side)
        try:
            outcome = await RUNS[self.role](lane, cut).play()
            broken = outcome.broken
            self.paid_twice += outcome.paid_twice
        except (AssertionError, TimeoutError) as exc:
            broken = [str(exc) or type(exc).__name__]
        if broken:
            log = lane.log.read_text(errors="replace")[-LOG_CHARS:] if lane.log.exists() else ""
            replay = shlex.join([f"CRASH_POINT={self.role}:{side}:{at}", "pytest", "tests/crashes"])
            where = f"{self.role}, {side} command {at} ({cut.command or 'not reached'})"
            self.failures.append("\n  ".join([where, *broken, f"replay: {replay}", log]))
        if cut.happened:
            self.cut_at.append(f"{side} {cut.command}")
        else:
            self.commands.setdefault(side, cut.commands)

    def __str__(self) -> str:
        """What a person is told."""
        counts = ", ".join(f"{self.commands.get(side, '?')} {side}" for side in SIDES)
        return (
            f"crash points: {self.role}, {counts}; {len(self.cut_at)} crashes at {len(set(self.cut_at))} kinds of points, "
            f"{len(self.failures)} with anything lost or scored twice, {self.paid_twice} calls of the model paid twice"
        )


@pytest.mark.parametrize("role", RUNS)
async def test_no_crash_loses_an_answer_or_scores_one_twice(
    role: str, lanes: list[Lane], request: pytest.FixtureRequest
) -> None:
    """Dead immediately before or after its n-th command, for every n: all that was acknowledged ends exactly once.

    Every acknowledged answer is stored and has one score a handoff, or is dead for the reason in the script; no
    crash uses up an attempt; claims are applied; a repeated submission key gives the same row; a model is paid
    twice only for what the dead process had in hand; and ``scoring verify --full`` finds nothing.
    """
    points = CrashPoints(role)
    given = os.environ.get("CRASH_POINT")
    if given is None:
        await points.run(lanes, points.in_order())
    else:
        replayed, side, at = given.split(":")
        if replayed != role:
            pytest.skip(f"CRASH_POINT={given}")
        await points.run(lanes[:1], iter([(int(at), cast("Side", side))]))
    note(request.config, str(points))

    if points.failures:
        pytest.fail("\n\n".join(points.failures), pytrace=False)
    if given is None:
        assert min(points.commands.values()) >= LEAST_COMMANDS[role]
        assert len(points.cut_at) >= sum(LEAST_COMMANDS[role] for _ in SIDES)
