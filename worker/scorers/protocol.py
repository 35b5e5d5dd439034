"""What a scorer is given and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field


@dataclass(frozen=True, slots=True)
class Dimension:
    """One aspect of the rubric that gets a score of its own."""

    name: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """What the student was asked, exactly as it was published; never changes for one digest."""

    digest: str
    module_slug: str
    question_id: str
    question_text: str
    rubric: str
    scale_min: float = 1.0
    scale_max: float = 5.0
    dimensions: tuple[Dimension, ...] = ()
    reference_answer: str | None = None
    learning_outcome_name: str | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """What the student wrote. Its ``repr`` carries no text, so that a traceback cannot leak an answer."""

    response_id: int
    text: str
    metadata: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"Answer(response_id={self.response_id}, chars={len(self.text)})"


class DimensionScore(BaseModel):
    """The score of one dimension."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    score: float
    note: str = ""


class Usage(BaseModel):
    """What one score cost. Counts add up over the repair, if there was one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: int = Field(default=0, ge=0, description="calls to the provider")
    input_tokens: int = Field(default=0, ge=0)
    output_tokens: int = Field(default=0, ge=0)
    cost_usd: float | None = Field(default=None, ge=0, description="None where no price is known")
    seconds: float = Field(default=0.0, ge=0, description="from the first call to the last reply")


class Score(BaseModel):
    """The scorer's verdict on one answer, on the scale of its question."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    overall_score: float
    reasoning: str
    dimensions: tuple[DimensionScore, ...] = ()
    key_observations: tuple[str, ...] = ()
    model_id: str = Field(min_length=1, description="which model or algorithm said so, with its version")
    prompt_version: str = Field(
        min_length=1, description="changes whenever the same answer could score differently"
    )
    usage: Usage = Usage()


@runtime_checkable
class Scorer(Protocol):
    """Scores answers. One instance serves a whole worker process, hundreds of answers at once."""

    async def score(self, question: Question, answer: Answer) -> Score:
        """Score one answer.

        Args:
            question: What was asked, with rubric and scale.
            answer: What the student wrote: untrusted text.

        Returns:
            A score whose ``overall_score`` lies on the question's scale.

        Raises:
            AttemptFailed: The scorer could not score it this time; uses up an attempt.
            ProviderTrouble: Nothing to do with the answer; postponed, no attempt used up.
            Hopeless: Trying again cannot help; dead at once.
        """
        ...

    async def aclose(self) -> None:
        """Release connections; called once, when the worker stops."""
        ...
