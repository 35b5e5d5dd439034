"""What comes from outside: submits, publications, claims, deletions, and students who look."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from sqlalchemy import select

from storage import (
    SubmissionKeyConflictError,
    get_responses,
    publish_questions,
    submit_responses,
    tables,
)
from storage.claims import apply_claim, claim_assessment_responses, request_claim, requested_claims
from storage.erasure import erase_responses
from tests.factories import question as question_content
from tests.reliability.machine import RUBRICS, TOKENS, USERS, Machine, owners, questions
from tests.reliability.picture import Claim, Handoff, Response, When, is_never
from tests.reliability.transitions import revived

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncConnection

    from tests.reliability.picture import Picture, Question

users = st.sampled_from(USERS)
tokens = st.sampled_from(TOKENS)
rubrics = st.sampled_from(RUBRICS)
# So many requested claims are enough.
MAX_WAITING = 2
OWNER_COLUMNS = ("user_id", "anonymous_token")


def is_askers(row: Response, owner: Mapping[str, Any], picture: Picture) -> bool:
    """Whether who repeats a key gets this row: it is his, or was his before a claim, or will be by one that waits."""
    if "user_id" in owner:
        user_id = owner["user_id"]
        return row.user_id == user_id or any(
            claim.token == row.token and claim.user_id == user_id and claim.moved is None
            for claim in picture.claims.values()
        )
    token = owner["anonymous_token"]
    return row.token == token or any(
        claim.token == token and claim.user_id == row.user_id and claim.moved is not None
        for claim in picture.claims.values()
    )


def moved_by(picture: Picture, *, token: str, user_id: int) -> tuple[list[Response], int]:
    """Which responses a claim moves now, and how many it leaves."""
    lying = [row for row in picture.responses.values() if row.token == token]
    answered = picture.answered_by(user_id)
    moved = [row for row in lying if row.question not in answered]
    return moved, len(lying) - len(moved)


class Students(Machine):
    """Submits, publications, claims, erasure."""

    @rule(
        given=st.lists(
            st.tuples(owners, questions, st.sampled_from(("new", "new", "old"))), min_size=1, max_size=3
        ),
        lost=st.booleans(),
        data=st.data(),
    )
    def submit(
        self,
        given: list[tuple[dict[str, Any], Question, str]],
        lost: bool,  # noqa: FBT001
        data: st.DataObject,
    ) -> None:
        """One or several answers, under new keys or under keys that somebody has used; the message may be lost."""
        used = [row.key for row in self.before.responses.values()]
        keyed: list[tuple[dict[str, Any], Question, UUID]] = []
        for owner, question, kind in given:
            key = data.draw(st.sampled_from(used)) if kind == "old" and used else uuid4()
            used.append(key)
            keyed.append((owner, question, key))
        self.submit_all(keyed, lost=lost)

    def submit_all(self, keyed: list[tuple[dict[str, Any], Question, UUID]], *, lost: bool) -> None:
        """Submit answers in one statement."""
        submissions: list[dict[str, Any]] = [
            {
                "module_slug": question[0],
                "question_id": question[1],
                "answer_text": f"answer {number}",
                "submission_key": key,
                **owner,
            }
            for number, (owner, question, key) in enumerate(keyed)
        ]
        stored = {row.key: row for row in self.before.responses.values()}
        fresh: dict[UUID, Response] = {}
        refused = False
        for submission in submissions:
            asked = self._response(submission)
            owner = {name: value for name, value in submission.items() if name in OWNER_COLUMNS}
            first = stored.get(asked.key) or fresh.setdefault(asked.key, asked)
            refused |= not is_askers(first, owner, self.before)

        if refused:
            with pytest.raises(SubmissionKeyConflictError):
                self.commit(lambda conn: submit_responses(conn, submissions))
            self.did("submit under a key of somebody else")
            return
        rows = self.commit(lambda conn: submit_responses(conn, submissions))
        assert [row["submission_key"] for row in rows] == [given["submission_key"] for given in submissions]
        for row in rows:
            if (known := stored.get(row["submission_key"])) is not None:
                assert row["response_id"] == known.response_id
        made = {row["submission_key"]: int(row["response_id"]) for row in rows}
        new = [replace(asked, response_id=made[key]) for key, asked in fresh.items()]
        self.expect(
            *(
                Handoff(row.response_id, None, row.digest, When.NEVER if row.digest is None else When.NOW)
                for row in new
            ),
            responses={**self.before.responses, **{row.response_id: row for row in new}},
        )
        self.did("submit", len(new))
        if len(new) < len(rows):
            self.did("submit again")
        if new and not lost:
            self.messages.append(tuple(row.response_id for row in new))
        elif new:
            self.did("message lost")

    def _response(self, submission: Mapping[str, Any]) -> Response:
        """What a submission becomes where its key is new; only its id is not known yet."""
        question = submission["module_slug"], submission["question_id"]
        return Response(
            response_id=0,
            user_id=submission.get("user_id"),
            token=submission.get("anonymous_token"),
            question=question,
            key=submission["submission_key"],
            digest=self.before.published.get(question),
            answer=submission["answer_text"],
        )

    @precondition(lambda self: self.before.handoffs)
    @rule(question=questions, rubric=rubrics)
    def publish(self, question: Question, rubric: str) -> None:
        """Content that is new, current, or was current before."""
        self.publish_content(question, rubric)

    def publish_content(self, question: Question, rubric: str) -> None:
        """Publish one question."""
        content = question_content(module_slug=question[0], question_id=question[1], rubric=rubric)
        [row] = self.commit(lambda conn: publish_questions(conn, [content]))
        digest = row["question_digest"]
        assert row["published"] == (self.before.published.get(question) != digest)
        waiting = [
            handoff
            for handoff in self.handoffs.values()
            if handoff.is_open
            and handoff.digest is None
            and self.before.responses[handoff.response_id].question == question
        ]
        self.expect(
            *(revived(handoff, digest) for handoff in waiting),
            published={**self.before.published, question: digest},
        )
        self.did("publish", len(waiting))

    def _expect_applied(self, claim_id: int, token: str, user_id: int) -> int:
        moved, skipped = moved_by(self.before, token=token, user_id=user_id)
        claim = Claim(claim_id, token, user_id, len(moved), skipped)
        theirs = {row.response_id: replace(row, user_id=user_id, token=None) for row in moved}
        self.expect(
            responses={**self.before.responses, **theirs}, claims={**self.before.claims, claim_id: claim}
        )
        return len(moved)

    @precondition(lambda self: any(row.token for row in self.before.responses.values()))
    @rule(token=tokens, user_id=users)
    def claim(self, token: str, user_id: int) -> None:
        """Move at once what lies under a token."""
        moved = self.commit(
            lambda conn: claim_assessment_responses(conn, anonymous_token=token, user_id=user_id)
        )
        [claim_id] = self.commit(self._claims) - self.before.claims.keys()
        assert moved == self._expect_applied(claim_id, token, user_id)
        self.did("claim", moved)

    @staticmethod
    async def _claims(conn: AsyncConnection) -> set[int]:
        return set((await conn.execute(select(tables.claims.c.claim_id))).scalars())

    @precondition(
        lambda self: sum(claim.moved is None for claim in self.before.claims.values()) < MAX_WAITING
    )
    @rule(token=tokens, user_id=users)
    def request(self, token: str, user_id: int) -> None:
        """Ask for a claim, which somebody applies later, or never."""
        claim_id = self.commit(lambda conn: request_claim(conn, anonymous_token=token, user_id=user_id))
        self.expect(claims={**self.before.claims, claim_id: Claim(claim_id, token, user_id)})
        self.did("request a claim")

    @precondition(lambda self: self.before.claims)
    @rule(data=st.data())
    def apply(self, data: st.DataObject) -> None:
        """The sweep finds the claims that nobody has applied; one of these is applied, or an old one again."""
        waiting = [claim.claim_id for claim in self.before.claims.values() if claim.moved is None]
        assert self.commit(requested_claims) == waiting
        one = st.sampled_from(list(self.before.claims.values()))
        if waiting:
            one = st.sampled_from([self.before.claims[claim_id] for claim_id in waiting]) | one
        claim = data.draw(one)
        applied = self.commit(lambda conn: apply_claim(conn, claim.claim_id))
        if claim.moved is not None:
            assert applied is None
            self.did("apply a claim again")
            return
        moved = self._expect_applied(claim.claim_id, claim.token, claim.user_id)
        assert applied is not None
        assert applied["moved"] == moved
        self.did("apply a claim", moved)

    @precondition(lambda self: len(self.before.responses) > 4)
    @rule(owner=owners)
    def erase(self, owner: dict[str, Any]) -> None:
        """Nothing of somebody stays, and of others everything."""
        erased = self.commit(lambda conn: erase_responses(conn, **owner))
        name = {"user_id": "user_id", "anonymous_token": "token"}[next(iter(owner))]
        value = next(iter(owner.values()))
        gone = [key for key, row in self.before.responses.items() if getattr(row, name) == value]
        kept = {key: row for key, row in self.before.responses.items() if key not in gone}
        scores = tuple(score for score in self.before.scores if score.response_id not in gone)
        claims = {key: row for key, row in self.before.claims.items() if getattr(row, name) != value}
        assert erased == {
            "assessment_claims": len(self.before.claims) - len(claims),
            "assessment_drafts": 0,
            "scoring_handoffs": sum(key in gone for key in self.handoffs),
            "assessment_scores": len(self.before.scores) - len(scores),
            "assessment_responses": len(gone),
        }
        self.expect(gone=gone, responses=kept, scores=scores, claims=claims)
        self.did("erase", len(gone))

    def read(self, owner: dict[str, Any]) -> None:
        """A student sees his own answers alone, each with what became of it."""
        rows = self.commit(lambda conn: get_responses(conn, **owner))
        name = {"user_id": "user_id", "anonymous_token": "token"}[next(iter(owner))]
        mine = [
            row.response_id
            for row in self.before.responses.values()
            if getattr(row, name) == next(iter(owner.values()))
        ]
        assert [row["response_id"] for row in rows] == mine[::-1]
        for row in rows:
            assert row["scoring_state"] == self._shown(self.handoffs.get(row["response_id"]))
            current = [score for score in self.before.scores if score.response_id == row["response_id"]]
            assert (row["score"] or {}).get("model_id") == (current[-1].model_id if current else None)
        self.did("read", len(rows))

    def _shown(self, row: Handoff | None) -> str:
        if row is None:
            return "scored"
        if not row.is_open:
            return "failed"
        if row.digest is None:
            return "unpublished"
        assert not is_never(row.due)
        assert not isinstance(row.due, When)
        return "scoring" if row.token is not None and row.due > self.before.now else "waiting"
