"""What goes over the wire, for people and for client generators. What may be stored is checked by ``storage`` alone.

The patterns here say the same rules in the words of JSON Schema.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from producers.web.idempotency import UUID_PATTERN
from storage.limits import MAX_KEY_CHARS

if TYPE_CHECKING:
    from collections.abc import Mapping

# Characters that are drawn as nothing: white space, control and format characters, blank letters.
INVISIBLE = (
    r"\u0000-\u0020\u007f-\u00a0\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u1680"
    r"\u180e\u2000-\u200f\u2028-\u202f\u205f-\u2064\u2066-\u206f\u2800\u3000\u3164\ufeff\uffa0\ufff9-\ufffb"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001"
    "\U000e0020-\U000e007f"
)
VISIBLE_PATTERN = rf"^[^\u0000]*[^{INVISIBLE}][^\u0000]*$"
ANY_PATTERN = r"^[^\u0000]*$"

KEY_SCHEMA: dict[str, Any] = {"minLength": 1, "maxLength": MAX_KEY_CHARS, "pattern": VISIBLE_PATTERN}

Key = Annotated[str, Field(json_schema_extra=KEY_SCHEMA)]
AnswerText = Annotated[str, Field(json_schema_extra={"minLength": 1, "pattern": VISIBLE_PATTERN})]

State = Literal["waiting", "unpublished", "scoring", "scored", "failed"]
_EXAMPLE_TIME = "2026-03-02T09:15:27.482913Z"
_EXAMPLE_KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324"
_EXAMPLE_SUBMISSION = {
    "module_slug": "photosynthesis",
    "question_id": "why-leaves-are-green",
    "answer_text": "Chlorophyll absorbs red and blue light and reflects the green.",
}
_EXAMPLE_SCORE = {
    "id": 17,
    "overall_score": 4.5,
    "scale_min": 1.0,
    "scale_max": 5.0,
    "reasoning": "Names chlorophyll and says which light it absorbs.",
    "dimensions": [{"name": "accuracy", "score": 5.0, "note": "Nothing is wrong."}],
    "model_id": "gpt-4.1-mini",
    "created_at": "2026-03-02T09:15:29.120551Z",
}
_EXAMPLE_WAITING = {
    "id": 42,
    **_EXAMPLE_SUBMISSION,
    "created_at": _EXAMPLE_TIME,
    "state": "waiting",
    "score": None,
}
_EXAMPLE_SCORED = _EXAMPLE_WAITING | {"state": "scored", "score": _EXAMPLE_SCORE}


def _config(title: str, example: Mapping[str, Any]) -> ConfigDict:
    return ConfigDict(title=title, json_schema_extra={"examples": [dict(example)]})


class Submission(BaseModel):
    """An answer."""

    model_config = _config("AssessmentSubmission", _EXAMPLE_SUBMISSION) | ConfigDict(extra="forbid")

    module_slug: Key
    question_id: Key
    answer_text: AnswerText
    learning_outcome_id: Key | None = Field(
        None, description="the web app's own reference; stored, not interpreted"
    )
    content_id: Key | None = Field(None, description="the web app's own reference; stored, not interpreted")
    answer_metadata: dict[str, Any] | None = Field(
        None, description="anything that describes the answer, at most 16 KiB of JSON"
    )


class DimensionScore(BaseModel):
    """The score of one aspect of the rubric."""

    model_config = ConfigDict(title="AssessmentDimensionScore")

    name: str
    score: float
    note: str = ""


class Score(BaseModel):
    """What the scorer says about an answer."""

    model_config = _config("AssessmentScore", _EXAMPLE_SCORE)

    id: int
    overall_score: float
    scale_min: float
    scale_max: float
    reasoning: str
    dimensions: list[DimensionScore] = []
    model_id: str
    created_at: datetime

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Show a score as storage returns it."""
        data = row["score_data"]
        return cls(
            id=row["score_id"],
            overall_score=data["overall_score"],
            scale_min=row["scale_min"],
            scale_max=row["scale_max"],
            reasoning=data.get("reasoning") or "",
            dimensions=data.get("dimensions") or [],
            model_id=row["model_id"],
            created_at=row["created_at"],
        )


class StoredResponse(BaseModel):
    """An answer, how far it is, and its current score."""

    model_config = _config("AssessmentResponse", _EXAMPLE_SCORED)

    id: int
    module_slug: str
    question_id: str
    answer_text: str
    created_at: datetime
    state: State = Field(
        description="waiting: for the scorer; unpublished: for its question; scoring: is being scored; scored: see "
        "score, which stays while an answer is scored again; failed: a person must act"
    )
    score: Score | None

    @classmethod
    def of(cls, row: Mapping[str, Any], **more: Any) -> Self:
        """Show an answer as storage reads it."""
        return cls(
            id=row["response_id"],
            module_slug=row["module_slug"],
            question_id=row["question_id"],
            answer_text=row["answer_text"],
            created_at=row["created_at"],
            state=row["scoring_state"],
            score=None if row["score"] is None else Score.of(row["score"]),
            **more,
        )

    @classmethod
    def as_submitted(cls, row: Mapping[str, Any]) -> Self:
        """Show an answer as it was when it was stored: the same for every repetition."""
        state = "unpublished" if row["question_digest"] is None else "waiting"
        return cls.of({**row, "scoring_state": state, "score": None})


class ScoredResponse(StoredResponse):
    """An answer with all its scores."""

    model_config = _config("AssessmentResponseWithScores", _EXAMPLE_SCORED | {"scores": [_EXAMPLE_SCORE]})

    scores: list[Score] = Field(description="newest first; the first one is the current one")

    @classmethod
    def with_scores(cls, row: Mapping[str, Any]) -> Self:
        """Show an answer as :func:`storage.get_response` reads it."""
        return cls.of(row, scores=[Score.of(score) for score in row["scores"]])


class Page(BaseModel):
    """Some answers, newest first."""

    model_config = _config(
        "AssessmentResponsePage", {"items": [_EXAMPLE_SCORED], "next_cursor": "AQAAAAAAAAAq"}
    )

    items: list[StoredResponse]
    next_cursor: str | None = Field(description="for the next page; null on the last one")


class DraftText(BaseModel):
    """What a student has written so far."""

    model_config = _config(
        "AssessmentDraftText", {"answer_text": "Chlorophyll abs", "submission_key": _EXAMPLE_KEY}
    ) | ConfigDict(extra="forbid")

    answer_text: Annotated[str, Field(json_schema_extra={"pattern": ANY_PATTERN})]
    submission_key: str = Field(
        description="the Idempotency-Key with which the answer will be submitted, as crypto.randomUUID() makes it",
        json_schema_extra={"pattern": UUID_PATTERN},
    )


class Draft(BaseModel):
    """What a student has written and not submitted."""

    model_config = _config(
        "AssessmentDraft",
        {
            "module_slug": "photosynthesis",
            "question_id": "why-leaves-are-green",
            "answer_text": "Chlorophyll abs",
            "submission_key": _EXAMPLE_KEY,
            "saved_at": _EXAMPLE_TIME,
        },
    )

    module_slug: str
    question_id: str
    answer_text: str
    submission_key: str
    saved_at: datetime

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Show a draft as storage returns it."""
        return cls(
            module_slug=row["module_slug"],
            question_id=row["question_id"],
            answer_text=row["answer_text"],
            submission_key=str(row["submission_key"]),
            saved_at=row["saved_at"],
        )


class ClaimRequest(BaseModel):
    """Nothing: who claims, and what, is known from the session."""

    model_config = _config("AssessmentClaimRequest", {}) | ConfigDict(extra="forbid")


class ClaimAccepted(BaseModel):
    """A claim that is stored, and will be applied a moment later."""

    model_config = _config("AssessmentClaim", {"claim_id": 3})

    claim_id: int
