"""The producers: processes that submit, are killed, and are succeeded by others."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.chaos import processes
from tests.chaos.load import unfinished
from tests.chaos.terms import ANSWERS_PER_SECOND, ANSWERS_PER_SECOND_IN_BACKLOG, PRODUCERS

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Mapping
    from pathlib import Path

    from tests.chaos.ledger import Asked

# Producers that finish what they began, through whatever goes on at that moment.
FINISH_SECONDS = 60.0


@dataclass(slots=True)
class _Place:
    journal: Path
    process: Process


class Crowd:
    """All producers of a run.

    Args:
        folder: Where journals and logs go.
        environment: The addresses of the servers.
        seed: Of what is answered by whom.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], seed: int) -> None:
        self._folder = folder
        self._environment = environment
        self._seeds = itertools.count(seed)
        self._places: list[_Place] = []
        self._slow = False

    @property
    def journals(self) -> list[Path]:
        """What they wrote down."""
        return [place.journal for place in self._places]

    async def open(self) -> None:
        """Start them."""
        for number in range(PRODUCERS):
            journal = self._folder / f"producer-{number}.jsonl"
            self._places.append(_Place(journal, await self._start(journal)))

    async def _start(self, journal: Path) -> Process:
        words = ("--journal", str(journal), "--rate", str(self._rate), "--seed", str(next(self._seeds)))
        command = ("-m", "tests.chaos.load", *words)
        return await processes.start(command, self._environment, journal.with_suffix(".log"), orders=True)

    def order(self, text: str, number: int = 0) -> None:
        """Tell a producer: ``burst NUMBER``, ``rate ANSWERS_PER_SECOND``, ``poison KIND`` or ``stop``."""
        stdin = self._places[number].process.stdin
        assert stdin is not None
        if not stdin.is_closing():
            stdin.write(text.encode() + b"\n")

    def burst(self, answers: int) -> None:
        """Have so many more answers submitted at once."""
        for number in range(PRODUCERS):
            self.order(f"burst {answers // PRODUCERS}", number)

    def slow_down(self, *, slow: bool) -> None:
        """Have fewer answers submitted, or as many as usual."""
        if slow != self._slow:
            self._slow = slow
            for number in range(PRODUCERS):
                self.order(f"rate {self._rate}", number)

    @property
    def _rate(self) -> float:
        return (ANSWERS_PER_SECOND_IN_BACKLOG if self._slow else ANSWERS_PER_SECOND) / PRODUCERS

    async def kill(self, number: int) -> list[Asked]:
        """Kill a producer; its successor starts at once.

        Returns:
            What the dead one had begun and nobody had acknowledged.
        """
        place = self._places[number]
        await processes.kill(place.process)
        begun = unfinished(place.journal)
        place.process = await self._start(place.journal)
        return begun

    def unfinished(self, number: int) -> list[Asked]:
        """What a producer has begun and nobody has acknowledged."""
        return unfinished(self._places[number].journal)

    async def stop(self) -> list[str]:
        """Let them finish what they began, and end.

        Returns:
            What went wrong.
        """
        for number in range(len(self._places)):
            self.order("stop", number)
        statuses = [
            await processes.ended(place.process, patience_seconds=FINISH_SECONDS) for place in self._places
        ]
        return [f"producer {number} exited with {status}" for number, status in enumerate(statuses) if status]

    async def close(self) -> None:
        """End them at once."""
        for place in self._places:
            await processes.kill(place.process)
