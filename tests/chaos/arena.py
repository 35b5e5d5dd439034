"""One run: its servers, its processes, and what was done to them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.chaos.causes import Cause, Wound
from tests.chaos.terms import BACKLOG_ANSWERS, GONE_ANSWERS

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from demo.servers import Servers
    from tests.chaos.crowd import Crowd
    from tests.chaos.editions import Editions
    from tests.chaos.fleet import Ending, Fleet
    from tests.chaos.observer import Observer
    from tests.chaos.provider import Provider


@dataclass(slots=True)
class Happening:
    """A fault as it happened, seconds since the epoch."""

    name: str
    target: str
    bound_seconds: float
    begun: float = 0.0
    ended: float = 0.0
    recovered: float | None = None
    together: bool = False
    # What "recovered" means for it.
    recovery: str = ""

    @property
    def recovery_seconds(self) -> float | None:
        """From the end of the fault until all was well; None where that did not come."""
        return None if self.recovered is None else max(0.0, self.recovered - self.ended)


@dataclass(slots=True)
class Arena:
    """What faults act on."""

    servers: Servers
    redis: Redis
    fleet: Fleet
    crowd: Crowd
    provider: Provider
    observer: Observer
    editions: Editions
    happenings: list[Happening] = field(default_factory=list)
    wounds: list[Wound] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    postgres_down: int = 0
    # The number of the fault that is an answer which kills its workers.
    poison_fault: int | None = None

    def wound(
        self, cause: Cause, fault: int, *, since: float, until: float | None = None, pid: int | None = None
    ) -> None:
        """Remember something that can make a call be paid twice."""
        self.wounds.append(Wound(cause, since, since if until is None else until, pid, fault))

    def poison_deaths(self, *, since: float) -> int:
        """How many workers the poisoned answer has killed since then."""
        return sum(wound.cause is Cause.POISONED and wound.since >= since for wound in self.wounds)

    def worker_ended(self, ending: Ending) -> None:
        """Judge the end of a worker process."""
        if ending.ordered:
            if ending.status and not ending.killed:
                self.problems.append(f"a worker that was told to stop exited with {ending.status}")
        elif ending.killed and self.poison_fault is not None:
            self.wounds.append(Wound(Cause.POISONED, ending.at, ending.at, ending.pid, self.poison_fault))
        elif not self.postgres_down:
            self.problems.append(f"a worker ended by itself with exit status {ending.status}")

    def backlog(self, due: int) -> None:
        """Have fewer answers submitted while too many wait."""
        if due > BACKLOG_ANSWERS:
            self.crowd.slow_down(slow=True)
        elif due < GONE_ANSWERS:
            self.crowd.slow_down(slow=False)

    def now(self) -> float:
        """Seconds since the epoch, on the one clock of this machine."""
        return time.time()
