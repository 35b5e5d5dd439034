"""What every fault has."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from tests.chaos.terms import CALL_LONGEST_SECONDS, LEASE_SECONDS, SLOTS, SWEEP_SECONDS, WORKERS

if TYPE_CHECKING:
    import random

    from tests.chaos.arena import Arena
    from tests.chaos.fleet import Place

# A lease runs out, a sweep finds it, an answer is scored.
TAKEN_OVER_SECONDS = LEASE_SECONDS + SWEEP_SECONDS + CALL_LONGEST_SECONDS
# Long enough for all of that to happen before whoever held the lease is back.
BEYOND_LEASE_SECONDS = TAKEN_OVER_SECONDS
# A process starts, logs in, leases.
START_SECONDS = 4.0
# More than all slots together, and how long they may take to be filled.
BURST_ANSWERS = 2 * WORKERS * SLOTS
BURSTS = 6
FULL_SECONDS = 4.0
# A machine that is busy with everything at once.
SLACK_SECONDS = 3.0


class Fault(ABC):
    """Something that goes wrong for a while, or once.

    Args:
        draw: Decides what it strikes; nothing that happens in a run does.
    """

    name: ClassVar[str]
    # What it strikes: two that strike the same never happen together.
    victim: ClassVar[str]
    hold_seconds: ClassVar[float] = 0.0
    # What "recovered" means here, and within which time after the end of the fault it must have come.
    recovery: ClassVar[str]
    bound_seconds: float
    # How long all of it takes on an idle machine; decides how many faults fit into a run.
    usual_seconds: ClassVar[float]

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        # Its place in the run, counted from 0.
        self.number = 0

    @property
    def target(self) -> str:
        """What it strikes, for people."""
        return self.victim

    async def prepare(self, arena: Arena) -> None:  # noqa: B027 - most need nothing
        """Bring about what it needs to hurt; still nothing is wrong."""

    @abstractmethod
    async def begin(self, arena: Arena) -> None:
        """Strike."""

    async def end(self, arena: Arena) -> None:  # noqa: B027 - most are over at once
        """Mend what was broken. Called whatever happens, also where it never began."""

    @abstractmethod
    async def recovered(self, arena: Arena, *, since: float) -> float:
        """Wait until all is well again.

        Args:
            arena: The run.
            since: When the fault was over.

        Returns:
            When that was, seconds since the epoch.
        """


class WorkerFault(Fault):
    """Strikes one worker."""

    victim = "worker"

    def __init__(self, draw: random.Random) -> None:
        super().__init__(draw)
        self._index = self.draw.randrange(WORKERS)
        self.pid = 0
        self.held: list[int] = []

    @property
    def target(self) -> str:
        return f"worker {self._index}"

    def place(self, arena: Arena) -> Place:
        return arena.fleet.places[self._index]

    async def filled(self, arena: Arena, answers: int) -> None:
        """Have bursts of answers submitted until the worker has so many in its hands."""
        await arena.fleet.ready(self.place(arena))

        async def full() -> bool:
            return await arena.provider.in_calls(self.place(arena).pid) >= answers

        for _ in range(BURSTS):
            with suppress(TimeoutError):
                async with asyncio.timeout(FULL_SECONDS):
                    await arena.observer.until(full)
                    return
            arena.crowd.burst(BURST_ANSWERS)
        arena.problems.append(f"{self.name}: its slots could not be filled")
