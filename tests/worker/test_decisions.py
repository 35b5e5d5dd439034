"""What becomes of an answer after one try, for every outcome and every history."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.scripted import a_lease, good_score
from worker.decisions import (
    FAILED_CAP_SECONDS,
    POSTPONED_CAP_SECONDS,
    RETRY_AFTER_CAP_SECONDS,
    SUSPICIONS_PER_ATTEMPT,
    Bury,
    Fail,
    HandBack,
    Postpone,
    Settle,
    Surroundings,
    backoff_seconds,
    decide,
    hand_back,
    handoff_of,
    unstorable,
)
from worker.scorers.outcomes import (
    AttemptFailed,
    Hopeless,
    Misconfigured,
    ProviderTrouble,
    Refused,
    ScoringError,
)

COUNTS = st.integers(min_value=0, max_value=32_000)
JITTERS = st.floats(min_value=0, max_value=1)
SURROUNDINGS = st.builds(Surroundings, breaker_open=st.booleans(), others_succeeded=st.booleans())
LEASES = st.builds(
    lambda attempts, postponements, suspicions: a_lease(
        attempts=attempts, postponements=postponements, suspicions=suspicions
    ),
    COUNTS,
    COUNTS,
    st.integers(min_value=0, max_value=SUSPICIONS_PER_ATTEMPT),
)
RETRY_AFTER = st.none() | st.floats(allow_nan=True, allow_infinity=True) | st.integers()
TROUBLES = st.builds(lambda seconds: ProviderTrouble("429", retry_after_seconds=seconds), RETRY_AFTER)


@given(lease=LEASES, trouble=TROUBLES, around=SURROUNDINGS, attempts=st.integers(1, 100), jitter=JITTERS)
def test_infrastructure_never_uses_up_an_attempt(
    lease: Any, trouble: ProviderTrouble, around: Surroundings, attempts: int, jitter: float
) -> None:
    """Provider trouble postpones, however often it came before, unless it is the fifth suspicious time."""
    decision = decide(lease, trouble, around, max_attempts=attempts, jitter=jitter)

    suspicious = around.others_succeeded and not around.breaker_open
    if suspicious and lease.suspicions + 1 >= SUSPICIONS_PER_ATTEMPT:
        assert isinstance(decision, (Fail, Bury))
    else:
        assert isinstance(decision, Postpone)
        assert decision.release.suspicious == suspicious


@given(lease=LEASES, trouble=TROUBLES, around=SURROUNDINGS, jitter=JITTERS)
def test_a_postponement_ends(
    lease: Any, trouble: ProviderTrouble, around: Surroundings, jitter: float
) -> None:
    """No pause is negative, infinite or beyond its cap, whatever the provider asks for."""
    decision = decide(lease, trouble, around, max_attempts=5, jitter=jitter)
    if not isinstance(decision, Postpone):
        return

    pause = decision.release.delay_seconds
    asked = trouble.retry_after_seconds or 0
    assert 0 <= pause <= max(POSTPONED_CAP_SECONDS, RETRY_AFTER_CAP_SECONDS)
    if around.breaker_open:
        assert pause == 0
    elif not math.isnan(asked):
        assert pause >= min(asked, RETRY_AFTER_CAP_SECONDS)
        assert pause <= max(POSTPONED_CAP_SECONDS, asked)


@given(lease=LEASES, around=SURROUNDINGS, attempts=st.integers(1, 100), jitter=JITTERS)
def test_attempts_are_bounded(lease: Any, around: Surroundings, attempts: int, jitter: float) -> None:
    """A failed attempt is tried again only while another attempt is left."""
    decision = decide(lease, AttemptFailed("Bad JSON."), around, max_attempts=attempts, jitter=jitter)

    if lease.attempts + 1 >= attempts:
        assert isinstance(decision, Bury)
        assert f"attempt {lease.attempts + 1} of {attempts}" in (decision.release.reason or "")
    else:
        assert isinstance(decision, Fail)
        assert 0 < decision.release.delay_seconds <= FAILED_CAP_SECONDS


def test_an_answer_that_always_fails_dies_at_the_last_attempt() -> None:
    """Followed from its first try, it is tried exactly ``max_attempts`` times."""
    lease, tries = a_lease(), 0
    while True:
        tries += 1
        decision = decide(lease, AttemptFailed(), Surroundings(), max_attempts=5)
        if isinstance(decision, Bury):
            break
        lease = replace(lease, attempts=lease.attempts + 1)

    assert tries == 5


def test_an_answer_that_only_the_provider_chokes_on_dies_too() -> None:
    """Five suspicious postponements are one attempt: 25 tries, and then a reason that says so."""
    lease, tries = a_lease(), 0
    while True:
        tries += 1
        decision = decide(lease, ProviderTrouble("500."), Surroundings(others_succeeded=True), max_attempts=5)
        if isinstance(decision, Bury):
            break
        if isinstance(decision, Fail):
            lease = replace(lease, attempts=lease.attempts + 1, suspicions=0)
        else:
            lease = replace(lease, postponements=lease.postponements + 1, suspicions=lease.suspicions + 1)

    assert tries == 25
    assert "while other answers were scored" in (decision.release.reason or "")


@pytest.mark.parametrize("outcome", [Hopeless("Never."), Refused("Never."), Misconfigured("Never.")])
@given(lease=LEASES, around=SURROUNDINGS)
def test_the_hopeless_dies_at_once(outcome: ScoringError, lease: Any, around: Surroundings) -> None:
    """No second try where none can help; the reason is kept word for word."""
    decision = decide(lease, outcome, around, max_attempts=100)

    assert isinstance(decision, Bury)
    assert decision.release.reason == "Never."


@given(lease=LEASES, around=SURROUNDINGS)
def test_a_score_is_settled_whatever_came_before(lease: Any, around: Surroundings) -> None:
    """A score is a score; model and prompt version go into columns of their own, not twice."""
    decision = decide(lease, good_score(), around, max_attempts=1)

    assert isinstance(decision, Settle)
    assert decision.settlement.model_id == "scripted"
    assert decision.settlement.score_data["overall_score"] == 4.0
    assert not decision.settlement.score_data.keys() & {"model_id", "prompt_version"}


def test_an_outcome_of_ones_own_is_a_failed_attempt() -> None:
    """A subclass that is none of ours counts as the scorer's verdict."""

    class OwnError(ScoringError):
        """Mine."""

    decision = decide(a_lease(), OwnError(), Surroundings(), max_attempts=5)

    assert isinstance(decision, Fail)
    assert decision.release.reason == "Mine."


@given(tries=COUNTS, jitter=JITTERS)
def test_pauses_grow_to_their_cap(tries: int, jitter: float) -> None:
    """At least half of each pause is fixed, the pause doubles, and it never exceeds its cap."""
    pause = backoff_seconds(tries, base_seconds=5, cap_seconds=600, jitter=jitter)
    full = min(600, 5 * 2.0 ** min(tries, 50))

    assert full / 2 <= pause <= full


def test_the_first_pauses() -> None:
    """5, 10, 20 seconds after failures; 1, 2, 4 after trouble; without jitter half of that."""
    failed = [
        decide(a_lease(attempts=n), AttemptFailed(), Surroundings(), max_attempts=9, jitter=1)
        for n in (0, 1, 2)
    ]
    postponed = [
        decide(a_lease(postponements=n), ProviderTrouble(), Surroundings(), max_attempts=9, jitter=0)
        for n in (0, 1, 2)
    ]

    assert [each.release.delay_seconds for each in failed if isinstance(each, Fail)] == [5, 10, 20]
    assert [each.release.delay_seconds for each in postponed if isinstance(each, Postpone)] == [0.5, 1, 2]


@given(lease=LEASES, attempts=st.integers(1, 100))
def test_a_score_that_cannot_be_stored_is_a_failed_attempt(lease: Any, attempts: int) -> None:
    """It uses up an attempt like any other failure, so that it ends."""
    decision = unstorable(lease, max_attempts=attempts)

    assert isinstance(decision, Bury if lease.attempts + 1 >= attempts else Fail)


@given(lease=LEASES)
def test_handing_back_says_nothing(lease: Any) -> None:
    """A worker that stops leaves no reason, no pause and no suspicion."""
    decision = hand_back(lease)

    assert isinstance(decision, HandBack)
    assert (decision.release.delay_seconds, decision.release.reason, decision.release.suspicious) == (
        0,
        None,
        False,
    )
    assert decision.release.lease_token == lease.lease_token
    assert handoff_of(decision) == lease.handoff_id


@pytest.mark.parametrize("reason", ["a\x00b", "lone \ud800", ValueError("an object"), 7])
@pytest.mark.parametrize("kind", [AttemptFailed, ProviderTrouble, Hopeless])
def test_a_reason_can_always_be_stored(kind: type[ScoringError], reason: Any) -> None:
    """A reason that PostgreSQL would refuse is mended: it must not cost the release, and the attempt with it."""
    decision = decide(a_lease(), kind(reason), Surroundings(), max_attempts=5)

    assert not isinstance(decision, Settle)
    stored = decision.release.reason
    assert isinstance(stored, str)
    assert "\x00" not in stored
    stored.encode()
