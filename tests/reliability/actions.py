"""The statements that two overlapping transactions run, and what each makes of the rows it reports."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from hypothesis import strategies as st

from storage import claim_assessment_responses, publish_questions, submit_responses
from storage.claims import apply_claim, request_claim
from storage.dead import dismiss_dead, rescore_responses, retry_dead
from storage.erasure import erase_responses
from storage.sweeps import overdue, revive_missed
from tests.factories import question as question_content
from tests.factories import submission
from tests.reliability import transitions
from tests.reliability.lease_actions import RELEASING, Leases, each, nothing
from tests.reliability.machine import (
    LANES,
    OWNERS,
    QUESTIONS,
    RUBRICS,
    SHORT_SECONDS,
    TOKENS,
    USERS,
)
from tests.reliability.picture import Handoff, When

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncConnection

    from tests.reliability.picture import Picture, Question
    from tests.reliability.sides import Action, Effect, Replay

# What may come later in a transaction. Two changes of one handoff in one transaction would hide from the
# observer what lies between them.
FURTHER = ("settle", "settle", "claim", "renew", "publish", "submit")
FIRST = (
    "pull",
    "lease",
    "pull",
    "lease",
    "postpone",
    "fail",
    "bury",
    "hand back",
    "rescore",
    "rescore",
    "retry",
    "dismiss",
    "erase",
    "request",
    "claim",
    "claim",
    "claim",
    "apply",
    "suspect",
    "bury the lost",
    "revive",
    "sweep",
    *FURTHER,
)


class Surroundings(Leases):
    """What an action may be about: what is committed, the leases that were ever granted, the keys ever used."""

    def __init__(self, picture: Picture) -> None:
        super().__init__(picture)
        self.keys: list[UUID] = []

    def action(self, name: str, data: st.DataObject) -> Action | None:
        """Draw an action of this name; None where there is nothing that it could be about."""
        if name in RELEASING:
            return self._releasing(name, data)
        drawn: Callable[[st.DataObject], Action | None] = {
            "submit": self._submit,
            "publish": self._publish,
            "settle": self._settle,
            "renew": self._renew,
            "claim": self._claim,
            "request": self._request,
            "apply": self._apply,
            "lease": self._lease,
            "pull": self._pull,
            "suspect": self._suspect,
            "bury the lost": self._bury_lost,
            "retry": self._retry,
            "dismiss": self._dismiss,
            "rescore": self._rescore,
            "erase": self._erase,
            "revive": self._revive,
            "sweep": self._sweep,
        }[name]
        return drawn(data)

    def _submit(self, data: st.DataObject) -> Action:
        owner = data.draw(st.sampled_from(OWNERS))
        question = data.draw(st.sampled_from(QUESTIONS))
        key = data.draw(st.sampled_from([uuid4(), *self.keys[-3:]]))
        self.keys.append(key)
        given = submission(module_slug=question[0], question_id=question[1], submission_key=key, **owner)

        async def submit(conn: AsyncConnection) -> Effect:
            [row] = await submit_responses(conn, [given])
            response_id, digest = int(row["response_id"]), row["question_digest"]

            def effect(replay: Replay) -> None:
                assert response_id in replay.after.responses, "what was submitted is stored"
                if response_id not in replay.before.responses:
                    if row["anonymous_token"] is not None:
                        replay.anonymous.add(response_id)
                    due = When.NEVER if digest is None else When.NOW
                    replay.handoffs.setdefault(response_id, Handoff(response_id, None, digest, due))

            return effect

        return submit

    def publishing(self, question: Question, rubric: str) -> Action:
        """Publish content; it revives what waited for it, as far as it saw it."""
        content = question_content(module_slug=question[0], question_id=question[1], rubric=rubric)

        async def publish(conn: AsyncConnection) -> Effect:
            [row] = await publish_questions(conn, [content])
            return self._reviving(
                lambda rid, after: after.responses[rid].question == question, row["question_digest"]
            )

        return publish

    @staticmethod
    def _reviving(
        concerned: Callable[[int, Picture], bool], digest: str | None, reported: int | None = None
    ) -> Effect:
        def effect(replay: Replay) -> None:
            revived = 0
            for response_id, row in replay.handoffs.items():
                found = replay.after.handoffs.get(response_id)
                if not row.is_open or row.digest is not None or found is None or found.digest is None:
                    continue
                if concerned(response_id, replay.after) and digest in {None, found.digest}:
                    replay.handoffs[response_id] = transitions.revived(row, found.digest)
                    revived += 1
            replay.revived += revived
            if reported is None:
                replay.published = True
            else:
                replay.reported_revived += reported

        return effect

    def _publish(self, data: st.DataObject) -> Action:
        return self.publishing(data.draw(st.sampled_from(QUESTIONS)), data.draw(st.sampled_from(RUBRICS)))

    def _revive(self, data: st.DataObject) -> Action:
        del data

        async def revive(conn: AsyncConnection) -> Effect:
            revived, _ = await revive_missed(conn)
            return self._reviving(lambda _rid, _after: True, None, revived)

        return revive

    def _sweep(self, data: st.DataObject) -> Action:
        del data

        async def sweep(conn: AsyncConnection) -> Effect:
            await overdue(conn, lease_seconds=SHORT_SECONDS, overdue_seconds=0.0)
            return nothing

        return sweep

    def _retry(self, data: st.DataObject) -> Action:
        ids = data.draw(st.sampled_from([None, self.some_responses(data)]))

        async def retry(conn: AsyncConnection) -> Effect:
            return each(await retry_dead(conn, response_ids=ids), transitions.retried)

        return retry

    def _dismiss(self, data: st.DataObject) -> Action:
        ids = self.some_responses(data)

        async def dismiss(conn: AsyncConnection) -> Effect:
            done = await dismiss_dead(conn, response_ids=ids, dismissed_by="ops")
            return each(done, lambda row: transitions.dismissed(row, by="ops"))

        return dismiss

    def _rescore(self, data: st.DataObject) -> Action:
        ids, lane = self.some_responses(data), data.draw(st.sampled_from(LANES))

        async def rescore(conn: AsyncConnection) -> Effect:
            done = await rescore_responses(conn, response_ids=ids, lane=lane)

            def effect(replay: Replay) -> None:
                for response_id in done:
                    digest = replay.after.handoffs[response_id].digest
                    assert digest is not None
                    before = replay.handoffs.get(response_id)
                    replay.handoffs[response_id] = transitions.rescored(before, response_id, digest, lane)

            return effect

        return rescore

    def _claim(self, data: st.DataObject) -> Action:
        token, user_id = data.draw(st.sampled_from(TOKENS)), data.draw(st.sampled_from(USERS))

        async def claim(conn: AsyncConnection) -> Effect:
            return self._moving(
                await claim_assessment_responses(conn, anonymous_token=token, user_id=user_id)
            )

        return claim

    def _request(self, data: st.DataObject) -> Action:
        token, user_id = data.draw(st.sampled_from(TOKENS)), data.draw(st.sampled_from(USERS))

        async def request(conn: AsyncConnection) -> Effect:
            await request_claim(conn, anonymous_token=token, user_id=user_id)
            return nothing

        return request

    def _apply(self, data: st.DataObject) -> Action | None:
        if not self.picture.claims:
            return None
        claim_id = data.draw(st.sampled_from(list(self.picture.claims)))

        async def apply(conn: AsyncConnection) -> Effect:
            applied = await apply_claim(conn, claim_id)
            return self._moving(0 if applied is None else int(applied["moved"]))

        return apply

    @staticmethod
    def _moving(moved: int) -> Effect:
        def effect(replay: Replay) -> None:
            replay.moved += moved

        return effect

    def _erase(self, data: st.DataObject) -> Action:
        owner = data.draw(st.sampled_from(OWNERS))

        async def erase(conn: AsyncConnection) -> Effect:
            erased = await erase_responses(conn, **owner)

            def effect(replay: Replay) -> None:
                gone = replay.before.responses.keys() - replay.after.responses.keys()
                assert len(gone) == erased["assessment_responses"]
                replay.erased.update(gone)

            return effect

        return erase
