"""A scorer that takes as long as it is told and writes down when it began; for worker processes of the benchmarks."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

from worker.scorers.protocol import Score

if TYPE_CHECKING:
    from worker.scorers.protocol import Answer, Question
    from worker.settings import ScoringSettings

NAME = "benchmarks.scorers:timed"
LOG_VARIABLE, SECONDS_VARIABLE = "BENCH_STARTS", "BENCH_SCORER_SECONDS"


class Timed:
    """Writes ``response_id nanoseconds`` for every answer, by the clock that all processes of a machine share."""

    def __init__(self, log: str, seconds: float) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._seconds = seconds

    async def score(self, question: Question, answer: Answer) -> Score:
        os.write(self._log, b"%d %d\n" % (answer.response_id, time.monotonic_ns()))
        if self._seconds:
            await asyncio.sleep(self._seconds)
        return Score(
            overall_score=question.scale_max, reasoning="Timed.", model_id="timed", prompt_version="1"
        )

    async def aclose(self) -> None:
        os.close(self._log)


def timed(settings: ScoringSettings) -> Timed:  # noqa: ARG001 - what every factory is given
    """Make the scorer that the environment asks for."""
    return Timed(os.environ[LOG_VARIABLE], float(os.environ[SECONDS_VARIABLE]))
