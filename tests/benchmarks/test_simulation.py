"""The simulation keeps the laws that the system and queueing theory have, whatever the machine."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from statistics import fmean, median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.lognormal import model_seconds
from benchmarks.service_times import fit
from benchmarks.simulation.permits import Permits, Provider
from benchmarks.simulation.report import bottleneck, compared, earliest_drain, summary, timeline, use
from benchmarks.simulation.scenario import HOUR_SECONDS, Law, Scenario, arrival_times
from benchmarks.simulation.service import ServiceTimes
from benchmarks.simulation.system import Run, simulate
from worker.rate_limits import RETRY_SECONDS, WINDOW_SECONDS
from worker.sweep import OVERDUE_SECONDS

FREE = ServiceTimes(**dict.fromkeys(ServiceTimes.__dataclass_fields__, 0.0))
"""A machine on which nothing costs anything but the model."""
SMALL = Scenario(
    answers=2_000,
    window_seconds=600.0,
    web_processes=3,
    workers=4,
    slots=16,
    requests_per_minute=None,
    model_median_seconds=2.0,
    sample_seconds=1.0,
    seed=1,
)
ALL_AT_ONCE = replace(SMALL, law="at once", window_seconds=0.0)


def assert_lived(run: Run) -> None:
    """Every answer was submitted, leased and scored, in this order, and took the model its time."""
    lives = list(zip(run.arrived_at, run.leased_at, run.scored_at, strict=True))
    assert len(lives) == run.scenario.answers
    assert all(arrived <= leased < scored for arrived, leased, scored in lives)
    assert run.samples[-1].backlog == 0
    assert run.samples[-1].scored == run.scenario.answers


def test_tiny_case_by_hand() -> None:
    """Three answers at once, one slot, every statement a second, the model ten: worked out on paper.

    Stored at 1; the first is leased at 2 and scored by the model at 12. Settling it and leasing the next go side by
    side, a second each: so it goes on every 11 s.
    """
    service = replace(
        FREE,
        submit_statement_seconds_base=1.0,
        lease_statement_seconds_base=1.0,
        settle_statement_seconds_base=1.0,
        pickup_seconds=1.0,  # all of it is the submit's statement: the bell takes no time
    )
    scenario = Scenario(
        answers=3,
        window_seconds=0.0,
        web_processes=1,
        workers=1,
        slots=1,
        requests_per_minute=None,
        database_parallel=10,
    )

    run = simulate(scenario, service, arrived_at=[0.0] * 3, model_seconds=[10.0] * 3)

    assert run.leased_at == pytest.approx([2.0, 13.0, 24.0])
    assert run.scored_at == pytest.approx([13.0, 24.0, 35.0])
    assert (run.statements["submit"], run.statements["settle"]) == (1, 3)


def test_batches_gather_while_one_is_in_flight() -> None:
    """What is submitted while a statement runs shares the next one."""
    service = replace(FREE, submit_statement_seconds_base=1.0)
    scenario = replace(SMALL, answers=4, web_processes=1)

    run = simulate(scenario, service, arrived_at=[0.0, 0.2, 0.9, 5.0], model_seconds=[1.0] * 4)

    assert run.statements["submit"] == 3
    assert_lived(run)


def test_statements_wait_for_postgresql() -> None:
    """A PostgreSQL that serves one statement at a time makes the second one wait for the first."""
    service = replace(FREE, submit_statement_seconds_base=1.0)
    scenario = replace(SMALL, answers=40, web_processes=20, database_parallel=1)

    run = simulate(scenario, service, arrived_at=[0.0] * 40, model_seconds=[1.0] * 40)

    assert max(run.leased_at) == pytest.approx(run.statements["submit"], abs=OVERDUE_SECONDS + 1)
    assert 15 < run.statements["submit"] <= 20


@settings(deadline=None, max_examples=30)
@given(
    st.builds(
        Scenario,
        answers=st.integers(1, 150),
        window_seconds=st.sampled_from([0.0, 5.0, 7200.0]),
        law=st.sampled_from(["hyperbolic", "exponential", "at once"]),
        last_hour_share=st.sampled_from([0.55, 0.8]),
        web_processes=st.integers(1, 4),
        workers=st.integers(1, 4),
        slots=st.integers(1, 40),
        requests_per_minute=st.sampled_from([None, 50, 600]),
        model_median_seconds=st.sampled_from([0.01, 3.0]),
        model_sigma=st.sampled_from([0.0, 1.0]),
        database_parallel=st.integers(1, 3),
        sample_seconds=st.just(5.0),
        seed=st.integers(0, 100),
    )
)
def test_nothing_is_lost_and_no_slot_taken_twice(scenario: Scenario) -> None:
    """Whatever the scenario: every arrival is scored once, and never more are with the model than there are slots."""
    run = simulate(scenario)

    assert_lived(run)
    assert max(sample.scoring for sample in run.samples) <= scenario.workers * scenario.slots


@pytest.mark.parametrize("per_minute", [600, 3_000])
def test_time_to_drain_is_at_least_what_the_provider_takes(per_minute: int) -> None:
    """No window of ten seconds gives more than its share, so N answers take N / limit, less the first window."""
    run = simulate(replace(ALL_AT_ONCE, requests_per_minute=per_minute, workers=20))

    in_a_window = per_minute * WINDOW_SECONDS // 60
    least = (math.ceil(run.scenario.answers / in_a_window) - 1) * WINDOW_SECONDS
    assert least <= run.drained_at < 1.2 * least + 60
    assert run.drained_at >= earliest_drain(run.arrived_at, per_minute) - WINDOW_SECONDS
    assert use(run).provider > 0.8
    assert "Bottleneck: the provider's limit" in bottleneck(run)


def test_more_workers_never_drain_later() -> None:
    """Under the same draws; the tolerance is the sweep, by which a worker learns that there is more."""
    drained = [simulate(replace(ALL_AT_ONCE, workers=workers)).drained_at for workers in (1, 2, 4, 8, 16)]

    tolerance = SMALL.sweep_seconds + OVERDUE_SECONDS
    assert all(more <= fewer + tolerance for fewer, more in pairwise(drained))
    assert drained[-1] < drained[0] / 8


def test_time_to_drain_is_what_the_slots_take() -> None:
    """With nothing else full, the model's seconds are shared by the slots: never faster, and hardly slower."""
    run = simulate(replace(ALL_AT_ONCE, answers=5_000, model_sigma=0.0), FREE)

    least = 5_000 * 2.0 / (SMALL.workers * SMALL.slots)
    assert least <= run.drained_at < 1.1 * least + SMALL.sweep_seconds


def test_littles_law() -> None:
    """L = λW: the backlog that was looked at is what arrivals and times in the system ask for."""
    run = simulate(replace(SMALL, sample_seconds=0.1))

    looked_at = fmean(sample.backlog for sample in run.samples)
    in_system = fmean(scored - arrived for scored, arrived in zip(run.scored_at, run.arrived_at, strict=True))
    arrivals_per_second = run.scenario.answers / run.drained_at
    assert looked_at == pytest.approx(arrivals_per_second * in_system, rel=0.02)


def test_the_seed_decides_everything() -> None:
    """The same seed gives the same run, another one another."""
    first, again, other = (simulate(replace(SMALL, seed=seed)) for seed in (1, 1, 2))

    assert (first.leased_at, first.scored_at, first.samples) == (
        again.leased_at,
        again.scored_at,
        again.samples,
    )
    assert first.scored_at != other.scored_at


@pytest.mark.parametrize("law", ["hyperbolic", "exponential"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_so_many_come_in_the_last_hour(law: Law, share: float) -> None:
    """Arrivals are in order, within the window, and rise as they were asked to."""
    scenario = Scenario(answers=20_000, law=law, last_hour_share=share)

    times = arrival_times(scenario)

    deadline = scenario.window_seconds
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= deadline
    late = sum(at > deadline - HOUR_SECONDS for at in times) / len(times)
    assert late == pytest.approx(share, abs=0.02)


def test_windows_of_the_provider() -> None:
    """A window gives its amount; the next one at first nothing, then what the last one has freed."""
    provider = Provider(600)

    assert provider.take(1.0, 1_000) == 100
    assert provider.take(9.9, 1) == 0
    assert provider.take(10.0, 50) == 0
    assert provider.take(15.0, 1_000) == 50
    assert provider.take(40.0, 1_000) == 100


def test_permits_that_were_not_used_are_kept() -> None:
    """A worker that asked for too many uses them for its next answers, and waits before it asks in vain again."""
    permits = Permits(Provider(600))

    assert permits.acquire(0.0, 100, certain=True) == 100
    permits.used(0.0, 100, 40, certain=True)
    assert permits.acquire(1.0, 60, certain=True) == 60
    assert permits.acquire(1.0, 1, certain=True) == 0
    assert permits.pause_until == 1.0 + RETRY_SECONDS


def test_earliest_drain_by_hand() -> None:
    """One a second: three at once take 3 s; one that comes at 10 s is done at 11 s."""
    assert earliest_drain([0.0, 0.0, 0.0], 60) == 3
    assert earliest_drain([0.0, 0.0, 10.0], 60) == 11
    assert earliest_drain([], 60) == 0


def test_service_times_come_from_the_results() -> None:
    """What was measured is taken, what is missing is not, and what else stands there is ignored."""
    service = ServiceTimes.from_results(
        {
            "service": {
                "submit_statement_seconds_base": 0.5,
                "submit_seconds_per_row": 0.25,
                "python": "3.11",
            }
        }
    )

    assert service.submit(2) == 1.0
    assert service.settle(1) == ServiceTimes().settle(1)
    assert service.slower_database(2).submit(2) == 2.0
    assert service.slower_database(2).permit_seconds == service.permit_seconds
    assert ServiceTimes.from_results({}) == ServiceTimes()


def test_a_line_through_what_was_measured() -> None:
    """Least squares finds the line that the points lie on, and nothing costs less than nothing."""
    assert fit({1: 0.003, 10: 0.012, 100: 0.102}) == pytest.approx((0.002, 0.001))
    assert fit({1: 0.0, 10: 1.0, 100: 100.0}).base_seconds == 0


def test_model_times_are_log_normal_and_the_same_everywhere() -> None:
    """Drawn by number: the same in the worker and in the simulation, with the median that was asked for."""
    times = [model_seconds(3, number, median_seconds=4.0, sigma=0.5) for number in range(4_000)]

    assert times == [model_seconds(3, number, median_seconds=4.0, sigma=0.5) for number in range(4_000)]
    assert median(times) == pytest.approx(4.0, rel=0.05)
    assert fmean(times) == pytest.approx(4.0 * math.exp(0.125), rel=0.05)


def test_report_says_what_is_full() -> None:
    """A person is told the peak, the oldest, the time to drain, and the bottleneck."""
    run = simulate(replace(SMALL, requests_per_minute=120))

    told = "\n".join(summary(run))

    assert "Peak backlog" in told
    assert "Bottleneck: the provider's limit" in told
    assert "2,000 answers at 120 a minute take 17 min" in told
    assert 10 <= len(timeline(run).rows) <= 12
    assert compared([("as above", run)]).rows[0][0] == "as above"
