"""A scorer of somebody else's that quotes the answer in all that it raises and returns, as worker processes import it.

What it does stands in the answer: ``do:NAME``, one of ``WAYS`` or ``LETHAL``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from tests.worker.scripted import good_score
from worker.scorers.outcomes import ProviderTrouble
from worker.scorers.protocol import DimensionScore, Score, Usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.scorers.protocol import Answer, Question
    from worker.settings import ScoringSettings

NAME = "tests.faults.leaky:leaky"
_ENTERED = "FAULTS_FOLDER"


class QuotingError(Exception):
    """Quotes whatever it was given, in every form that it has."""

    def __repr__(self) -> str:
        return f"QuotingError({self.args})"


def _raise(make: Callable[[str], BaseException]) -> Callable[[str], NoReturn]:
    def behave(said: str) -> NoReturn:
        raise make(said)

    return behave


def _raise_caused(said: str) -> NoReturn:
    raise QuotingError(said) from KeyError(said)


def _raise_with_note(said: str) -> NoReturn:
    error = QuotingError(said)
    error.add_note(said)
    raise error


def _unsound(**changes: Any) -> Score:
    """A score that no check of its own has seen."""
    sound = good_score()
    return Score.model_construct(**{name: getattr(sound, name) for name in Score.model_fields} | changes)


def _parse(said: str) -> Score:
    return Score.model_validate_json(f'{{"overall_score": "{said}", "reasoning": 5}}')


_WAYS: Final[dict[str, Callable[[str], object]]] = {
    "value_error": _raise(ValueError),
    "unicode_error": lambda said: f"{said}\ud800".encode(),
    "key_error": _raise(KeyError),
    "caused": _raise_caused,
    "noted": _raise_with_note,
    "group": _raise(lambda said: ExceptionGroup(said, [ValueError(said)])),
    "exit": _raise(SystemExit),
    "timeout": _raise(TimeoutError),
    "os_error": _raise(lambda said: OSError(5, said, said)),
    "cancelled": _raise(asyncio.CancelledError),
    "validation": _parse,
    "odd_trouble": _raise(
        lambda said: ProviderTrouble("It failed.", retry_after_seconds=cast("float", said))
    ),
    "returns_text": lambda said: said,
    "returns_mapping": lambda said: {said: said},
    "score_is_text": lambda said: _unsound(overall_score=said),
    "reasoning_is_list": lambda said: _unsound(reasoning=[said]),
    "dimension_is_text": lambda said: _unsound(dimensions=(said,)),
    "off_scale": lambda said: good_score(overall_score=99, reasoning=said),
    "oversized": lambda said: good_score(reasoning=said * 10_000),
    "nul": lambda said: good_score(reasoning=f"{said}\x00"),
    "surrogate": lambda said: good_score(reasoning=f"{said}\ud800"),
    "nul_in_name": lambda said: good_score(dimensions=(DimensionScore(name=f"\x00{said}", score=3),)),
    "infinite": lambda said: _unsound(
        reasoning=said, usage=Usage.model_construct(requests=1, seconds=float("inf"))
    ),
}
WAYS: Final = tuple(sorted(_WAYS))
LETHAL: Final = ("kill", "stuck", "hang")


class Leaky:
    """Scores well, unless the answer says otherwise."""

    def __init__(self, entered: Path | None) -> None:
        self._entered = entered

    async def score(self, question: Question, answer: Answer) -> Score:  # noqa: ARG002 - the protocol's
        asked = re.search(r"do:(\w+)", answer.text)
        way = asked[1] if asked else "well"
        if self._entered:
            (self._entered / way).touch()
        match way:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stuck":
                while True:
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.sleep(3600)
            case "hang":
                await asyncio.Event().wait()
            case "well":
                pass
            case _:
                return cast("Score", _WAYS[way](f"{answer.text} {answer.metadata}"))
        return good_score()

    async def aclose(self) -> None:
        return


def leaky(settings: ScoringSettings) -> Leaky:
    return Leaky(Path(os.environ[_ENTERED]))
