"""The audit: what was promised to students and ops, held against what was written down. Pure functions."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.chaos.causes import Cause, Wasted, attribute
from tests.chaos.ledger import PAID
from tests.chaos.terms import DRAWS_500, FAILS, KILLS, POISON

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.chaos.arena import Happening
    from tests.chaos.causes import Wound
    from tests.chaos.ledger import Asked, Call, Claimed, Refused, Stored

EXAMPLES = 5
TOGETHER = "two at the same time"
BETWEEN = "(between faults)"


@dataclass(frozen=True, slots=True)
class Score:
    """A score as it is stored; ``call`` is the number of the call that it came from."""

    response_id: int
    handoff_id: int
    digest: str
    call: int


@dataclass(frozen=True, slots=True)
class Handoff:
    """A handoff that is left at the end."""

    response_id: int
    state: str
    attempts: int
    last_error: str | None


@dataclass(slots=True)
class Evidence:
    """All that was written down in a run."""

    asked: dict[str, Asked] = field(default_factory=dict)
    stored: list[Stored] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    claimed: list[Claimed] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    # What the database holds: response ids by submission key, and claims that are applied.
    responses: dict[str, int] = field(default_factory=dict)
    scores: list[Score] = field(default_factory=list)
    handoffs: dict[int, Handoff] = field(default_factory=dict)
    applied: frozenset[int] = frozenset()
    # What the run did and saw.
    happenings: list[Happening] = field(default_factory=list)
    wounds: list[Wound] = field(default_factory=list)
    attempts: Mapping[int, int] = field(default_factory=dict)
    rescored: set[tuple[int, str]] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    verify_status: int = 0


@dataclass(slots=True)
class Row:
    """One line of the report: a kind of fault, and what became of the answers submitted meanwhile."""

    name: str
    times: int = 0
    submitted: int = 0
    scored: int = 0
    dead: int = 0
    lost: int = 0
    scored_twice: int = 0
    paid_twice: int = 0
    recoveries: list[float] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Verdict:
    """What the audit found. It passes where there is no reason against it."""

    rows: list[Row]
    total: Row
    happenings: list[Happening]
    wasted: list[Wasted]
    kills: int
    broken_off: int
    # Recoveries that took longer than their bound. On a machine that is busy with other things they may.
    late: list[str]
    reasons: list[str]


def judge(evidence: Evidence) -> Verdict:
    """Hold what was acknowledged against what is stored.

    Args:
        evidence: What was written down.

    Returns:
        The verdict.
    """
    poisoned = {
        evidence.responses[key]: asked.text.removeprefix(POISON)
        for key, asked in evidence.asked.items()
        if asked.text.startswith(POISON) and key in evidence.responses
    }
    fates = _fates(evidence)
    twice = _scored_twice(evidence)
    paid = [call for call in evidence.calls if call.outcome == PAID and call.response_id not in poisoned]
    wasted = attribute(paid, (score.call for score in evidence.scores), evidence.wounds)
    rows, total = _rows(evidence, fates, twice, wasted)
    reasons = [
        *_complaint("lost", [key for key, fate in fates.items() if fate == "lost"]),
        *_complaint("scored twice", sorted(twice)),
        *_complaint(
            "paid twice without a reason", [each.call.handoff for each in wasted if each.wound is None]
        ),
        *_poison_reasons(evidence, poisoned),
        *_promises(evidence, poisoned),
        *evidence.problems,
    ]
    return Verdict(
        rows=rows,
        total=total,
        happenings=evidence.happenings,
        wasted=wasted,
        kills=sum(wound.cause is Cause.KILLED for wound in evidence.wounds),
        broken_off=sum(call.outcome == "broken off" for call in evidence.calls),
        late=[
            f"{each.name} ({each.target}): {each.recovery_seconds:.1f} s, expected {each.bound_seconds:.1f} s"
            for each in evidence.happenings
            if each.recovery_seconds is not None and each.recovery_seconds > each.bound_seconds
        ],
        reasons=reasons,
    )


def _complaint(what: str, found: Sequence[object]) -> list[str]:
    if not found:
        return []
    return [f"{what}: {len(found)}, for example {', '.join(map(str, found[:EXAMPLES]))}"]


def _fates(evidence: Evidence) -> dict[str, str]:
    """What became of each answer that was begun: scored, dead or lost."""
    scored = {score.response_id for score in evidence.scores}
    acknowledged: dict[str, set[int]] = defaultdict(set)
    for stored in evidence.stored:
        acknowledged[stored.key].add(stored.response_id)
    fates = {}
    for key in evidence.asked:
        response_id = evidence.responses.get(key)
        handoff = None if response_id is None else evidence.handoffs.get(response_id)
        if response_id is None or acknowledged[key] != {response_id}:
            # Never acknowledged, acknowledged under an id that does not hold it, or acknowledged and gone.
            fates[key] = "lost"
        elif handoff is not None:
            fates[key] = "dead" if handoff.state == "dead" else "lost"
        else:
            fates[key] = "scored" if response_id in scored else "lost"
    return fates


def _scored_twice(evidence: Evidence) -> set[int]:
    """Responses with two scores for one handoff, or against one edition: nobody was asked for those twice."""
    handoffs = Counter(score.handoff_id for score in evidence.scores)
    editions = Counter((score.response_id, score.digest) for score in evidence.scores)
    return {
        score.response_id
        for score in evidence.scores
        if handoffs[score.handoff_id] > 1 or editions[score.response_id, score.digest] > 1
    }


def _poison_reasons(evidence: Evidence, poisoned: Mapping[int, str]) -> list[str]:
    reasons = []
    dead = {each.response_id: each for each in evidence.handoffs.values() if each.state == "dead"}
    innocent = sorted(dead.keys() - poisoned.keys())
    reasons += _complaint("dead for no reason of their own", innocent)
    reasons += _complaint(
        "dead without a reason that says why",
        [number for number, each in dead.items() if not each.last_error],
    )
    for response_id, kind in poisoned.items():
        if kind == FAILS and response_id not in dead:
            reasons.append(f"response {response_id} always fails and is not dead")
        if kind == DRAWS_500 and response_id in dead and not dead[response_id].attempts:
            reasons.append(f"response {response_id} is dead although it only met the provider's trouble")
        if kind == KILLS and response_id in dead and dead[response_id].attempts:
            reasons.append(f"response {response_id} killed its workers, and attempts were used up for it")
    spent = sorted(evidence.attempts.keys() - poisoned.keys())
    return reasons + _complaint("attempts used up by infrastructure", spent)


def _promises(evidence: Evidence, poisoned: Mapping[int, str]) -> list[str]:
    reasons = _complaint("refused", [refused.reason for refused in evidence.refused])
    unapplied = [claim.claim_id for claim in evidence.claimed if claim.claim_id not in evidence.applied]
    reasons += _complaint("claims lost", unapplied)
    held = {(score.response_id, score.digest) for score in evidence.scores}
    replaced = evidence.rescored - held
    reasons += _complaint("rescores lost", [each for each in sorted(replaced) if each[0] not in poisoned])
    never = [f"{each.name} ({each.target})" for each in evidence.happenings if each.recovered is None]
    reasons += _complaint("never recovered", never)
    if evidence.verify_status:
        reasons.append(f"scoring verify --full exited with {evidence.verify_status}")
    if not evidence.asked or not evidence.calls:
        reasons.append("nothing was submitted or scored: the run proves nothing")
    return reasons


def _rows(
    evidence: Evidence, fates: Mapping[str, str], twice: set[int], wasted: Sequence[Wasted]
) -> tuple[list[Row], Row]:
    rows: dict[str, Row] = {}
    for happening in evidence.happenings:
        row = rows.setdefault(_row_name(happening), Row(_row_name(happening)))
        row.times += 1
        row.bounds.append(happening.bound_seconds)
        if happening.recovery_seconds is not None:
            row.recoveries.append(happening.recovery_seconds)
    between = rows.setdefault(BETWEEN, Row(BETWEEN))
    total = Row("total", times=len(evidence.happenings))
    for key, asked in evidence.asked.items():
        during = next((each for each in evidence.happenings if _covers(each, asked.at)), None)
        for row in (between if during is None else rows[_row_name(during)], total):
            row.submitted += 1
            row.scored += fates[key] == "scored"
            row.dead += fates[key] == "dead"
            row.lost += fates[key] == "lost"
            row.scored_twice += evidence.responses.get(key) in twice
    for each in wasted:
        number = None if each.wound is None else each.wound.fault
        row = between if number is None else rows[_row_name(evidence.happenings[number])]
        for counted in (row, total):
            counted.paid_twice += 1
    return list(rows.values()), total


def _row_name(happening: Happening) -> str:
    return TOGETHER if happening.together else happening.name


def _covers(happening: Happening, at: float) -> bool:
    return happening.begun <= at < (happening.recovered or happening.ended + happening.bound_seconds)
