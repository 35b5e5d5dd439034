"""What a worker tells those who watch it: metrics and traces are observers, the work knows neither."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

Result = Literal["committed", "too_late", "in_doubt", "refused"]
"""How the end of a lease went, see :meth:`Observer.ended`."""

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from worker.decisions import Transition
    from worker.leased import Lease
    from worker.scorers.outcomes import ScoringError
    from worker.scorers.protocol import Score

logger = logging.getLogger(__name__)


class Observer:
    """Watches, and does nothing; whoever watches overrides what it wants to know.

    Everything is called in the event loop and must return at once. What it raises is logged and touches no answer,
    see :class:`Observers`.
    """

    def leased(self, lease: Lease) -> None:
        """An answer was leased and goes to the scorer."""

    def scoring(self, lease: Lease) -> None:
        """The scorer is about to begin. Called in the answer's own task: its context variables are the scorer's too."""

    def scored(self, lease: Lease, outcome: Score | ScoringError | None, seconds: float) -> None:
        """The scorer is done with an answer.

        Args:
            lease: The answer's.
            outcome: None where it was cancelled, because the worker stops.
            seconds: How long it was with the scorer.
        """

    def ended(self, lease: Lease, transition: Transition, result: Result, seconds: float) -> None:
        """A lease has ended.

        Args:
            lease: The answer's.
            transition: How it was to end.
            result: Whether PostgreSQL committed it, somebody else was first, nobody knows, or PostgreSQL refused to
                release it: then the lease runs out by itself.
            seconds: From the decision to the reply of PostgreSQL.
        """

    def lost(self, leases: int) -> None:
        """So many leases were lost while their answers are with the scorer: to another worker, or to an erasure."""

    def swept(self, found: Mapping[str, int]) -> None:
        """A sweep has ended; what it found, as returned by ``Sweep.run_once``."""

    def claimed(self, moved: int) -> None:
        """A claim was applied, and moved so many responses."""


NOBODY = Observer()


class Observers(Observer):
    """Several observers as one. What one of them raises reaches neither the work nor the others."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers  # read anew each time: who joins before the work starts misses nothing

    def leased(self, lease: Lease) -> None:
        self._tell(lambda observer: observer.leased(lease))

    def scoring(self, lease: Lease) -> None:
        self._tell(lambda observer: observer.scoring(lease))

    def scored(self, lease: Lease, outcome: Score | ScoringError | None, seconds: float) -> None:
        self._tell(lambda observer: observer.scored(lease, outcome, seconds))

    def ended(self, lease: Lease, transition: Transition, result: Result, seconds: float) -> None:
        self._tell(lambda observer: observer.ended(lease, transition, result, seconds))

    def lost(self, leases: int) -> None:
        self._tell(lambda observer: observer.lost(leases))

    def swept(self, found: Mapping[str, int]) -> None:
        self._tell(lambda observer: observer.swept(found))

    def claimed(self, moved: int) -> None:
        self._tell(lambda observer: observer.claimed(moved))

    def _tell(self, what: Callable[[Observer], object]) -> None:
        for observer in self._observers:
            try:
                what(observer)
            except Exception as exc:  # noqa: BLE001 - an answer must not be lost for want of a number
                # No traceback: its values may quote the answer.
                logger.error("An observer failed.", extra={"error": type(exc).__name__})  # noqa: TRY400
