"""A scorer that takes as long as it is told and writes down when it began; for worker processes of the benchmarks."""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

from worker.scorers.protocol import Score

if TYPE_CHECKING:
    from worker.scorers.protocol import Answer, Question
    from worker.settings import ScoringSettings

NAME = "benchmarks.scorers:timed"
LOG_VARIABLE, SECONDS_VARIABLE, SIGMA_VARIABLE = "BENCH_STARTS", "BENCH_SCORER_SECONDS", "BENCH_SIGMA"
# Whatever a lease statement is for, it writes this.
_LEASE = "leased_at = statement_timestamp()"


class Timed:
    """Writes ``response_id nanoseconds`` for every answer, by the clock that all processes of a machine share.

    Args:
        log: Where.
        seconds: How long an answer takes, on average.
        sigma: Standard deviation of the time's logarithm; 0 for a fixed time.
    """

    def __init__(self, log: str, seconds: float, sigma: float) -> None:
        self._path = Path(log)
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        # The mean of a log-normal time is median * exp(sigma² / 2).
        self._median_seconds = seconds * math.exp(-(sigma**2) / 2)
        self._sigma = sigma
        self.leases = 0

    async def score(self, question: Question, answer: Answer) -> Score:
        os.write(self._log, b"%d %d\n" % (answer.response_id, time.monotonic_ns()))
        if self._median_seconds:
            await asyncio.sleep(self._median_seconds * math.exp(self._sigma * random.gauss(0.0, 1.0)))
        return Score(
            overall_score=question.scale_max, reasoning="Timed.", model_id="timed", prompt_version="1"
        )

    def count(self, statement: str) -> None:
        """Count the statements that lease."""
        self.leases += _LEASE in statement

    async def aclose(self) -> None:
        os.close(self._log)
        with lease_counts(self._path).open("a") as counts:
            counts.write(f"{self.leases}\n")


def lease_counts(log: Path) -> Path:
    """Where each worker process writes, when it stops, how many statements it leased with."""
    return log.with_suffix(".leases")


def timed(settings: ScoringSettings) -> Timed:  # noqa: ARG001 - what every factory is given
    """Make the scorer that the environment asks for, and count this process's lease statements."""
    scorer = Timed(
        os.environ[LOG_VARIABLE],
        float(os.environ[SECONDS_VARIABLE]),
        float(os.environ.get(SIGMA_VARIABLE, "0")),
    )

    def executed(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        scorer.count(statement)

    event.listen(Engine, "before_cursor_execute", executed)
    return scorer
