"""One run in which a worker dies at its n-th command, and another one finishes the job."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from producers.bell import Bell
from producers.contract import ClaimResponses, ScoreResponses
from storage import publish_questions, submit_responses
from storage.claims import request_claim
from storage.dead import rescore_responses, retry_dead
from tests.crashes import accounts, script
from tests.factories import question, submission

if TYPE_CHECKING:
    from tests.crashes.cutting import Cut
    from tests.crashes.lanes import Lane
    from tests.crashes.processes import Process

TOKEN = "anonymous-student"
CLAIMANT = 3
LATE = "published late"


def _answer(text: str = script.GOOD, **changes: Any) -> dict[str, Any]:
    return submission(answer_text=text, **changes)


# By the names that they have in this run.
ANSWERS: dict[str, dict[str, Any]] = {
    "good": _answer(),
    "rescored": _answer(user_id=2),
    "anonymous": _answer(anonymous_token=TOKEN),
    "anonymous too": _answer(anonymous_token=TOKEN, question_id="respiration"),
    "fails once": _answer(script.FAILS_ONCE, user_id=4),
    "troubled once": _answer(script.TROUBLED_ONCE, user_id=5),
    "hopeless": _answer(script.HOPELESS, user_id=6),
    "retried": _answer(script.HOPELESS_UNTIL_MENDED, user_id=7),
    "published late": _answer(user_id=8, question_id=LATE),
    "message lost": _answer(user_id=9),
    "message doubled": _answer(user_id=10),
    "slow": _answer(script.SLOW, user_id=11),
}
LAST = "unfinished"
LAST_ANSWER = _answer(script.UNFINISHED, user_id=12)


@dataclass(slots=True)
class WorkerRun:
    """What twelve answers and one more go through, beginning with a worker that may be cut off."""

    lane: Lane
    cut: Cut
    ids: dict[str, int] = field(default_factory=dict)
    claim_id: int = 0
    _first: Process | None = None
    _now: Process | None = None

    async def play(self) -> accounts.Outcome:
        """Play it to its end.

        Returns:
            What the checks found.

        Raises:
            AssertionError: It never came to an end, or a process ended in another way than by its cut.
        """
        await self.lane.empty()
        await self._submit()
        self._first = self._now = self.lane.worker(self.cut)
        await self.lane.until(self._at_rest)
        await self._operate()
        await self.lane.until(self._last_one_is_in_hand)
        if self._now is self._first:
            self._first.signal(signal.SIGTERM)
            await self.lane.end_of(self._first)
        self.lane.notes.say("gone")
        await self.lane.until(self._nothing_is_open)
        await self._stop()
        return await self._account()

    async def _submit(self) -> None:
        async with self.lane.engine.begin() as conn:
            await publish_questions(conn, [question(), question(question_id="respiration")])
            rows = await submit_responses(conn, list(ANSWERS.values()))
            self.ids = {name: row["response_id"] for name, row in zip(ANSWERS, rows, strict=True)}
            self.claim_id = await request_claim(conn, anonymous_token=TOKEN, user_id=CLAIMANT)
        twice = ScoreResponses(response_ids=(self.ids["message doubled"],))
        announced = [self.ids[name] for name in ANSWERS if not name.startswith("message")]
        await Bell(self.lane.redis).ring(
            [
                ScoreResponses(response_ids=tuple(announced[:4])),
                twice,
                ScoreResponses(response_ids=tuple(announced[4:])),
                twice,
                ClaimResponses(claim_ids=(self.claim_id,)),
            ]
        )

    async def _operate(self) -> None:
        """What people do in between: publish, rescore, retry what died; and one more answer comes."""
        async with self.lane.engine.begin() as conn:
            await publish_questions(
                conn, [question(question_id=LATE), question(rubric="Full marks for naming sugar.")]
            )
        async with self.lane.engine.begin() as conn:
            assert await rescore_responses(conn, response_ids=[self.ids["rescored"]])
        self.lane.notes.say("mended")
        async with self.lane.engine.begin() as conn:
            assert await retry_dead(conn, response_ids=[self.ids["retried"]])
            (row,) = await submit_responses(conn, [LAST_ANSWER])
            self.ids[LAST] = row["response_id"]
        await Bell(self.lane.redis).ring([ScoreResponses(response_ids=(self.ids[LAST],))])

    async def _open(self) -> set[int]:
        """Which responses wait to be scored."""
        self._replace_the_dead()
        return {
            row["response_id"]
            for row in await self.lane.observer.fetch(
                "SELECT response_id FROM scoring_handoffs WHERE state = 'open' AND question_digest IS NOT NULL"
            )
        }

    async def _claimed(self) -> bool:
        return bool(
            await self.lane.observer.fetchval(
                "SELECT bool_and(applied_at IS NOT NULL) FROM assessment_claims"
            )
        )

    async def _at_rest(self) -> bool:
        return not await self._open() and await self._claimed()

    async def _last_one_is_in_hand(self) -> bool:
        called = {call.response_id for call in self.lane.notes.calls()}
        return await self._open() <= {self.ids[LAST]} and self.ids[LAST] in called

    async def _nothing_is_open(self) -> bool:
        return not await self._open()

    def _replace_the_dead(self) -> None:
        assert self._now is not None
        if not self._now.ended.done():
            return
        assert self._now is self._first, "the second worker ended by itself"
        self._check_end()
        self.lane.notes.say("gone")
        self._now = self.lane.worker()

    def _check_end(self) -> None:
        assert self._first is not None
        accounts.check_end(self.cut, self._first.ended.result())

    async def _stop(self) -> None:
        assert self._now is not None
        self._now.signal(signal.SIGTERM)
        assert await self.lane.end_of(self._now) == 0, "the second worker could not be stopped"

    async def _account(self) -> accounts.Outcome:
        assert self._first is not None
        books = await accounts.read(self.lane)
        ids = self.ids
        expected: dict[int, tuple[int, str | None]] = dict.fromkeys(ids.values(), (1, None))
        expected |= {ids["rescored"]: (2, None), ids["hopeless"]: (0, "Scripted: it cannot be scored.")}
        scripted = {
            "attempt": {ids[name] for name in ("fails once", "hopeless", "retried")},
            "postponement": {ids["troubled once"]},
            "handed back": {ids[LAST]},
        }
        broken = [
            *books.lost_or_scored_twice(expected),
            *books.unscripted(scripted, all_of_it=not self.cut.happened),
            *books.claims_not_applied({self.claim_id: CLAIMANT}, {TOKEN}),
            *books.paid_without_need({self._first.pid}),
            *await accounts.verified(self.lane),
        ]
        return accounts.Outcome(broken, books.paid_twice)
