"""The breaker: opened by many, closed by one, and never by one answer."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.breaker import (
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    OPENS_AFTER_ANSWERS,
    PROBE_PATIENCE_SECONDS,
    RETRY_AFTER_CAP_SECONDS,
    Breaker,
)


class Clock:
    """Goes only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(clock: Clock, **trouble: Any) -> Breaker:
    """A breaker that five answers have opened."""
    breaker = Breaker(clock)
    for handoff_id in range(OPENS_AFTER_ANSWERS):
        breaker.failed(handoff_id, "503", **trouble)
    return breaker


@given(failures=st.integers(min_value=1, max_value=200))
def test_one_answer_never_opens_it(failures: int) -> None:
    """However often one answer meets trouble, the others go on."""
    breaker = Breaker(Clock())

    for _ in range(failures):
        breaker.failed(1, "500")

    assert not breaker.is_open
    assert breaker.allowance(100) == 100


def test_the_fifth_answer_in_a_row_opens_it(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Four answers are no outage; the fifth without a success in between is, and it is logged once."""
    breaker = Breaker(clock)
    for handoff_id in range(4):
        breaker.failed(handoff_id, "503")
    assert breaker.allowance(9) == 9

    breaker.failed(4, "503")

    assert breaker.is_open
    assert breaker.allowance(100) == 0
    assert breaker.reason == "503"
    assert len(caplog.records) == 1


def test_a_success_in_between_starts_the_count_anew(clock: Clock) -> None:
    """A provider that serves some answers is no outage."""
    breaker = Breaker(clock)
    for handoff_id in range(40):
        breaker.failed(handoff_id, "429")
        if handoff_id % 4 == 3:
            breaker.succeeded()

    assert not breaker.is_open


def test_only_one_probe_goes_out(clock: Clock) -> None:
    """After the pause one answer may go, and no second one while the first is waited for."""
    breaker = opened(clock)
    clock.now += FIRST_PAUSE_SECONDS

    assert breaker.allowance(100) == 1
    assert breaker.allowance(0) == 0
    breaker.started(7)
    assert breaker.allowance(100) == 0


def test_a_probe_that_hangs_makes_way(clock: Clock) -> None:
    """A provider that never answers must not hide its own recovery until the call's time-out."""
    breaker = opened(clock)
    clock.now += FIRST_PAUSE_SECONDS
    breaker.started(7)
    assert breaker.seconds_until_probe() == PROBE_PATIENCE_SECONDS
    clock.now += PROBE_PATIENCE_SECONDS

    assert breaker.allowance(100) == 1
    breaker.started(8)
    breaker.failed(7, "time-out")
    assert breaker.allowance(100) == 0
    breaker.succeeded(8)

    assert breaker.allowance(100) == 100


def test_full_speed_at_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """The first success closes it: everything may go again, and one line says so."""
    caplog.set_level(logging.INFO)
    breaker = opened(clock)
    clock.now += FIRST_PAUSE_SECONDS
    breaker.started(7)

    breaker.succeeded()

    assert breaker.allowance(100) == 100
    assert breaker.reason is None
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_a_straggler_s_success_closes_it_too(clock: Clock) -> None:
    """Whoever brings it: an answer that was with the provider before the trouble counts."""
    breaker = opened(clock)

    breaker.succeeded(99)

    assert breaker.allowance(100) == 100


def test_a_pause_that_was_asked_for_is_kept(clock: Clock) -> None:
    """A provider that said when to come back meant everybody: what it still serves of the old does not shorten it."""
    breaker = opened(clock, retry_after_seconds=20)

    breaker.succeeded(99)
    assert breaker.allowance(100) == 0
    clock.now += 20
    breaker.started(7)
    breaker.succeeded(7)

    assert breaker.allowance(100) == 100


def test_shared_it_probes_with_leave_only(clock: Clock) -> None:
    """Of all who share it one probes at a time; a leave that is not used soon is void."""
    breaker = Breaker(clock)
    breaker.share("503", 2.0, asked_to_wait=False)

    assert (breaker.allowance(100), breaker.awaits_leave) == (0, True)
    breaker.give_leave()
    assert (breaker.allowance(100), breaker.awaits_leave) == (1, False)
    clock.now += PROBE_PATIENCE_SECONDS
    assert (breaker.allowance(100), breaker.awaits_leave) == (0, True)
    breaker.give_leave()
    breaker.started(7)
    assert breaker.allowance(100) == 0
    breaker.failed(7, "503")
    assert breaker.pause_seconds == 4.0


def test_nobody_can_keep_the_leave_for_ever(clock: Clock) -> None:
    """Whoever can write to Redis can slow the probes down, and not stop them."""
    breaker = Breaker(clock)
    breaker.share("forged", 6.0, asked_to_wait=True)

    clock.now += RETRY_AFTER_CAP_SECONDS

    assert breaker.allowance(100) == 1


def test_alone_it_probes_by_itself(clock: Clock) -> None:
    """Without Redis nobody can give leave."""
    breaker = Breaker(clock)
    breaker.share("503", 2.0, asked_to_wait=False)

    breaker.go_alone()

    assert breaker.allowance(100) == 1


def test_others_close_it(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """One worker's success is everybody's."""
    caplog.set_level(logging.INFO)
    breaker = Breaker(clock)
    breaker.share("503", 2.0, asked_to_wait=False)

    breaker.close_with_others()
    breaker.close_with_others()

    assert breaker.allowance(100) == 100
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_a_failed_probe_doubles_the_pause_up_to_its_cap(clock: Clock) -> None:
    """1, 2, 4, 6, 6 seconds, each a little shorter by chance; recovery is noticed within ten seconds."""
    breaker = opened(clock)
    expected = FIRST_PAUSE_SECONDS
    for _ in range(6):
        pause = breaker.seconds_until_probe()
        assert pause is not None
        assert 0.75 * expected <= pause <= expected
        clock.now += pause
        breaker.started(99)
        breaker.failed(99, "still")
        expected = min(LONGEST_PAUSE_SECONDS, 2 * expected)

    breaker.succeeded()
    reopened = opened(clock)
    assert (reopened.seconds_until_probe() or 0) <= FIRST_PAUSE_SECONDS


def test_stragglers_do_not_prolong_it(clock: Clock) -> None:
    """What fails while it is open and is no probe changes nothing."""
    breaker = opened(clock)
    before = breaker.seconds_until_probe()

    for handoff_id in range(100, 200):
        breaker.failed(handoff_id, "503", retry_after_seconds=60)

    assert breaker.seconds_until_probe() == before


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        (30.0, 30.0, 30.0),
        (1e9, RETRY_AFTER_CAP_SECONDS, RETRY_AFTER_CAP_SECONDS),
        (float("inf"), RETRY_AFTER_CAP_SECONDS, RETRY_AFTER_CAP_SECONDS),
        (0.0, 0.75, 1.0),
        (-5.0, 0.75, 1.0),
        (float("nan"), 0.75, 1.0),
        (None, 0.75, 1.0),
    ],
)
def test_retry_after_is_honoured_within_reason(
    clock: Clock, asked: float | None, least: float, most: float
) -> None:
    """A provider may ask for more time, but neither for hours nor for less than the pause."""
    breaker = opened(clock, retry_after_seconds=asked)

    assert least <= (breaker.seconds_until_probe() or 0) <= most


def test_a_probe_that_was_given_up_makes_way(clock: Clock) -> None:
    """A worker that stops does not leave a probe behind that nobody waits for."""
    breaker = opened(clock)
    clock.now += FIRST_PAUSE_SECONDS
    breaker.started(7)

    breaker.abandoned(8)
    assert breaker.allowance(10) == 0
    breaker.abandoned(7)

    assert breaker.allowance(10) == 1


class BreakerMachine(RuleBasedStateMachine):
    """Any order of events, on a clock that only goes forward."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = Breaker(self.clock)
        self.troubled: set[int] = set()
        self.probes: dict[int, float] = {}
        self.next_id = 0

    @rule(seconds=st.floats(min_value=0, max_value=20))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @precondition(lambda self: self.breaker.allowance(8) > 0)
    @rule()
    def start(self) -> None:
        self.next_id += 1
        if self.breaker.is_open:
            self.probes[self.next_id] = self.clock.now
        self.breaker.started(self.next_id)

    @rule(handoff_id=st.integers(min_value=-8, max_value=-1), retry_after=st.none() | st.floats(0, 1e6))
    def fail(self, handoff_id: int, retry_after: float | None) -> None:
        self.troubled.add(handoff_id)
        was_open = self.breaker.is_open
        self.breaker.failed(handoff_id, "503", retry_after_seconds=retry_after)
        assert self.breaker.is_open == (was_open or len(self.troubled) >= OPENS_AFTER_ANSWERS)

    @precondition(lambda self: self.probes)
    @rule(data=st.data())
    def probe_fails(self, data: st.DataObject) -> None:
        probe = data.draw(st.sampled_from(sorted(self.probes)))
        del self.probes[probe]
        self.troubled.add(probe)
        self.breaker.failed(probe, "503")
        assert self.breaker.allowance(8) == 0

    @precondition(lambda self: self.probes)
    @rule(data=st.data())
    def probe_is_given_up(self, data: st.DataObject) -> None:
        probe = data.draw(st.sampled_from(sorted(self.probes)))
        del self.probes[probe]
        self.breaker.abandoned(probe)

    @precondition(lambda self: self.probes)
    @rule(data=st.data())
    def probe_succeeds(self, data: st.DataObject) -> None:
        self.breaker.succeeded(data.draw(st.sampled_from(sorted(self.probes))))
        self._closed()

    @rule()
    def a_straggler_succeeds(self) -> None:
        waits = self.breaker.asked_to_wait
        self.breaker.succeeded(0)
        if waits:
            assert self.breaker.is_open
        else:
            self._closed()

    def _closed(self) -> None:
        self.troubled.clear()
        self.probes.clear()
        assert self.breaker.allowance(8) == 8

    @invariant()
    def it_always_comes_back(self) -> None:
        """Open, it knows when to send the next probe, in bounded time, whatever became of the last."""
        pause = self.breaker.seconds_until_probe()
        if not self.breaker.is_open:
            assert pause is None
            assert self.breaker.allowance(8) == 8
        else:
            assert pause is not None
            assert 0 <= pause <= RETRY_AFTER_CAP_SECONDS
            assert self.breaker.allowance(8) == (0 if pause else 1)

    @invariant()
    def probes_are_few(self) -> None:
        """However long the provider hangs, one probe is sent within one patience."""
        lately = [at for at in self.probes.values() if at > self.clock.now - PROBE_PATIENCE_SECONDS]
        assert len(lately) <= 1


BreakerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_any_order_of_events = BreakerMachine.TestCase
