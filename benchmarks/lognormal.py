"""A scorer whose times are log-normal, as a model's are, and the same in every run; for worker processes."""

from __future__ import annotations

import asyncio
import math
import os
import random
from typing import TYPE_CHECKING

from worker.scorers.protocol import Score

if TYPE_CHECKING:
    from worker.scorers.protocol import Answer, Question
    from worker.settings import ScoringSettings

NAME = "benchmarks.lognormal:lognormal"
MEDIAN_VARIABLE, SIGMA_VARIABLE, SEED_VARIABLE = "BENCH_MEDIAN_SECONDS", "BENCH_SIGMA", "BENCH_SEED"
# So many seeds lie between two runs: the answer's number is added, and no two runs share a draw.
_STRIDE = 1_000_003


def model_seconds(seed: int, number: int, *, median_seconds: float, sigma: float) -> float:
    """How long the model takes for one answer: the same in every process, whoever asks and when.

    Args:
        seed: Of the run.
        number: Of the answer.
        median_seconds: Half of the answers take longer.
        sigma: Standard deviation of the time's logarithm; the mean is ``median * exp(sigma² / 2)``.
    """
    draw = random.Random(seed * _STRIDE + number)  # noqa: S311 - no secret
    return median_seconds * math.exp(sigma * draw.gauss(0.0, 1.0))


class Lognormal:
    """Waits as long as :func:`model_seconds` says, by ``response_id``."""

    def __init__(self, *, seed: int, median_seconds: float, sigma: float) -> None:
        self._seed = seed
        self._median_seconds = median_seconds
        self._sigma = sigma

    async def score(self, question: Question, answer: Answer) -> Score:
        await asyncio.sleep(
            model_seconds(
                self._seed, answer.response_id, median_seconds=self._median_seconds, sigma=self._sigma
            )
        )
        return Score(
            overall_score=question.scale_max,
            reasoning="Log-normal.",
            model_id="lognormal",
            prompt_version="1",
        )

    async def aclose(self) -> None:
        pass


def lognormal(settings: ScoringSettings) -> Lognormal:  # noqa: ARG001 - what every factory is given
    """Make the scorer that the environment asks for."""
    return Lognormal(
        seed=int(os.environ[SEED_VARIABLE]),
        median_seconds=float(os.environ[MEDIAN_VARIABLE]),
        sigma=float(os.environ[SIGMA_VARIABLE]),
    )
