"""What becomes of a handoff after one try: decided here, performed by the settler."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from storage.settlements import Release, Settlement
from worker.scorers.outcomes import AttemptFailed, Hopeless, ProviderTrouble, ScoringError
from worker.scorers.protocol import Score

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.leased import Lease

# A failed attempt waits 5 s, then 10, 20, … at most ten minutes: time for a model to be fixed or restarted.
FAILED_BASE_SECONDS, FAILED_CAP_SECONDS = 5.0, 600.0
# Provider trouble is shorter: 1 s, 2, 4, … at most one minute. In an outage the breaker does the waiting.
POSTPONED_BASE_SECONDS, POSTPONED_CAP_SECONDS = 1.0, 60.0
# No provider's Retry-After keeps an answer longer than this.
RETRY_AFTER_CAP_SECONDS = 900.0
# The fifth time that the provider fails on this answer while it serves others, the answer is the cause.
SUSPICIONS_PER_ATTEMPT = 5


@dataclass(frozen=True, slots=True)
class Settle:
    """A score was found: write it, delete the handoff."""

    settlement: Settlement


@dataclass(frozen=True, slots=True)
class Postpone:
    """Infrastructure failed: try again later, no attempt is used up."""

    release: Release


@dataclass(frozen=True, slots=True)
class Fail:
    """The attempt failed: try again later, one attempt is used up."""

    release: Release


@dataclass(frozen=True, slots=True)
class Bury:
    """Trying again is useless: dead, with its reason."""

    release: Release


@dataclass(frozen=True, slots=True)
class HandBack:
    """The worker stops: due at once for another one, nothing is counted."""

    release: Release


Transition = Settle | Postpone | Fail | Bury | HandBack
# What metrics and traces call them.
OUTCOMES: Mapping[type[Transition], str] = {
    Settle: "scored",
    Fail: "failed",
    Postpone: "postponed",
    Bury: "dead",
    HandBack: "handed_back",
}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What was going on while the answer was with the scorer.

    ``breaker_open``: the provider is known to be in trouble, and the breaker does the waiting.
    ``others_succeeded``: meanwhile the provider served other answers.
    """

    breaker_open: bool = False
    others_succeeded: bool = False


def handoff_of(transition: Transition) -> int:
    """Which handoff a transition is about."""
    return (
        transition.settlement.handoff_id if isinstance(transition, Settle) else transition.release.handoff_id
    )


def backoff_seconds(tries: int, *, base_seconds: float, cap_seconds: float, jitter: float) -> float:
    """How long to wait before the next try.

    Exponential with "equal jitter": half of the pause is fixed, half is random, so that answers that failed
    together do not come back together (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog,
    2015).

    Args:
        tries: How many came before, from 0.
        base_seconds: The longest first pause.
        cap_seconds: The longest pause ever.
        jitter: A random number from 0 to 1.

    Returns:
        Seconds.
    """
    # 2**63 is beyond every cap; larger exponents would overflow a float.
    pause = min(cap_seconds, base_seconds * 2.0 ** min(tries, 63))
    return pause / 2 + pause / 2 * jitter


def decide(
    lease: Lease,
    outcome: Score | ScoringError,
    surroundings: Surroundings,
    *,
    max_attempts: int,
    jitter: float | None = None,
) -> Transition:
    """Decide what becomes of a handoff. Pure, apart from the jitter where none is given.

    Args:
        lease: What was worked on, with what had happened to it before.
        outcome: The score, or why there is none.
        surroundings: What was going on meanwhile.
        max_attempts: So many failed attempts, and the handoff is dead.
        jitter: A random number from 0 to 1.

    Returns:
        The transition to perform.
    """
    luck = random.random() if jitter is None else jitter  # noqa: S311 - no secret
    match outcome:
        case Score():
            return Settle(_settlement(lease, outcome))
        case ProviderTrouble():
            return _after_trouble(lease, outcome, surroundings, max_attempts=max_attempts, luck=luck)
        case Hopeless():
            return Bury(_release(lease, outcome.reason))
        case AttemptFailed() | ScoringError():
            return _after_failure(lease, outcome.reason, max_attempts=max_attempts, luck=luck)
        case _:
            assert_never(outcome)


def hand_back(lease: Lease) -> HandBack:
    """Give up a lease without any verdict."""
    return HandBack(_release(lease, None))


def unstorable(lease: Lease, *, max_attempts: int) -> Transition:
    """What becomes of a handoff whose score PostgreSQL refuses to store: its attempt failed."""
    return _after_failure(
        lease,
        "The database refused to store the score that the scorer returned.",
        max_attempts=max_attempts,
        luck=0.5,
    )


def _after_trouble(
    lease: Lease, trouble: ProviderTrouble, surroundings: Surroundings, *, max_attempts: int, luck: float
) -> Transition:
    suspicious = surroundings.others_succeeded and not surroundings.breaker_open
    if suspicious and lease.suspicions + 1 >= SUSPICIONS_PER_ATTEMPT:
        reason = (
            f"{trouble.reason} This happened {SUSPICIONS_PER_ATTEMPT} times while other answers were scored."
        )
        return _after_failure(lease, reason, max_attempts=max_attempts, luck=luck)
    pause = 0.0
    if not surroundings.breaker_open:
        pause = backoff_seconds(
            lease.postponements,
            base_seconds=POSTPONED_BASE_SECONDS,
            cap_seconds=POSTPONED_CAP_SECONDS,
            jitter=luck,
        )
        pause = max(pause, min(trouble.retry_after_seconds or 0.0, RETRY_AFTER_CAP_SECONDS))
    return Postpone(_release(lease, trouble.reason, pause, suspicious=suspicious))


def _after_failure(lease: Lease, reason: str, *, max_attempts: int, luck: float) -> Transition:
    if lease.attempts + 1 >= max_attempts:
        return Bury(_release(lease, f"{reason} That was attempt {lease.attempts + 1} of {max_attempts}."))
    pause = backoff_seconds(
        lease.attempts, base_seconds=FAILED_BASE_SECONDS, cap_seconds=FAILED_CAP_SECONDS, jitter=luck
    )
    return Fail(_release(lease, reason, pause))


def _release(lease: Lease, reason: str | None, pause: float = 0.0, *, suspicious: bool = False) -> Release:
    return Release(
        lease.handoff_id,
        lease.lease_token,
        pause,
        None if reason is None else storable_reason(reason),
        suspicious,
    )


def storable_reason(reason: object) -> str:
    """A scorer's reason as text that PostgreSQL takes: a reason that is refused would cost the whole release."""
    return str(reason).replace("\x00", "").encode(errors="replace").decode()


def _settlement(lease: Lease, score: Score) -> Settlement:
    # A scorer may return what no check has seen. As a warning, its values, and the answer in them, would be printed.
    data = score.model_dump(mode="json", exclude={"model_id", "prompt_version"}, warnings="error")
    return Settlement(lease.handoff_id, lease.created_at, score.model_id, score.prompt_version, data)
