"""A scorer that never gives the event loop back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from worker.scorers.protocol import Answer, Question
    from worker.settings import ScoringSettings


class FreezingScorer:
    """Blocks, as a scorer with a synchronous client would."""

    def __init__(self, settings: ScoringSettings) -> None:
        pass

    async def score(self, question: Question, answer: Answer) -> NoReturn:  # noqa: ARG002 - the protocol's
        while True:
            time.sleep(60)  # noqa: ASYNC251 - the point of it

    async def aclose(self) -> None:
        pass
