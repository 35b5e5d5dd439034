"""The scoring pool: so many answers with the scorer at the same time."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from worker.decisions import Surroundings, decide, hand_back, storable_reason
from worker.observer import NOBODY
from worker.scorers.outcomes import AttemptFailed, Misconfigured, ProviderTrouble, ScoringError
from worker.scorers.protocol import Score

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from worker.breaker import Breaker
    from worker.decisions import Transition
    from worker.leased import Lease
    from worker.observer import Observer
    from worker.scorers.protocol import Question, Scorer, Usage
    from worker.settler import Settler

logger = logging.getLogger(__name__)


# A scorer that cancels its own task says nothing about the answer, but trying for ever would not help.
_AMISS = AttemptFailed("The scorer ended without a score and without an error.")


@dataclass(slots=True)
class _Held:
    """A handoff from its lease until its transition is committed."""

    lease: Lease
    lease_token: UUID
    since: float
    scoring: asyncio.Task[Score | ScoringError] | None = None
    given_up: bool = False


# A scorer that was cancelled may take so long over its end. Then it does not listen, and its slot is lost.
UNSTOPPABLE_SECONDS = 30.0
# A score is read by people; megabytes of reasoning would stall the commit that they share with others.
MAX_SCORE_CHARS = 100_000


def check_score(score: Score, question: Question) -> None:
    """Refuse a score that its question does not allow.

    Raises:
        AttemptFailed: It is off the scale, or far too long.
    """
    texts = (score.reasoning, score.model_id, score.prompt_version, *score.key_observations)
    notes = (part for dimension in score.dimensions for part in (dimension.name, dimension.note))
    if sum(map(len, texts)) + sum(map(len, notes)) > MAX_SCORE_CHARS:
        msg = f"The scorer returned more than {MAX_SCORE_CHARS:,} characters."
        raise AttemptFailed(msg)
    for value in (score.overall_score, *(dimension.score for dimension in score.dimensions)):
        if not question.scale_min <= value <= question.scale_max:
            msg = f"The scorer returned a score off the scale of {question.scale_min:g} to {question.scale_max:g}."
            raise AttemptFailed(msg)


class ScoringPool:
    """Runs the scorer. A slot is free as soon as the scorer returns, not when its score is committed.

    Args:
        scorer: What scores.
        settler: What performs the decisions.
        breaker: Told how the provider does.
        on_cost: Told of each answer what it cost; None where nobody knows.
        slots: How many answers are with the scorer at the same time.
        answer_seconds: Longest time with the scorer; nobody renews the lease beyond it.
        max_attempts: So many failed attempts, and the handoff is dead.
        on_change: Called when a slot or the whole pool becomes free.
        observer: Told of every answer that goes to the scorer, and how it comes back.
    """

    def __init__(
        self,
        *,
        scorer: Scorer,
        settler: Settler,
        breaker: Breaker,
        on_cost: Callable[[int, Usage | None], None],
        slots: int,
        answer_seconds: float,
        max_attempts: int,
        on_change: Callable[[], None],
        observer: Observer = NOBODY,
    ) -> None:
        self._scorer = scorer
        self._settler = settler
        self._breaker = breaker
        self._on_cost = on_cost
        self.slots = slots
        self._answer_seconds = answer_seconds
        self._max_attempts = max_attempts
        self._on_change = on_change
        self._observer = observer
        self._held: dict[int, _Held] = {}
        self._scoring: dict[str, int] = {"live": 0, "bulk": 0}
        self._successes = 0
        self._stopping = False
        # How many scorers went on although they were cancelled.
        self.stuck = 0

    @property
    def free_slots(self) -> int:
        """How many more answers could go to the scorer now."""
        return self.slots - sum(self._scoring.values())

    @property
    def holds_nothing(self) -> bool:
        """Whether every answer is scored and every result committed."""
        return not self._held

    @property
    def unstoppable(self) -> int:
        """How many scorers were cancelled long ago, because their time was up, and go on."""
        oldest = time.monotonic() - self._answer_seconds - UNSTOPPABLE_SECONDS
        return sum(
            held.since < oldest and held.scoring is not None and not held.scoring.done()
            for held in self._held.values()
        )

    def in_lane(self, lane: str) -> int:
        """How many answers of a lane are with the scorer."""
        return self._scoring[lane]

    def renewable(self) -> list[tuple[int, UUID]]:
        """The leases to keep: not those that had their time."""
        oldest = time.monotonic() - self._answer_seconds
        return [(number, held.lease_token) for number, held in self._held.items() if held.since > oldest]

    def is_scoring(self, handoff_id: int) -> bool:
        """Whether this handoff's answer is with the scorer."""
        held = self._held.get(handoff_id)
        return held is not None and held.scoring is not None and not held.scoring.done()

    def start(self, lease: Lease, question: Question) -> None:
        """Send an answer to the scorer; returns at once."""
        if held := self._held.get(lease.handoff_id):
            # Our own lease ran out and we leased it again: one run is enough, under the new token.
            held.lease_token = lease.lease_token
            return
        held = _Held(lease, lease.lease_token, time.monotonic())
        self._held[lease.handoff_id] = held
        if self._stopping:
            self._settler.put(lease, hand_back(lease))
            return
        self._observer.leased(lease)
        self._scoring[lease.lane] += 1
        self._breaker.started(lease.handoff_id)
        held.scoring = asyncio.get_running_loop().create_task(
            self._outcome(lease, question), name=f"score-{lease.response_id}"
        )
        # A callback and not an await: it comes whatever happens to the task, even before its first step.
        held.scoring.add_done_callback(partial(self._scored, held, self._successes))

    def give_back(self, lease: Lease) -> None:
        """Hand a lease back that cannot be started here."""
        if lease.handoff_id not in self._held:
            self._held[lease.handoff_id] = _Held(lease, lease.lease_token, time.monotonic())
            self._settler.put(lease, hand_back(lease))

    def done(self, handoff_id: int) -> None:
        """Forget a handoff whose transition is committed."""
        self._held.pop(handoff_id, None)
        self._on_change()

    async def stop(self, grace_seconds: float, hurry: asyncio.Event) -> None:
        """Let the scorer finish what it can within the grace time; hand the rest back.

        Args:
            grace_seconds: Longest wait, seconds.
            hurry: Ends the wait at once.
        """
        self._stopping = True
        tasks = {held.scoring for held in self._held.values() if held.scoring and not held.scoring.done()}
        if tasks and grace_seconds > 0:
            impatience = asyncio.ensure_future(hurry.wait())
            finishing = asyncio.ensure_future(asyncio.wait(tasks))
            await asyncio.wait(
                {impatience, finishing}, timeout=grace_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            impatience.cancel()
            finishing.cancel()
        left = {task for task in tasks if not task.done()}
        for task in left:
            task.cancel()
        if left:
            logger.info(
                "Answers that were not finished in time are handed back.", extra={"answers": len(left)}
            )
            # A scorer that ignores its cancellation must not keep the process alive.
            await asyncio.wait(left, timeout=1.0)
        for held in list(self._held.values()):
            if held.scoring and not held.scoring.done():
                held.given_up = True
                self.stuck += 1
                lease = held.lease.under(held.lease_token)
                self._settler.put(lease, hand_back(lease))

    def _scored(self, held: _Held, successes_before: int, task: asyncio.Task[Score | ScoringError]) -> None:
        """The scorer is done with an answer: free its slot and decide what becomes of it."""
        # The work as it was begun, under the token that it has now.
        lease = held.lease.under(held.lease_token)
        self._scoring[lease.lane] -= 1
        outcome = _AMISS if task.cancelled() or task.exception() else task.result()
        interrupted = task.cancelled() and self._stopping
        self._observer.scored(lease, None if interrupted else outcome, time.monotonic() - held.since)
        try:
            self._on_cost(lease.handoff_id, outcome.usage if isinstance(outcome, Score) else None)
        except Exception as exc:  # noqa: BLE001 - foreign values
            self._log_nonsense(lease, exc)
            outcome = _AMISS
        if held.given_up:
            return
        if interrupted:
            self._breaker.abandoned(lease.handoff_id)
            self._settler.put(lease, hand_back(lease))
            self._on_change()
            return
        others_succeeded = self._successes > successes_before
        try:
            transition = self._judge(lease, outcome, others_succeeded=others_succeeded)
        except Exception as exc:  # noqa: BLE001 - foreign values
            # An outcome with, say, a text for seconds. Without a transition the answer would be held for ever.
            self._log_nonsense(lease, exc)
            transition = self._judge(lease, _AMISS, others_succeeded=others_succeeded)
        self._settler.put(lease, transition)
        self._on_change()

    @staticmethod
    def _log_nonsense(lease: Lease, exc: Exception) -> None:
        logger.error(
            "The scorer's outcome makes no sense.",  # and no traceback: its values may quote the answer
            extra={"response_id": lease.response_id, "error": type(exc).__name__},
        )

    def _judge(self, lease: Lease, outcome: Score | ScoringError, *, others_succeeded: bool) -> Transition:
        was_open = self._breaker.is_open
        self._tell_breaker(lease, outcome)
        surroundings = Surroundings(
            breaker_open=was_open or self._breaker.is_open, others_succeeded=others_succeeded
        )
        transition = decide(lease, outcome, surroundings, max_attempts=self._max_attempts)
        if isinstance(outcome, Score):
            self._successes += 1
        return transition

    async def _outcome(self, lease: Lease, question: Question) -> Score | ScoringError:
        """Ask the scorer, and turn whatever it does into an outcome."""
        time_limit = asyncio.timeout(self._answer_seconds)
        try:
            async with time_limit:
                self._observer.scoring(lease)
                score: object = await self._scorer.score(question, lease.answer)
            if not isinstance(score, Score):
                return AttemptFailed(f"The scorer returned a {type(score).__name__} and no Score.")
            check_score(score, question)
        except ScoringError as exc:
            return exc
        except TimeoutError:
            if time_limit.expired():
                return ProviderTrouble(f"No score within {self._answer_seconds:g} s.")
            return ProviderTrouble("The scorer timed out.")
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - foreign code; whatever it raises is its verdict
            # Neither the message nor the values of a traceback are logged: both may quote the answer.
            place = traceback.extract_tb(exc.__traceback__)[-1]
            logger.error(  # noqa: TRY400 - no traceback, see above
                "The scorer raised an error that is no outcome.",
                extra={
                    "response_id": lease.response_id,
                    "error": type(exc).__name__,
                    "place": f"{place.filename}:{place.lineno}",
                },
            )
            return AttemptFailed(f"The scorer raised {type(exc).__name__}.")
        return score

    def _tell_breaker(self, lease: Lease, outcome: Score | ScoringError) -> None:
        match outcome:
            case ProviderTrouble():
                reason = storable_reason(outcome.reason)
                self._breaker.failed(
                    lease.handoff_id, reason, retry_after_seconds=outcome.retry_after_seconds
                )
            case Misconfigured():
                self._breaker.failed(lease.handoff_id, storable_reason(outcome.reason))
            case _:
                self._breaker.succeeded(lease.handoff_id)
