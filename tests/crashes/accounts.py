"""What is checked when a run is over: nothing lost, nothing scored twice, nobody charged for a crash."""

from __future__ import annotations

import itertools
import signal
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from worker.verification import verify

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.crashes.cutting import Cut
    from tests.crashes.lanes import Lane
    from tests.crashes.script import Call

# What a call of the model may come to. A call without any of these was in vain: the model is asked again.
COUNTED = ("attempt", "postponement", "handed back")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run came to."""

    broken: list[str]
    paid_twice: int = 0


def check_end(cut: Cut, exit_status: int) -> None:
    """Refuse a process that ended by itself, in an error: whatever that was, no crash point was tried.

    One that was cut off at its last goodbye may be gone before it can be killed.
    """
    expected = {-signal.SIGKILL, 0} if cut.happened else {0}
    assert exit_status in expected, f"the process ended with {exit_status}"


@dataclass(slots=True)
class Books:
    """The database after a run, with its journal, and the scorers' notes."""

    responses: dict[int, tuple[int | None, str | None]]
    """The owner of each: user, token."""
    scores: Counter[int]
    """How many each handoff has, by ``handoff_id``."""
    scored: Counter[int]
    """How many each response has."""
    dead: dict[int, tuple[int, str]]
    """Response and reason of each dead handoff, by ``handoff_id``."""
    left: dict[int, str]
    """Any other handoff, by ``handoff_id``."""
    handed_off: dict[int, tuple[int, str | None]]
    """Every handoff that ever was: its response and its question, as far as that was ever known."""
    events: Counter[tuple[str, int]]
    """What happened to the handoffs of each response."""
    by_handoff: Counter[tuple[int, str]]
    """How many calls of the model came to something, by response and question."""
    claims: dict[int, tuple[int, bool]]
    """The user of each claim, and whether it is applied."""
    calls: list[Call] = field(default_factory=list)

    def lost_or_scored_twice(self, expected: Mapping[int, tuple[int, str | None]]) -> Iterator[str]:
        """Compare with how many scores each response should have, and why it is dead if it should be."""
        if missing := expected.keys() - self.responses.keys():
            yield f"acknowledged and not stored: responses {sorted(missing)}"
        if surplus := self.responses.keys() - expected.keys():
            yield f"stored, though nobody submitted it: responses {sorted(surplus)}"
        for handoff_id, (response_id, _) in self.handed_off.items():
            ends = self.scores[handoff_id] + (handoff_id in self.dead)
            if ends != 1:
                yield (
                    f"handoff {handoff_id} of response {response_id} ended {ends} times: {self.scores[handoff_id]} scores, "
                    f"{'dead' if handoff_id in self.dead else self.left.get(handoff_id, 'deleted')}"
                )
        if unknown := self.scores.keys() - self.handed_off.keys():
            yield f"scores for handoffs that never were: {sorted(unknown)}"
        reasons = dict(self.dead.values())
        for response_id, (times, reason) in expected.items():
            if (self.scored[response_id], reasons.get(response_id)) != (times, reason):
                yield (
                    f"response {response_id} has {self.scored[response_id]} scores and is dead because of "
                    f"{reasons.get(response_id)!r}; expected {times} and {reason!r}"
                )

    def unscripted(self, scripted: Mapping[str, set[int]], *, all_of_it: bool) -> Iterator[str]:
        """Find attempts, postponements and hand-backs that the script has no part in.

        Args:
            scripted: The responses that may have one, by event.
            all_of_it: Without a crash they must have it, too, unless the worker stalled for as long as a lease.
        """
        for event, response_id in itertools.product(COUNTED, self.responses):
            times, most = self.events[event, response_id], int(response_id in scripted.get(event, ()))
            stalled = self.events["lost lease", response_id] > 0
            if times > most or (all_of_it and times < most and not stalled):
                yield f"response {response_id}: {event}, {times} times"
        verdicts: Counter[tuple[str, int]] = Counter((call.verdict, call.response_id) for call in self.calls)
        for event, verdict in (("attempt", ("failure", "hopeless")), ("postponement", ("trouble",))):
            for response_id in self.responses:
                said = sum(verdicts[each, response_id] for each in verdict)
                if self.events[event, response_id] > said:
                    yield f"response {response_id}: {event} without the scorer's word"

    def claims_not_applied(self, claims: Mapping[int, int], tokens: set[str]) -> Iterator[str]:
        """Find claims that are lost or not applied, and answers that still lie under their tokens."""
        for claim_id, user_id in claims.items():
            if self.claims.get(claim_id) != (user_id, True):
                yield f"claim {claim_id} is {self.claims.get(claim_id)}"
        for response_id, (_, token) in self.responses.items():
            if token in tokens:
                yield f"response {response_id} still lies under its token"

    def _in_vain(self) -> Counter[tuple[int, str]]:
        return Counter(call.handoff for call in self.calls) - self.by_handoff

    @property
    def paid_twice(self) -> int:
        """How many calls of the model came to nothing."""
        return self._in_vain().total()

    def paid_without_need(self, first: set[int]) -> Iterator[str]:
        """Find calls in vain, other than those of the first worker for leases that it lost: by dying, or by stalling."""
        theirs = {call.handoff for call in self.calls if call.pid in first}
        for handoff, times in self._in_vain().items():
            lost = self.events["lost lease", handoff[0]] if handoff in theirs else 0
            if times > lost:
                yield f"response {handoff[0]} was paid for {times} times in vain, after {lost} lost leases"


async def read(lane: Lane) -> Books:
    """Read everything."""
    fetch = lane.observer.fetch
    journal = await fetch("SELECT * FROM journal ORDER BY entry")
    scores = await fetch("SELECT handoff_id, response_id, question_digest FROM assessment_scores")
    handoffs = await fetch("SELECT handoff_id, response_id, state, last_error FROM scoring_handoffs")
    by_handoff = Counter((row["response_id"], row["question_digest"]) for row in scores)
    by_handoff.update(
        (row["response_id"], row["question_digest"]) for row in journal if row["event"] in COUNTED
    )
    return Books(
        responses={
            row["response_id"]: (row["user_id"], row["anonymous_token"])
            for row in await fetch("SELECT response_id, user_id, anonymous_token FROM assessment_responses")
        },
        scores=Counter(row["handoff_id"] for row in scores),
        scored=Counter(row["response_id"] for row in scores),
        dead={
            row["handoff_id"]: (row["response_id"], row["last_error"])
            for row in handoffs
            if row["state"] == "dead"
        },
        left={row["handoff_id"]: row["state"] for row in handoffs if row["state"] != "dead"},
        handed_off={row["handoff_id"]: (row["response_id"], row["question_digest"]) for row in journal},
        events=Counter((row["event"], row["response_id"]) for row in journal),
        by_handoff=by_handoff,
        claims={
            row["claim_id"]: (row["user_id"], row["applied"])
            for row in await fetch(
                "SELECT claim_id, user_id, applied_at IS NOT NULL AS applied FROM assessment_claims"
            )
        },
        calls=lane.notes.calls(),
    )


async def verified(lane: Lane) -> list[str]:
    """What ``scoring verify --full`` says is broken."""
    findings = await verify(lane.engine, lane.settings, full=True)
    return [
        f"verify: {finding.invariant}: {finding.holds}, {finding.examples} {finding.note}"
        for finding in findings
        if finding.holds is not True
    ]
