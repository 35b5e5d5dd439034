"""Workers are killed, told to stop, and stalled."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from tests.chaos.causes import Cause
from tests.chaos.faults.base import (
    BEYOND_LEASE_SECONDS,
    BURST_ANSWERS,
    SLACK_SECONDS,
    START_SECONDS,
    TAKEN_OVER_SECONDS,
    Fault,
    WorkerFault,
)
from tests.chaos.terms import CALL_LONGEST_SECONDS, GRACE_SECONDS, SLOTS

if TYPE_CHECKING:
    from tests.chaos.arena import Arena


class WorkerKilled(WorkerFault):
    """``kill -9``, or out of memory."""

    name = "worker killed, slots full"
    recovery = "every answer that was with it is scored"
    bound_seconds = TAKEN_OVER_SECONDS + SLACK_SECONDS
    usual_seconds = 9.0

    async def prepare(self, arena: Arena) -> None:
        arena.crowd.burst(BURST_ANSWERS)
        await self.filled(arena, SLOTS)

    async def begin(self, arena: Arena) -> None:
        self.held = await arena.provider.held_by(self.place(arena).pid)
        pid = arena.fleet.signal(self.place(arena), signal.SIGKILL)
        arena.wound(Cause.KILLED, self.number, since=arena.now(), pid=pid)

    async def recovered(self, arena: Arena, *, since: float) -> float:  # noqa: ARG002 - every fault's
        return await arena.observer.scored(self.held)


class WorkerStopped(WorkerFault):
    """SIGTERM under full load."""

    name = "worker stopped, slots full"
    recovery = "it has ended with 0, its successor is ready, pickup is prompt"
    bound_seconds = GRACE_SECONDS + START_SECONDS + SLACK_SECONDS
    usual_seconds = 5.0

    async def prepare(self, arena: Arena) -> None:
        arena.crowd.burst(BURST_ANSWERS)
        await self.filled(arena, SLOTS)

    async def begin(self, arena: Arena) -> None:
        self.pid = arena.fleet.signal(self.place(arena), signal.SIGTERM)

    async def recovered(self, arena: Arena, *, since: float) -> float:
        await arena.fleet.ready(self.place(arena), after=self.pid)
        ready = arena.now()
        return max(ready, await arena.observer.prompt(since=since))


class RollingRestart(Fault):
    """A deploy: one worker after the other is stopped and replaced."""

    name = "rolling restart"
    victim = "worker"
    recovery = "all have ended with 0, the last successor is ready, pickup is prompt"
    bound_seconds = START_SECONDS + SLACK_SECONDS
    usual_seconds = 7.0

    @property
    def target(self) -> str:
        return "all workers"

    async def begin(self, arena: Arena) -> None:
        for place in arena.fleet.places:
            await arena.fleet.ready(place)
            pid = arena.fleet.signal(place, signal.SIGTERM)
            await arena.fleet.ready(place, after=pid)

    async def recovered(self, arena: Arena, *, since: float) -> float:
        return await arena.observer.prompt(since=since)


class WorkerStalled(WorkerFault):
    """A machine that is frozen for longer than the lease, and then goes on as if nothing had been."""

    name = "worker stalled beyond its lease"
    hold_seconds = BEYOND_LEASE_SECONDS
    recovery = "it scores again, and every answer that was with it is scored"
    bound_seconds = 2 * CALL_LONGEST_SECONDS + SLACK_SECONDS
    usual_seconds = hold_seconds + 1.5

    _since: float | None = None

    async def prepare(self, arena: Arena) -> None:
        await self.filled(arena, SLOTS // 2)

    async def begin(self, arena: Arena) -> None:
        self.held = await arena.provider.held_by(self.place(arena).pid)
        self.pid = arena.fleet.signal(self.place(arena), signal.SIGSTOP)
        self._since = arena.now()

    async def end(self, arena: Arena) -> None:
        if self._since is None:
            return
        if self.place(arena).pid == self.pid:
            arena.fleet.signal(self.place(arena), signal.SIGCONT)
        arena.wound(Cause.STALLED, self.number, since=self._since, until=arena.now(), pid=self.pid)

    async def recovered(self, arena: Arena, *, since: float) -> float:
        works = await arena.observer.until(
            # The answer that kills workers may have got at it meanwhile.
            lambda: arena.provider.serves(self.place(arena).pid, since=since)
        )
        return max(works, await arena.observer.scored(self.held))
