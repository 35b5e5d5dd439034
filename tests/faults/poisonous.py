"""A scorer that worker processes import by name, and that single answers break: they fail it, or kill its process."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from tests.worker.scripted import good_score
from worker.scorers.outcomes import AttemptFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.scorers.protocol import Answer, Question, Score
    from worker.settings import ScoringSettings

NAME = "tests.faults.poisonous:poisonous"
FAILS = "This answer has no score."
RAISES = "This answer is none that the scorer foresaw."
KILLS = "This answer kills whoever scores it."
_FOLDER = "FAULTS_FOLDER"
_PAUSE = "FAULTS_SCORER_SECONDS"


class Diary:
    """Which process began with which answer, for as long as the test lasts.

    Args:
        folder: Shared by the test and its worker processes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines = folder / "diary"

    def variables(self, *, scorer_seconds: float) -> Mapping[str, str]:
        """For the environment of a worker process whose scorer takes so long."""
        return {_FOLDER: str(self._folder), _PAUSE: str(scorer_seconds)}

    def begin(self, response_id: int) -> None:
        """Write one short line; those of several processes do not mix."""
        line = os.open(self._lines, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(line, f"{os.getpid()} {response_id}\n".encode())
        finally:
            os.close(line)

    def begun_by(self, pid: int) -> list[int]:
        """The responses that a process began with, in this order."""
        lines = (line.split() for line in self._lines.read_text().splitlines())
        return [int(response_id) for process, response_id in lines if int(process) == pid]


class Poisonous:
    """Scores well after a while, unless the answer says otherwise."""

    def __init__(self, diary: Diary, seconds: float) -> None:
        self._diary = diary
        self._seconds = seconds

    async def score(self, question: Question, answer: Answer) -> Score:  # noqa: ARG002 - the protocol's
        self._diary.begin(answer.response_id)
        match answer.text:
            case str(text) if text == FAILS:
                raise AttemptFailed("There is nothing to score.")
            case str(text) if text == RAISES:
                raise RuntimeError(answer.text)
            case str(text) if text == KILLS:
                # While all that was leased with it is half way.
                await asyncio.sleep(self._seconds / 2)
                os.kill(os.getpid(), signal.SIGKILL)
            case _:
                pass
        await asyncio.sleep(self._seconds)
        return good_score()

    async def aclose(self) -> None:
        return


def poisonous(settings: ScoringSettings) -> Poisonous:
    return Poisonous(Diary(Path(os.environ[_FOLDER])), float(os.environ[_PAUSE]))
