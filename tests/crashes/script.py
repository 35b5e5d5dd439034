"""What the students answer, and a scorer that treats each answer as the answer says.

The scorer notes every call in a file, before it does anything else: a model that was asked has been paid.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tests.worker.scripted import good_score
from worker.scorers.outcomes import AttemptFailed, Hopeless, ProviderTrouble

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.scorers.protocol import Answer, Question, Score
    from worker.settings import ScoringSettings

# Where the forked worker's scorer keeps its notes.
FOLDER_VARIABLE = "CRASH_FOLDER"
# Longer than several renewals.
SLOW_SECONDS = 0.25
# So that other commands are sent while an answer is with the scorer.
QUICK_SECONDS = 0.01

Verdict = Literal["score", "failure", "trouble", "hopeless", "silence"]

GOOD = "good"
SLOW = "slow"
FAILS_ONCE = "fails once"
TROUBLED_ONCE = "meets provider trouble once"
HOPELESS = "hopeless"
HOPELESS_UNTIL_MENDED = "hopeless until mended"
UNFINISHED = "unfinished until the worker has gone"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the model."""

    pid: int
    response_id: int
    question_digest: str
    verdict: Verdict

    @property
    def handoff(self) -> tuple[int, str]:
        """What the call was for: no response is handed off twice with one edition of its question."""
        return self.response_id, self.question_digest


class Notes:
    """What the scorers of one run wrote down, and what an operator has told them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._calls = folder / "calls"

    def calls(self) -> list[Call]:
        """Every call so far, of whichever process, in order."""
        return list(self._read())

    def _read(self) -> Iterator[Call]:
        if self._calls.exists():
            for line in self._calls.read_text().splitlines():
                pid, response_id, digest, verdict = line.split()
                yield Call(int(pid), int(response_id), digest, verdict)  # type: ignore[arg-type]

    def add(self, call: Call) -> None:
        """Note a call, in one write: whoever is killed has noted it or not."""
        line = f"{call.pid} {call.response_id} {call.question_digest} {call.verdict}\n".encode()
        file = os.open(self._calls, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, line)
        os.close(file)

    def say(self, what: str) -> None:
        """Tell the scorers something, for good."""
        (self._folder / what).touch()

    def heard(self, what: str) -> bool:
        """Whether they have been told."""
        return (self._folder / what).exists()


class AnswersScript:
    """Does what the answer says."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def _verdict(self, text: str, calls_before: int) -> Verdict:
        if text == HOPELESS or (text == HOPELESS_UNTIL_MENDED and not self._notes.heard("mended")):
            return "hopeless"
        if text == UNFINISHED and not self._notes.heard("gone"):
            return "silence"
        if calls_before == 0 and text == FAILS_ONCE:
            return "failure"
        if calls_before == 0 and text == TROUBLED_ONCE:
            return "trouble"
        return "score"

    async def score(self, question: Question, answer: Answer) -> Score:
        handoff = answer.response_id, question.digest
        before = Counter(call.handoff for call in self._notes.calls())[handoff]
        verdict = self._verdict(answer.text, before)
        self._notes.add(Call(os.getpid(), *handoff, verdict))
        await asyncio.sleep(SLOW_SECONDS if answer.text == SLOW else QUICK_SECONDS)
        match verdict:
            case "failure":
                raise AttemptFailed("Scripted: the attempt failed.")
            case "trouble":
                raise ProviderTrouble("Scripted: the provider failed.")
            case "hopeless":
                raise Hopeless("Scripted: it cannot be scored.")
            case "silence":
                await asyncio.Event().wait()
        return good_score()

    async def aclose(self) -> None:
        return


def scorer(_settings: ScoringSettings) -> AnswersScript:
    return AnswersScript(Notes(Path(os.environ[FOLDER_VARIABLE])))
