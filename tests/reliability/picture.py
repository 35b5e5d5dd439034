"""The whole database at one moment, as plain values: what a state machine expects, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from uuid import UUID

NEVER = datetime.max  # noqa: DTZ901 - how the driver reads 'infinity'; the time zone is its own business
Question = tuple[str, str]


class When(Enum):
    """A time stamp that a statement sets; which one exactly is PostgreSQL's business."""

    NOW = "at this moment"
    LATER = "some day"
    NEVER = "infinity"


@dataclass(frozen=True, slots=True)
class Response:
    """A row of ``assessment_responses``."""

    response_id: int
    user_id: int | None
    token: str | None
    question: Question
    key: UUID
    digest: str | None
    answer: str


@dataclass(frozen=True, slots=True)
class Handoff:
    """A row of ``scoring_handoffs``; as an expectation, ``handoff_id`` None stands for one never seen before."""

    response_id: int
    handoff_id: int | None
    digest: str | None
    due: datetime | When
    lane: str = "live"
    state: str = "open"
    token: UUID | None = None
    leased_at: datetime | When | None = None
    attempts: int = 0
    postponements: int = 0
    suspicions: int = 0
    losses: int = 0
    error: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether it may still be scored by itself."""
        return self.state == "open"


@dataclass(frozen=True, slots=True)
class Score:
    """A row of ``assessment_scores``."""

    response_id: int
    handoff_id: int
    digest: str
    model_id: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A row of ``assessment_claims``; ``moved`` and ``skipped`` are None until it is applied."""

    claim_id: int
    token: str
    user_id: int
    moved: int | None = None
    skipped: int | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """What is committed. Handoffs are found by their response, scores stand in the order of their ids."""

    now: datetime
    responses: Mapping[int, Response]
    handoffs: Mapping[int, Handoff]
    scores: tuple[Score, ...]
    claims: Mapping[int, Claim]
    published: Mapping[Question, str]
    """The digest that is current."""

    def with_id(self, handoff_id: int) -> Handoff | None:
        """The handoff of this identity, if it lives."""
        return next((row for row in self.handoffs.values() if row.handoff_id == handoff_id), None)

    def answered_by(self, user_id: int) -> frozenset[Question]:
        """The questions to which a user has answers."""
        return frozenset(row.question for row in self.responses.values() if row.user_id == user_id)


# Everything in one statement: one snapshot, whoever commits meanwhile, and one round trip.
_EVERYTHING = """
    SELECT
        statement_timestamp() AS now,
        ARRAY(SELECT r FROM assessment_responses AS r ORDER BY response_id) AS responses,
        ARRAY(SELECT h FROM scoring_handoffs AS h ORDER BY handoff_id) AS handoffs,
        ARRAY(SELECT s FROM assessment_scores AS s ORDER BY score_id) AS scores,
        ARRAY(SELECT c FROM assessment_claims AS c ORDER BY claim_id) AS claims,
        ARRAY(SELECT q FROM assessment_questions AS q ORDER BY publication) AS questions
"""


async def take_picture(observer: Any) -> Picture:
    """Look at everything that is committed.

    Args:
        observer: A driver's connection of its own; see ``tests.databases.raw_connection``.
    """
    found = await observer.fetchrow(_EVERYTHING)
    return Picture(
        now=found["now"],
        responses={
            row["response_id"]: Response(
                row["response_id"],
                row["user_id"],
                row["anonymous_token"],
                (row["module_slug"], row["question_id"]),
                row["submission_key"],
                row["question_digest"],
                row["answer_text"],
            )
            for row in found["responses"]
        },
        handoffs={
            row["response_id"]: Handoff(
                response_id=row["response_id"],
                handoff_id=row["handoff_id"],
                digest=row["question_digest"],
                due=row["due_at"],
                lane=row["lane"],
                state=row["state"],
                token=row["lease_token"],
                leased_at=row["leased_at"],
                attempts=row["attempts"],
                postponements=row["postponements"],
                suspicions=row["suspicions"],
                losses=row["lease_losses"],
                error=row["last_error"],
            )
            for row in found["handoffs"]
        },
        scores=tuple(
            Score(row["response_id"], row["handoff_id"], row["question_digest"], row["model_id"])
            for row in found["scores"]
        ),
        claims={
            row["claim_id"]: Claim(
                row["claim_id"], row["anonymous_token"], row["user_id"], row["moved"], row["skipped"]
            )
            for row in found["claims"]
        },
        # The last one of each question stays.
        published={
            (row["module_slug"], row["question_id"]): row["question_digest"] for row in found["questions"]
        },
    )


def is_never(moment: datetime | When | None) -> bool:
    """Whether a time stamp is ``infinity``."""
    return isinstance(moment, datetime) and moment.replace(tzinfo=None) == NEVER


def _fits(expected: datetime | When | None, found: datetime | When | None, *, now: datetime) -> bool:
    match expected:
        case When.NOW:
            return isinstance(found, datetime) and not is_never(found) and found <= now
        case When.LATER:
            return isinstance(found, datetime) and not is_never(found) and found > now
        case When.NEVER:
            return is_never(found)
        case _:
            return expected == found


def _unlike(expected: Handoff, found: Handoff, *, now: datetime) -> Iterator[str]:
    for field in fields(Handoff):
        wanted, got = getattr(expected, field.name), getattr(found, field.name)
        if field.name in {"due", "leased_at"}:
            fits = _fits(wanted, got, now=now)
        else:
            fits = wanted == got or (field.name == "handoff_id" and wanted is None)
        if not fits:
            yield f"handoff of {found.response_id}: {field.name} is {got!r}, expected {wanted!r}"


def differences(expected: Picture, found: Picture) -> list[str]:
    """Say what is not as expected; nothing where all is."""
    named = [
        ("responses", expected.responses, found.responses),
        ("scores", expected.scores, found.scores),
        ("claims", expected.claims, found.claims),
        ("published", expected.published, found.published),
        ("responses with a handoff", expected.handoffs.keys(), found.handoffs.keys()),
    ]
    said = [f"{name}: {got!r}, expected {wanted!r}" for name, wanted, got in named if wanted != got]
    for response_id in expected.handoffs.keys() & found.handoffs.keys():
        said += _unlike(expected.handoffs[response_id], found.handoffs[response_id], now=found.now)
    return said
