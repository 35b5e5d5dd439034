"""A scorer for pictures of a busy pipeline: takes a model's time and tokens, and fails now and then as one does.

Nothing is asked and nothing is judged: scores are drawn at random. Chosen with SCORING_SCORER=demo.busy_scorer:BusyScorer.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from worker.scorers.outcomes import AttemptFailed, Hopeless, ProviderTrouble
from worker.scorers.protocol import Score, Usage

if TYPE_CHECKING:
    from worker.scorers.protocol import Answer, Question
    from worker.settings import ScoringSettings

MEDIAN_SECONDS, SIGMA = 1.8, 0.45
REFUSED, TOO_LONG = "The model refuses to score this answer.", "The model's reply is longer than it may be."


class BusyScorer:
    """Draws a score for each answer, after a time that is drawn too."""

    def __init__(self, settings: ScoringSettings) -> None:
        self._longest_reply = settings.llm_max_output_tokens
        self._luck = random.Random(1)  # noqa: S311 - no secret

    async def score(self, question: Question, answer: Answer) -> Score:
        """Take a while, then score, or fail in one of the ways in which models fail."""
        seconds = self._luck.lognormvariate(0, SIGMA) * MEDIAN_SECONDS
        await asyncio.sleep(seconds)
        luck = self._luck.random()
        if luck < 0.01:  # noqa: PLR2004 - a few in a thousand
            raise Hopeless(REFUSED if luck < 0.007 else TOO_LONG)  # noqa: PLR2004
        if luck < 0.018:  # noqa: PLR2004
            raise ProviderTrouble("The provider answers 529: it is overloaded.")
        if luck < 0.026:  # noqa: PLR2004
            raise AttemptFailed("The reply is not of the form that was asked for, also after the repair.")
        share = self._luck.betavariate(2.6, 1.5)
        return Score(
            overall_score=question.scale_min + share * (question.scale_max - question.scale_min),
            reasoning=f"Drawn at random, for an answer of {len(answer.text)} characters.",
            model_id="random-1",
            prompt_version="1",
            usage=Usage(
                requests=1,
                input_tokens=self._luck.randint(640, 1180),
                output_tokens=min(self._longest_reply, self._luck.randint(90, 260)),
                cost_usd=self._luck.uniform(0.0004, 0.0011),
                seconds=seconds,
            ),
        )

    async def aclose(self) -> None:
        """Nothing is open."""
