"""Scorers that worker processes of tests import by name, as they would import a user's own."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from tests.worker.scripted import good_score

if TYPE_CHECKING:
    from worker.scorers.protocol import Answer, Question, Score
    from worker.settings import ScoringSettings


class Hanging:
    """Never returns."""

    async def score(self, question: Question, answer: Answer) -> Score:  # noqa: ARG002 - the protocol's
        await asyncio.Event().wait()
        raise NotImplementedError

    async def aclose(self) -> None:
        return


class Slow:
    """Takes a moment, and says in which process."""

    async def score(self, question: Question, answer: Answer) -> Score:  # noqa: ARG002 - the protocol's
        await asyncio.sleep(0.02)
        return good_score(model_id=f"slow-{os.getpid()}")

    async def aclose(self) -> None:
        return


def hanging(settings: ScoringSettings) -> Hanging:
    return Hanging()


def slow(settings: ScoringSettings) -> Slow:
    return Slow()
