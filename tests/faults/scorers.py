"""A scorer that worker processes import by name, and that writes down every call for the test to read."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from tests.worker.scripted import good_score

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.scorers.protocol import Answer, Question, Score
    from worker.settings import ScoringSettings

NAME = "tests.faults.scorers:recording"
_FOLDER = "FAULTS_FOLDER"
_PAUSE = "FAULTS_SCORER_SECONDS"
_CHARS = "FAULTS_SCORE_CHARS"
_LOOK_AGAIN_SECONDS = 0.05


class CallLog:
    """What the scorers of all processes wrote down, and the gate that keeps their answers waiting.

    Args:
        folder: Shared by the test and its worker processes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._calls = folder / "calls"
        self._gate = folder / "held"
        self._read_up_to = 0
        self._counted: dict[str, Counter[int]] = {"began": Counter(), "ended": Counter()}

    def variables(self, *, scorer_seconds: float = 0.0, score_chars: int = 0) -> Mapping[str, str]:
        """For the environment of a worker process.

        Args:
            scorer_seconds: How long its scorer takes for an answer.
            score_chars: How much it writes about it.
        """
        return {_FOLDER: str(self._folder), _PAUSE: str(scorer_seconds), _CHARS: str(score_chars)}

    def hold(self) -> None:
        """Keep answers waiting inside the scorer from now on."""
        self._gate.touch()

    def let_go(self) -> None:
        """Finish what waits."""
        self._gate.unlink(missing_ok=True)

    @property
    def holds(self) -> bool:
        """Whether answers wait."""
        return self._gate.exists()

    def note(self, what: str, response_id: int) -> None:
        """Write down one line; short ones of several processes do not mix."""
        line = os.open(self._calls, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(line, f"{what} {response_id}\n".encode())
        finally:
            os.close(line)

    @property
    def began(self) -> Counter[int]:
        """How often the scorer was called for each response: what was paid for."""
        return self._read()["began"].copy()

    @property
    def ended(self) -> Counter[int]:
        """How often the scorer came to a score for each response."""
        return self._read()["ended"].copy()

    def _read(self) -> dict[str, Counter[int]]:
        """Count what was added since the last look; the last line may not be whole yet."""
        if self._calls.exists():
            with self._calls.open("rb") as calls:
                calls.seek(self._read_up_to)
                whole, end, _ = calls.read().rpartition(b"\n")
            self._read_up_to += len(whole) + len(end)
            for line in whole.decode().splitlines():
                what, response_id = line.split()
                self._counted[what][int(response_id)] += 1
        return self._counted


class Recording:
    """Scores well, after a while, as soon as the gate is open."""

    def __init__(self, calls: CallLog, seconds: float, chars: int) -> None:
        self._calls = calls
        self._seconds = seconds
        self._chars = chars

    async def score(self, question: Question, answer: Answer) -> Score:  # noqa: ARG002 - the protocol's
        self._calls.note("began", answer.response_id)
        await asyncio.sleep(self._seconds)
        while self._calls.holds:  # noqa: ASYNC110 - another process opens the gate
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        self._calls.note("ended", answer.response_id)
        return good_score(
            model_id=f"recording-{os.getpid()}", reasoning=f"Names both. {secrets.token_urlsafe(self._chars)}"
        )

    async def aclose(self) -> None:
        return


def recording(settings: ScoringSettings) -> Recording:
    return Recording(CallLog(Path(os.environ[_FOLDER])), float(os.environ[_PAUSE]), int(os.environ[_CHARS]))
