"""PostgreSQL: so many statements at a time, and the handoffs that are due."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Database:
    """Serves statements first come, first served, ``parallel`` at a time; and knows which handoffs are due.

    When a statement ends is known when it is sent, so no event is needed for its waiting.

    Args:
        parallel: Statements that are served at the same time.
        answers: How many there will be.
    """

    def __init__(self, parallel: int, answers: int) -> None:
        self.parallel = parallel
        self._free_at = [0.0] * parallel
        self.busy_seconds = 0.0
        self.statements: Counter[str] = Counter()
        self._due: deque[int] = deque()
        self._is_due = bytearray(answers)
        self.due = 0

    def ends(self, now: float, kind: str, seconds: float) -> float:
        """When a statement that is sent now ends."""
        end = max(now, self._free_at[0]) + seconds
        heapq.heapreplace(self._free_at, end)
        self.busy_seconds += seconds
        self.statements[kind] += 1
        return end

    def hand_off(self, answers: Iterable[int]) -> None:
        """Make handoffs due; the oldest are those that come first."""
        for answer in answers:
            self._due.append(answer)
            self._is_due[answer] = 1
            self.due += 1

    @property
    def oldest(self) -> int | None:
        """The answer that has been due for longest."""
        while self._due and not self._is_due[self._due[0]]:
            self._due.popleft()
        return self._due[0] if self._due else None

    def pull(self, limit: int) -> list[int]:
        """Take the oldest."""
        taken: list[int] = []
        while self._due and len(taken) < limit:
            answer = self._due.popleft()
            if self._is_due[answer]:
                self._is_due[answer] = 0
                taken.append(answer)
        self.due -= len(taken)
        return taken

    def lease(self, answers: Sequence[int], limit: int) -> list[int]:
        """Take those of them that are due still."""
        taken = [answer for answer in answers if self._is_due[answer]][:limit]
        for answer in taken:
            self._is_due[answer] = 0
        self.due -= len(taken)
        return taken
