"""Pacing: work that can wait leaves processor time to work that cannot."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.pace import LONGEST_PAUSE_SECONDS, Pace


class Times:
    """A wall clock and a processor's, which go when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.used = 5.0

    def pass_by(self, *, seconds: float, busy: float) -> None:
        self.now += seconds
        self.used += seconds * busy


@pytest.fixture
def times() -> Times:
    return Times()


def paced(times: Times, share: float = 0.5) -> Pace:
    return Pace(share, clock=lambda: times.now, cpu=lambda: times.used)


def test_the_first_piece_begins_at_once() -> None:
    """Whatever the process has done before."""
    assert Pace(0.5, cpu=lambda: 1e9).pause_seconds() == 0


def test_a_busy_thread_waits_as_long_as_it_worked(times: Times) -> None:
    """Half of the time is its share: 20 ms of work need 20 ms of idleness."""
    pace = paced(times)
    pace.begin()

    times.pass_by(seconds=0.02, busy=1.0)

    assert pace.pause_seconds() == pytest.approx(0.02)
    times.pass_by(seconds=0.02, busy=0.0)
    assert pace.pause_seconds() == pytest.approx(0.0)


def test_a_model_s_time_is_not_ours(times: Times) -> None:
    """Where the thread was idle anyway, nothing waits."""
    pace = paced(times)
    pace.begin()

    times.pass_by(seconds=2.0, busy=0.1)

    assert pace.pause_seconds() == 0


def test_live_work_goes_first_but_not_for_ever(times: Times) -> None:
    """A process that is busy with live answers alone still rescores a little."""
    pace = paced(times)
    pace.begin()

    times.pass_by(seconds=LONGEST_PAUSE_SECONDS, busy=1.0)

    assert pace.pause_seconds() == 0


@given(share=st.floats(0.05, 1.0), spans=st.lists(st.tuples(st.floats(0, 0.2), st.floats(0, 1)), max_size=30))
def test_pauses_are_bounded(share: float, spans: list[tuple[float, float]]) -> None:
    """Never negative, never longer than the longest."""
    times = Times()
    pace = paced(times, share)
    for seconds, busy in spans:
        assert 0 <= pace.pause_seconds() <= LONGEST_PAUSE_SECONDS
        if pace.pause_seconds() == 0:
            pace.begin()
        times.pass_by(seconds=seconds, busy=busy)


def test_it_reads_the_real_clocks() -> None:
    """By default this thread's processor time against the wall's."""
    pace = Pace(0.01)
    pace.begin()
    ends = time.thread_time() + 0.01
    while time.thread_time() < ends:
        pass

    assert pace.pause_seconds() > 0
