"""What must hold in every committed state, and between any two that follow each other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

from tests.reliability.picture import is_never

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.reliability.picture import Handoff, Picture, Question

_COUNTERS = ("attempts", "postponements", "suspicions", "losses")


def _broken_now(now: Picture) -> Iterator[str]:
    settled = Counter(score.handoff_id for score in now.scores)
    scored = {score.response_id for score in now.scores}
    for response in now.responses.values():
        if response.response_id not in scored and response.response_id not in now.handoffs:
            yield f"response {response.response_id} has neither score nor handoff"
        if (response.user_id is None) == (response.token is None):
            yield f"response {response.response_id} has not exactly one owner"
    for handoff_id, times in settled.items():
        if times > 1:
            yield f"handoff {handoff_id} was settled {times} times"
    for row in now.handoffs.values():
        if row.handoff_id in settled:
            yield f"handoff {row.handoff_id} lives on although it was settled"
        yield from _broken_row(row)


def _broken_row(row: Handoff) -> Iterator[str]:
    if not row.is_open and not row.error:
        yield f"handoff {row.handoff_id} is {row.state} without a reason"
    if row.token is not None and row.leased_at is None:
        yield f"handoff {row.handoff_id} is leased since never"
    if row.token is not None and (not row.is_open or row.digest is None):
        yield f"handoff {row.handoff_id} is leased though it cannot be scored"
    if row.is_open and (row.digest is None) != is_never(row.due):
        yield f"handoff {row.handoff_id} is due {row.due} with the question {row.digest}"


def _broken_between(before: Handoff, after: Handoff) -> Iterator[str]:
    """What one handoff, of one identity, must never do."""
    if before.lane != after.lane:
        yield f"handoff {after.handoff_id} changed its lane"
    if before.digest not in {None, after.digest}:
        yield f"handoff {after.handoff_id} changed its question"
    given_new_life = not before.is_open and after.is_open
    for name in _COUNTERS:
        fell = getattr(after, name) < getattr(before, name)
        forgiven = given_new_life or (name == "suspicions" and after.attempts > before.attempts)
        if fell and not forgiven:
            yield f"handoff {after.handoff_id}: {name} fell from {getattr(before, name)}"
    still_leased = before.token is not None and before.token == after.token
    taken = before.token is not None and after.token is not None and before.token != after.token
    if taken and isinstance(before.due, datetime) and isinstance(after.leased_at, datetime):
        # A renewal that came between would have kept it; so it was the old lease's end that counted.
        if before.due > after.leased_at:
            yield f"handoff {after.handoff_id} was taken from a holder whose lease had not run out"
        if after.losses <= before.losses:
            yield f"handoff {after.handoff_id} lost a lease that was not counted"
    if still_leased and after.leased_at != before.leased_at:
        yield f"handoff {after.handoff_id} forgot since when it is leased"


@dataclass(slots=True)
class Ledger:
    """What happened in one run so far, kept apart from the database, which forgets handoffs."""

    digests: dict[int, str] = field(default_factory=dict)
    """The question of each handoff that ever was, by its identity."""
    settled: set[int] = field(default_factory=set)
    owners: dict[int, int | None] = field(default_factory=dict)
    """Whose handoff each identity was: the response."""
    brought: dict[tuple[int, Question], str] = field(default_factory=dict)
    """First answers that claims brought, with the token they came from."""

    def broken(self, before: Picture, after: Picture) -> list[str]:
        """Check a state and the way to it, and remember it.

        Args:
            before: What was committed before.
            after: What is committed now.

        Returns:
            What is broken, in words.
        """
        said = list(_broken_now(after))
        said += self._identities(after)
        said += self._scores(before, after)
        said += self._ways(before, after)
        said += self._owners(before, after)
        return said

    def _identities(self, after: Picture) -> Iterator[str]:
        for response_id, row in after.handoffs.items():
            assert row.handoff_id is not None
            if self.owners.setdefault(row.handoff_id, response_id) != response_id:
                yield f"handoff {row.handoff_id} went over to another response"
            if row.handoff_id in self.settled:
                yield f"handoff {row.handoff_id} came back after it was settled"
            if row.digest is not None:
                self.digests[row.handoff_id] = row.digest

    def _scores(self, before: Picture, after: Picture) -> Iterator[str]:
        known = frozenset(before.scores)
        for score in after.scores:
            if score in known:
                continue
            if score.handoff_id in self.settled:
                yield f"handoff {score.handoff_id} was settled again"
            self.settled.add(score.handoff_id)
            if self.digests.get(score.handoff_id, score.digest) != score.digest:
                yield f"handoff {score.handoff_id} was scored against another question than its own"
            if self.owners.get(score.handoff_id, score.response_id) != score.response_id:
                yield f"the score of handoff {score.handoff_id} went to another response"
        for score in known - set(after.scores):
            if score.response_id in after.responses:
                yield f"the score of handoff {score.handoff_id} is gone"

    def _ways(self, before: Picture, after: Picture) -> Iterator[str]:
        for response_id, old in before.handoffs.items():
            if response_id not in after.responses:
                continue  # erased
            new = after.handoffs.get(response_id)
            assert old.handoff_id is not None
            if new is not None and new.handoff_id == old.handoff_id:
                yield from _broken_between(old, new)
                continue
            if new is None and old.handoff_id not in self.settled:
                yield f"handoff {old.handoff_id} is gone without a score"
            # Scored and asked for again in one step, it may come back in another lane.
            if new is None or old.handoff_id in self.settled:
                continue
            if new.handoff_id is None or new.handoff_id < old.handoff_id:
                yield f"handoff {old.handoff_id} was replaced by one with an older identity"
            if old.is_open and old.lane == "live" and new.lane != "live":
                yield f"rescoring demoted the handoff of response {response_id}"

    def _owners(self, before: Picture, after: Picture) -> Iterator[str]:
        brought: dict[tuple[int, Question], str] = {}
        # What was erased in the same transaction does not count: the next one is a first answer again.
        answered = {
            (old.user_id, old.question)
            for response_id, old in before.responses.items()
            if response_id in after.responses
        }
        for response_id, new in after.responses.items():
            old = before.responses.get(response_id)
            if old is None or old == new:
                continue
            if (
                old.token is None
                or new.user_id is None
                or replace(old, user_id=new.user_id, token=None) != new
            ):
                yield f"response {response_id} changed in a way that no claim changes it"
                continue
            first = new.user_id, new.question
            twice = first in self.brought and first in answered
            if twice or brought.get(first, old.token) != old.token:
                yield f"user {new.user_id} got two first answers to {new.question} by claims"
            brought[first] = old.token
        self.brought |= brought
        for user_id, question in list(self.brought):
            if question not in after.answered_by(user_id):
                del self.brought[user_id, question]  # erased
