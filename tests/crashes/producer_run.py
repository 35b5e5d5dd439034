"""One run in which a web process dies at its n-th command, and tries everything again."""

from __future__ import annotations

import signal
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from storage import publish_questions
from tests.crashes import accounts
from tests.crashes.lanes import PATIENCE_SECONDS
from tests.factories import question, submission
from tests.producers.waiting import eventually

if TYPE_CHECKING:
    from tests.crashes.cutting import Cut
    from tests.crashes.lanes import Lane

TOKEN = "anonymous-student"
CLAIMANT = 3
CLAIM = "claim"
LATE = "published late"


def _key(number: int) -> str:
    return str(UUID(int=number))


def _answer(number: int, **changes: Any) -> dict[str, Any]:
    return submission(submission_key=_key(number), **changes)


REQUESTS: dict[str, Any] = {
    # Each wave shares a transaction.
    "waves": [
        [
            _answer(1),
            _answer(2, user_id=2),
            _answer(3, anonymous_token=TOKEN),
            _answer(4, anonymous_token=TOKEN, question_id="respiration"),
            _answer(5, user_id=5, question_id=LATE),
        ],
        [_answer(6, user_id=6), _answer(7, user_id=7), _answer(8, user_id=8, question_id="respiration")],
        [_answer(9, user_id=9)],
    ],
    "own": [_answer(10, user_id=10), _answer(11, user_id=11)],
    "claim": {"anonymous_token": TOKEN, "user_id": CLAIMANT},
}
KEYS = frozenset(given["submission_key"] for wave in (*REQUESTS["waves"], REQUESTS["own"]) for given in wave)


@dataclass(slots=True)
class ProducerRun:
    """Eleven answers and a claim, sent by a web process that may be cut off."""

    lane: Lane
    cut: Cut
    broken: list[str] = field(default_factory=list)

    async def play(self) -> accounts.Outcome:
        """Play it to its end; returns and raises as ``WorkerRun.play``."""
        lane = self.lane
        await lane.empty()
        async with lane.engine.begin() as conn:
            await publish_questions(conn, [question(), question(question_id="respiration")])
        first = lane.producer(REQUESTS, lane.path("first"), self.cut)
        accounts.check_end(self.cut, await lane.end_of(first))
        await eventually(self._nobody_is_connected, patience_seconds=PATIENCE_SECONDS)
        stored = await self._compare()
        worker = lane.worker()
        await lane.until(self._at_rest)

        second = lane.producer(REQUESTS, lane.path("second"))
        assert await lane.end_of(second) == 0, "the second process did not get through"
        after = await self._compare()
        if after.keys() != KEYS:
            self.broken.append(f"never stored: {sorted(KEYS - after.keys())}")
        if changed := {key for key in stored if stored[key] != after.get(key)}:
            self.broken.append(f"stored again, or gone: {sorted(changed)}")
        async with lane.engine.begin() as conn:
            await publish_questions(conn, [question(question_id=LATE)])
        await lane.until(self._at_rest)
        worker.signal(signal.SIGTERM)
        assert await lane.end_of(worker) == 0, "the worker could not be stopped"
        return await self._account(after)

    async def _compare(self) -> dict[str, int]:
        """Compare what is stored with what was acknowledged to anybody; return the response of each key."""
        fetch = self.lane.observer.fetch
        rows = await fetch(
            "SELECT r.submission_key, r.response_id, count(h.handoff_id) + count(s.score_id) AS ways FROM assessment_responses AS r "
            "LEFT JOIN scoring_handoffs AS h USING (response_id) LEFT JOIN assessment_scores AS s USING (response_id) "
            "GROUP BY r.response_id"
        )
        stored = {str(row["submission_key"]): int(row["response_id"]) for row in rows}
        self.broken += [
            f"{row['submission_key']} is stored without a handoff" for row in rows if not row["ways"]
        ]
        if len(stored) != len(rows):
            self.broken.append("a submission key has two rows")
        claims = {row["claim_id"] for row in await fetch("SELECT claim_id FROM assessment_claims")}
        for key, numbers in self._acknowledged().items():
            if not numbers <= (claims if key == CLAIM else {stored.get(key)}):
                self.broken.append(f"{key} was acknowledged as {numbers}, and {stored.get(key)} is stored")
        return stored

    def _acknowledged(self) -> dict[str, set[int]]:
        found: dict[str, set[int]] = defaultdict(set)
        for name in ("first", "second"):
            path = self.lane.path(name)
            for line in path.read_text().splitlines() if path.exists() else ():
                key, number = line.split()
                found[key].add(int(number))
        return found

    async def _nobody_is_connected(self) -> bool:
        """Whether PostgreSQL has noticed the death: what it still executes for a dead process, it may commit."""
        return not await self.lane.observer.fetchval(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'assessment-scoring'"
        )

    async def _at_rest(self) -> bool:
        return not await self.lane.observer.fetchval(
            "SELECT EXISTS (SELECT 1 FROM scoring_handoffs WHERE question_digest IS NOT NULL) "
            "OR EXISTS (SELECT 1 FROM assessment_claims WHERE applied_at IS NULL)"
        )

    async def _account(self, stored: dict[str, int]) -> accounts.Outcome:
        books = await accounts.read(self.lane)
        claims = dict.fromkeys(books.claims.keys() | self._acknowledged()[CLAIM], CLAIMANT)
        broken = [
            *self.broken,
            *books.lost_or_scored_twice(dict.fromkeys(stored.values(), (1, None))),
            *books.unscripted({}, all_of_it=True),
            *books.claims_not_applied(claims, {TOKEN}),
            *books.paid_without_need(set()),
            *await accounts.verified(self.lane),
        ]
        return accounts.Outcome(broken, books.paid_twice)
