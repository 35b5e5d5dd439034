"""The whole system as a discrete-event simulation (SimPy): web processes, PostgreSQL, Redis, workers, the provider.

What the system does in batches is one event here as well. Not simulated: failures, the bulk lane, heartbeats, and the
cost of a sweep that finds nothing. Redis is as fast as it was measured, however much it is asked.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import simpy

from benchmarks.simulation.database import Database
from benchmarks.simulation.permits import Provider
from benchmarks.simulation.scenario import Scenario, arrival_times, model_times
from benchmarks.simulation.service import ServiceTimes
from benchmarks.simulation.workers import DRAIN, Queue, Worker
from producers.batching import MAX_BATCH
from worker.sweep import OVERDUE_SECONDS

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Generator, Sequence

    Process = Generator[simpy.Event, None, None]


@dataclass(frozen=True, slots=True)
class Sample:
    """How things stand at one moment. What is counted is counted from the beginning.

    ``waiting_seconds`` is the age of the oldest answer that no worker has taken.
    """

    at_seconds: float
    arrived: int
    scored: int
    scoring: int
    waiting_seconds: float
    permits: int
    database_seconds: float
    loop_seconds: float

    @property
    def backlog(self) -> int:
        """Answers that were submitted and have no score."""
        return self.arrived - self.scored


@dataclass(frozen=True, slots=True)
class Run:
    """What happened. The times of every answer, by its number, in seconds from the opening.

    An answer arrives, is sent to PostgreSQL with its batch, leased, and scored when its score is committed.
    """

    scenario: Scenario
    service: ServiceTimes
    arrived_at: Sequence[float]
    sent_at: Sequence[float]
    leased_at: Sequence[float]
    scored_at: Sequence[float]
    samples: Sequence[Sample]
    statements: Counter[str]
    longest_queue: int

    @property
    def drained_at(self) -> float:
        """When the last score was committed."""
        return max(self.scored_at)

    def waits(self) -> list[float]:
        """Seconds from each submit until a worker had leased it."""
        return [leased - arrived for leased, arrived in zip(self.leased_at, self.arrived_at, strict=True)]


class System:
    """Everything that a run consists of; :func:`simulate` runs it."""

    def __init__(
        self,
        scenario: Scenario,
        service: ServiceTimes,
        arrived_at: Sequence[float],
        model_seconds: Sequence[float],
        processor_seconds: float,
    ) -> None:
        self.scenario = scenario
        self.service = service
        self.env = simpy.Environment()
        self.arrived_at = arrived_at
        self.model_times = model_seconds
        self.processor_seconds = processor_seconds
        self.database = Database(scenario.database_parallel, scenario.answers)
        self.provider = Provider(scenario.requests_per_minute)
        self.permit_seconds = service.permit_seconds if self.provider.limited else 0.0
        self.queue = Queue()
        self.sent_at = [0.0] * scenario.answers
        self.leased_at = [0.0] * scenario.answers
        self.scored_at = [0.0] * scenario.answers
        self.loop_seconds = 0.0
        self.samples: list[Sample] = []
        self._scored = 0
        self._drained = self.env.event()
        self._something_due = self.env.event()
        self._workers = [Worker(self) for _ in range(scenario.workers)]

    def later(self, seconds: float, do: Callable[[Any], None], value: Any = None) -> None:
        """Call a function after so long; it is given the event, whose value is ``value``."""
        event = self.env.timeout(max(0.0, seconds), value)
        event.callbacks.append(do)

    def settled(self, answers: Sequence[int]) -> None:
        """These scores are committed."""
        for answer in answers:
            self.scored_at[answer] = self.env.now
        self._scored += len(answers)
        if self._scored == self.scenario.answers:
            self._drained.succeed()

    def run(self) -> None:
        """Run until every answer is scored."""
        for worker in self._workers:
            worker.look()
        choose = random.Random(f"{self.scenario.seed}/web").randrange  # noqa: S311 - no secret
        shares: list[list[int]] = [[] for _ in range(self.scenario.web_processes)]
        for answer in range(self.scenario.answers):
            shares[choose(len(shares))].append(answer)
        for share in shares:
            self.env.process(self._web_process(share))
        for process in (self._sweeps(), self._renewals(), self._looks()):
            self.env.process(process)
        if self.scenario.answers:
            self.env.run(until=self._drained)

    def _web_process(self, answers: Sequence[int]) -> Process:
        """One producer: while a batch is being committed, the next one gathers."""
        done = 0
        while done < len(answers):
            if (pause := self.arrived_at[answers[done]] - self.env.now) > 0:
                yield self.env.timeout(pause)
            end = done + 1
            while (
                end < len(answers)
                and end - done < MAX_BATCH
                and self.arrived_at[answers[end]] <= self.env.now
            ):
                end += 1
            batch = tuple(answers[done:end])
            done = end
            for answer in batch:
                self.sent_at[answer] = self.env.now
            committed = self.database.ends(self.env.now, "submit", self.service.submit(len(batch)))
            yield self.env.timeout(committed - self.env.now)
            self.database.hand_off(batch)
            self.queue.ring(batch)
            if not self._something_due.triggered:
                self._something_due.succeed()

    def _sweeps(self) -> Process:
        """The workers' sweeps in turn, one at a time; those that could find nothing are left out."""
        turn = 0
        while True:
            oldest = self.database.oldest
            if oldest is None:
                self._something_due = self.env.event()
                yield self._something_due
                # Younger than this, it is on its way.
                yield self.env.timeout(OVERDUE_SECONDS)
            yield self.env.timeout(self.scenario.sweep_seconds / len(self._workers))
            oldest = self.database.oldest
            if oldest is None or self.env.now - self.arrived_at[oldest] < OVERDUE_SECONDS:
                continue
            found = self.database.ends(self.env.now, "sweep", self.service.sweep_statement_seconds)
            yield self.env.timeout(found - self.env.now)
            turn = (turn + 1) % len(self._workers)
            self._workers[turn].more()
            self.queue.ring(DRAIN)

    def _renewals(self) -> Process:
        """The workers renew their leases in turn, each three times within a lease."""
        pause_seconds = self.scenario.lease_seconds / 3 / len(self._workers)
        while True:
            for worker in self._workers:
                yield self.env.timeout(pause_seconds)
                if held := worker.scoring:
                    self.database.ends(self.env.now, "renew", self.service.renew(held))

    def _looks(self) -> Process:
        """Write down how things stand, every so often."""
        while True:
            self.look()
            yield self.env.timeout(self.scenario.sample_seconds)

    def look(self) -> None:
        """Write down how things stand."""
        now, oldest = self.env.now, self.database.oldest
        self.samples.append(
            Sample(
                at_seconds=now,
                arrived=bisect_right(self.arrived_at, now),
                scored=self._scored,
                scoring=sum(worker.scoring for worker in self._workers),
                waiting_seconds=0.0 if oldest is None else now - self.arrived_at[oldest],
                permits=self.provider.granted,
                database_seconds=self.database.busy_seconds,
                loop_seconds=self.loop_seconds,
            )
        )


def simulate(
    scenario: Scenario,
    service: ServiceTimes | None = None,
    *,
    arrived_at: Sequence[float] | None = None,
    model_seconds: Sequence[float] | None = None,
    processor_seconds: float | None = None,
) -> Run:
    """Simulate until every answer is scored.

    Args:
        scenario: What happens.
        service: What things cost; by default as measured once.
        arrived_at: When each answer is submitted, in order; by default the scenario's law.
        model_seconds: How long the model takes for each; by default the scenario's log-normal draws.
        processor_seconds: A worker's processor time for one answer; by default through the model client.

    Returns:
        The times of every answer, and how things stood meanwhile.
    """
    service = service or ServiceTimes()
    system = System(
        scenario,
        service,
        arrival_times(scenario) if arrived_at is None else arrived_at,
        model_times(scenario) if model_seconds is None else model_seconds,
        service.model_processor_seconds_per_answer if processor_seconds is None else processor_seconds,
    )
    system.run()
    system.look()
    return Run(
        scenario=scenario,
        service=service,
        arrived_at=system.arrived_at,
        sent_at=system.sent_at,
        leased_at=system.leased_at,
        scored_at=system.scored_at,
        samples=system.samples,
        statements=system.database.statements,
        longest_queue=system.queue.longest,
    )
