"""A worker process: intake, slots, event loop and settler, as in ``worker/``."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from benchmarks.simulation.permits import Permits
from producers.bell import MAX_QUEUED_MESSAGES
from worker.arq_worker import MAX_JOBS
from worker.intake import GATHER_SECONDS, PULL_SHARE
from worker.settler import MAX_BATCH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.simulation.system import System

# What a drain carries: no ids.
DRAIN: tuple[int, ...] = ()


class Queue:
    """Redis: messages that nobody has read, and the workers that wait for one."""

    def __init__(self) -> None:
        self._messages: deque[tuple[int, ...]] = deque()
        self._drain_queued = False
        self.listeners: deque[Worker] = deque()
        self.longest = 0

    def ring(self, message: tuple[int, ...]) -> None:
        """Queue a message and wake whoever has room. A drain that is queued already stays one message."""
        if message == DRAIN:
            if self._drain_queued:
                return
            self._drain_queued = True
        elif len(self._messages) > MAX_QUEUED_MESSAGES:
            return  # the sweep finds what it names
        self._messages.append(message)
        self.longest = max(self.longest, len(self._messages))
        while self._messages and self.listeners:
            worker = self.listeners.popleft()
            worker.listening = False
            worker.look()

    def read(self) -> tuple[int, ...] | None:
        """The next message; None where there is none."""
        if not self._messages:
            return None
        message = self._messages.popleft()
        if message == DRAIN:
            self._drain_queued = False
        return message


class Worker:
    """One worker process."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._slots = self.free = system.scenario.slots
        self._worth_pulling = max(1, self._slots // PULL_SHARE)
        self._permits = Permits(system.provider)
        self._reserved = 0
        self._more = False
        self._pulling = False
        self._reading = 0
        self.listening = False
        self._loop_free_at = 0.0
        self._gathering = False  # few free slots wait for company
        self._unsettled: list[int] = []
        self._settling = False

    @property
    def scoring(self) -> int:
        """Answers that are with the model."""
        return self._slots - self.free

    @property
    def _allowance(self) -> int:
        if self._system.env.now < self._permits.pause_until:
            return 0
        return max(0, self.free - self._reserved)

    @property
    def _wants_messages(self) -> bool:
        needed = self._worth_pulling if self._more else 1
        return self._reading < MAX_JOBS and self._allowance >= needed

    def more(self) -> None:
        """Learn that more is due than was taken."""
        self._more = True
        self.look()

    def look(self, _: Any = None) -> None:
        """Something changed: take what can be taken."""
        self._pull()
        queue = self._system.queue
        while self._wants_messages and (message := queue.read()) is not None:
            self._read(message)
        self._pull()
        if not self.listening and self._wants_messages:
            self.listening = True
            queue.listeners.append(self)

    def _read(self, message: tuple[int, ...]) -> None:
        room = self._allowance
        if message == DRAIN:
            self._more = True
            return
        if len(message) > room:
            self._more = True
            self._system.queue.ring(DRAIN)
        room = min(room, len(message))
        if granted := self._acquire(room, certain=True):
            self._reading += 1
            delay = self._system.service.bell_seconds + self._system.permit_seconds
            self._system.later(delay, self._lease, (room, granted, message))
        if granted < room:
            self._more = True

    def _pull(self, *, gathered: bool = False) -> None:
        if not self._more or self._pulling:
            return
        room = self._allowance
        if room < (1 if gathered else self._worth_pulling):
            if room and not self._gathering:
                self._gathering = True
                self._system.later(GATHER_SECONDS, self._gathered)
            return
        # Forgotten first: a bell that rings while we pull counts for the next time.
        self._more = False
        if granted := self._acquire(room, certain=False):
            self._pulling = True
            self._system.later(self._system.permit_seconds, self._lease, (room, granted, None))
        else:
            self._more = True

    def _gathered(self, _: Any) -> None:
        """Few free slots have waited for company long enough."""
        self._gathering = False
        self._pull(gathered=True)

    def _acquire(self, room: int, *, certain: bool) -> int:
        granted = self._permits.acquire(self._system.env.now, room, certain=certain)
        if granted:
            self._reserved += room
        else:
            self._system.later(self._permits.pause_until - self._system.env.now, self.look)
        return granted

    def _lease(self, event: Any) -> None:
        """The lease's statement is sent."""
        room, granted, message = event.value
        system, database = self._system, self._system.database
        leased = database.pull(granted) if message is None else database.lease(message, granted)
        self._permits.used(system.env.now, granted, len(leased), certain=message is not None)
        end = database.ends(system.env.now, "lease", system.service.lease(len(leased)))
        full = message is None and len(leased) == granted
        system.later(end - system.env.now, self._leased, (room, leased, message is None, full))

    def _leased(self, event: Any) -> None:
        """The lease's statement has ended: its answers go to the model."""
        room, leased, pulled, full = event.value
        self._reserved -= room
        if pulled:
            self._pulling = False
            self._more = self._more or full
        else:
            self._reading -= 1
        self._start(leased)
        self.look()

    def _start(self, answers: Sequence[int]) -> None:
        # The event loop does one thing at a time: each call to the model costs it some processor time first.
        system = self._system
        now, free_at = system.env.now, self._loop_free_at
        self.free -= len(answers)
        for answer in answers:
            system.leased_at[answer] = now
            free_at = max(now, free_at) + system.processor_seconds
            system.later(free_at + system.model_times[answer] - now, self._scored, answer)
        self._loop_free_at = free_at
        system.loop_seconds += len(answers) * system.processor_seconds

    def _scored(self, event: Any) -> None:
        self.free += 1
        self._unsettled.append(event.value)
        if not self._settling:
            self._settle()
        self.look()

    def _settle(self) -> None:
        # While one commit is in flight, the next batch gathers.
        self._settling = True
        batch = self._unsettled[:MAX_BATCH]
        del self._unsettled[:MAX_BATCH]
        system = self._system
        end = system.database.ends(system.env.now, "settle", system.service.settle(len(batch)))
        system.later(end - system.env.now, self._settled, batch)

    def _settled(self, event: Any) -> None:
        self._system.settled(event.value)
        if self._unsettled:
            self._settle()
        else:
            self._settling = False
