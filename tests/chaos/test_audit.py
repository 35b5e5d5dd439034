"""The audit of a run fails for every way in which a promise can be broken, and for nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.chaos.arena import Happening
from tests.chaos.audit import BETWEEN, Evidence, Handoff, Score, judge
from tests.chaos.causes import Cause, Wound, attribute
from tests.chaos.faults import FAULTS
from tests.chaos.faults.poison import AnswerThatKills
from tests.chaos.ledger import PAID, Asked, Call, Claimed, Refused, Stored
from tests.chaos.plan import make_plan
from tests.chaos.terms import DRAWS_500, FAILS, KILLS, POISON

if TYPE_CHECKING:
    from collections.abc import Callable

KEY, DIGEST, WORKER, OTHER = "key", "digest", 101, 102
FIRST = Call(1, 7, DIGEST, WORKER, begun=10.0, ended=11.0, outcome=PAID)
SECOND = Call(2, 7, DIGEST, OTHER, begun=20.0, ended=21.0, outcome=PAID)
KILLED = Wound(Cause.KILLED, since=11.1, until=11.1, pid=WORKER, fault=0)


def evidence(text: str = "an answer") -> Evidence:
    """A run in which one answer was submitted, acknowledged and scored, during the one fault that there was."""
    return Evidence(
        asked={KEY: Asked(KEY, at=10.0, question_id="q", text=text)},
        stored=[Stored(KEY, 7, at=10.1)],
        calls=[FIRST],
        responses={KEY: 7},
        scores=[Score(7, handoff_id=70, digest=DIGEST, call=1)],
        happenings=[
            Happening("a fault", "a worker", bound_seconds=5.0, begun=9.0, ended=12.0, recovered=15.0)
        ],
    )


def dead(evidence: Evidence, reason: str | None = "It cannot be scored.", attempts: int = 0) -> None:
    evidence.scores.clear()
    evidence.handoffs[7] = Handoff(7, "dead", attempts, reason)


BREAKS: dict[str, Callable[[Evidence], object]] = {
    "lost: 1": lambda given: given.responses.clear(),
    "lost: 1, for example key": lambda given: given.scores.clear(),
    "lost: 1,": lambda given: given.stored.append(Stored(KEY, 8, at=10.2)),
    "lost: ": lambda given: given.stored.clear(),
    "lost": lambda given: given.handoffs.update({7: Handoff(7, "open", 0, None)}),
    "scored twice: 1": lambda given: given.scores.append(Score(7, 70, "another", 2)),
    "scored twice": lambda given: given.scores.append(Score(7, 71, DIGEST, 2)),
    "paid twice without a reason": lambda given: given.calls.append(SECOND),
    "dead for no reason of their own": dead,
    "dead without a reason that says why": lambda given: dead(given, reason=None),
    "attempts used up by infrastructure": lambda given: setattr(given, "attempts", {7: 1}),
    "refused": lambda given: given.refused.append(Refused(KEY, "no such user")),
    "claims lost": lambda given: given.claimed.append(Claimed(3, "token", 1, at=10.0)),
    "rescores lost": lambda given: given.rescored.add((7, "newer")),
    "never recovered": lambda given: setattr(given.happenings[0], "recovered", None),
    "scoring verify --full exited with 1": lambda given: setattr(given, "verify_status", 1),
    "proves nothing": lambda given: given.calls.clear(),
    "a worker ended by itself": lambda given: given.problems.append("a worker ended by itself"),
}


def test_a_clean_run_passes() -> None:
    """Nothing is held against a run in which every promise was kept; its answers are counted once."""
    verdict = judge(evidence())

    assert verdict.reasons == []
    assert [(row.name, row.submitted, row.scored) for row in verdict.rows] == [
        ("a fault", 1, 1),
        (BETWEEN, 0, 0),
    ]
    assert (verdict.total.submitted, verdict.total.scored, verdict.total.lost) == (1, 1, 0)
    assert verdict.rows[0].recoveries == [3.0]


@pytest.mark.parametrize("complaint", BREAKS)
def test_every_broken_promise_is_a_reason_to_fail(complaint: str) -> None:
    """Each kind of evidence fails the run by itself, under its own name."""
    given = evidence()

    BREAKS[complaint](given)

    assert any(complaint in reason for reason in judge(given).reasons)


def test_a_second_call_for_a_killed_worker_s_answer_is_explained_and_counted() -> None:
    """It does not fail the run; it is counted with the fault that caused it, and per thousand kills."""
    given = evidence()
    given.calls.append(SECOND)
    given.scores = [Score(7, 70, DIGEST, call=2)]
    given.wounds = [KILLED]

    verdict = judge(given)

    assert verdict.reasons == []
    assert [row.paid_twice for row in verdict.rows] == [1, 0]
    assert verdict.kills == 1


def test_a_rescore_is_another_handoff() -> None:
    """Two calls and two scores against two editions are one of each."""
    given = evidence()
    given.calls.append(replace(SECOND, digest="newer"))
    given.scores.append(Score(7, 71, "newer", call=2))
    given.rescored.add((7, "newer"))

    assert judge(given).reasons == []


@pytest.mark.parametrize(
    ("kind", "attempts", "reasons"),
    [(FAILS, 3, 0), (KILLS, 0, 0), (KILLS, 1, 1), (DRAWS_500, 3, 0), (DRAWS_500, 0, 1)],
)
def test_poisoned_answers_may_die_of_their_poison_alone(kind: str, attempts: int, reasons: int) -> None:
    """What fails uses up attempts; what kills workers or meets trouble alone must not be buried by an attempt, or without one."""
    given = evidence(POISON + kind)
    dead(given, attempts=attempts)
    given.attempts = {7: attempts} if attempts else {}

    assert len(judge(given).reasons) == reasons


def test_an_answer_that_always_fails_must_die() -> None:
    """A score for it is a failure of the run."""
    assert "always fails and is not dead" in judge(evidence(POISON + FAILS)).reasons[0]


WOUNDS = {
    Cause.KILLED: KILLED,
    Cause.POISONED: replace(KILLED, cause=Cause.POISONED),
    Cause.STALLED: Wound(Cause.STALLED, since=10.5, until=19.5, pid=WORKER),
    Cause.CUT_OFF: Wound(Cause.CUT_OFF, since=10.5, until=19.5, pid=WORKER),
    Cause.CRASHED: Wound(Cause.CRASHED, since=10.5, until=12.0),
    Cause.REPLY_LOST: Wound(Cause.REPLY_LOST, since=10.5, until=13.0, pid=WORKER),
}


@pytest.mark.parametrize("cause", Cause)
@pytest.mark.parametrize("counted", [1, 2])
def test_every_cause_explains_its_own_calls(cause: Cause, counted: int) -> None:
    """The call that did not count is attributed; a killed worker's, or one whose reply was lost, never counts itself."""
    [wasted] = attribute([FIRST, SECOND], [counted], [WOUNDS[cause]])

    own = counted == 2 or cause in {Cause.STALLED, Cause.CUT_OFF, Cause.CRASHED}
    assert wasted.call.number == 3 - counted
    assert (wasted.wound is not None) == own


@pytest.mark.parametrize("cause", Cause)
def test_no_cause_explains_what_happened_at_another_time_or_to_another(cause: Cause) -> None:
    """A minute later, or to a worker that had nothing to do with it, the same explains nothing."""
    wound = WOUNDS[cause]
    later = replace(wound, since=wound.since + 60, until=wound.until + 60)
    another = replace(wound, pid=999) if wound.pid else later

    assert attribute([FIRST, SECOND], [2], [later, another])[0].wound is None


def test_a_call_that_was_replaced_by_a_rescore_is_not_paid_twice() -> None:
    """Nothing counted for that handoff: the one call was what it cost."""
    assert attribute([FIRST], [], []) == []


@pytest.mark.parametrize("seed", range(20))
def test_a_seed_always_draws_the_same_plan(seed: int) -> None:
    """The same faults strike the same targets in the same order."""
    plans = [
        [[(fault.name, fault.target, fault.number) for fault in step] for step in make_plan(seed, 120)]
        for _ in range(2)
    ]

    assert plans[0] == plans[1]
    assert plans[0] != [
        [(fault.name, fault.target, fault.number) for fault in step] for step in make_plan(seed + 1, 120)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_a_short_run_has_each_fault_at_most_once(seed: int) -> None:
    """At its end two happen together that strike different things, and then comes the answer that kills."""
    steps = make_plan(seed, 40)

    names = [fault.name for step in steps for fault in step]
    *alone, together, last = steps
    assert len(names) == len(set(names))
    assert [len(step) for step in alone] == [1] * len(alone)
    assert len({fault.victim for fault in together}) == 2
    assert isinstance(last[0], AnswerThatKills)


@pytest.mark.parametrize("seed", range(20))
def test_every_cycle_has_every_fault_once(seed: int) -> None:
    """Two minutes hold one cycle, five hold two; two faults at the same time end each."""
    for seconds, cycles in ((120, 1), (300, 2)):
        *steps, _ = make_plan(seed, seconds)

        names = [fault.name for step in steps for fault in step]
        assert [names.count(kind.name) for kind in FAULTS] == [cycles] * len(FAULTS)
        assert [number for number, step in enumerate(steps, 1) if len(step) == 2] == [
            len(steps) // cycles * (cycle + 1) for cycle in range(cycles)
        ]
