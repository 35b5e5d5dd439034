"""Who listens, and what each has not been given yet."""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from storage.validation import Owner

# A transaction id of PostgreSQL, with its epoch.
_MAX_TRANSACTION = 2**63 - 1
_CURSOR = re.compile("([1-9][0-9]{0,18})(?:-([0-9a-f]{8}))?")
# None of server-sent events, which readers written with a general way of splitting lines take for some nevertheless.
_LINE_ENDS = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}


class Cursor(NamedTuple):
    """Up to where a reader was told everything.

    Args:
        transaction: The ``xmin`` of a look's snapshot.
        lineage: Of the server that gave this number, as :func:`lineage_of` makes it.
    """

    transaction: int
    lineage: int

    def __str__(self) -> str:
        """As a client gets it, and gives it back."""
        return f"{self.transaction}-{self.lineage:08x}"


def lineage_of(told: str | None) -> int:
    """Turn what a server tells of its lineage into the number in a cursor; 0 where it tells nothing."""
    return 0 if told is None else zlib.crc32(told.encode())


def parse_cursor(given: str | None) -> Cursor | None:
    """Read what a client gives back; None where it is nothing of ours, which means: from the beginning."""
    found = None if given is None else _CURSOR.fullmatch(given)
    if found is None or int(found[1]) > _MAX_TRANSACTION:
        return None
    return Cursor(int(found[1]), int(found[2] or "0", 16))


def shown(row: Mapping[str, Any]) -> str:
    """What a student is told about an answer, as JSON on one line.

    Raises:
        TypeError: What the scorer has left is no score.
    """
    score = None
    if row["score_id"] is not None:
        data = row["score_data"]
        score = {
            "id": row["score_id"],
            "overall_score": data.get("overall_score"),
            "scale_min": row["scale_min"],
            "scale_max": row["scale_max"],
            "reasoning": data.get("reasoning") or "",
            "dimensions": [{"note": "", **dimension} for dimension in data.get("dimensions") or []],
            "model_id": row["model_id"],
            "created_at": row["scored_at"].astimezone(UTC).isoformat().replace("+00:00", "Z"),
        }
    line = json.dumps(
        {
            "id": row["response_id"],
            "module_slug": row["module_slug"],
            "question_id": row["question_id"],
            "state": row["state"],
            "score": score,
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )
    return line.translate(_LINE_ENDS)


class Listener:
    """One reader of one owner's answers. A slow one costs no more than one event for each of his answers.

    Args:
        owner: Whose answers.
        cursor: Everything up to there he knows; None: he knows nothing.
    """

    __slots__ = ("_pending", "_wake", "cursor", "ended", "is_current", "owner")

    def __init__(self, owner: Owner, cursor: Cursor | None) -> None:
        self.owner = owner
        self.cursor = cursor
        self.ended = False
        # False while he waits to be told what he has missed.
        self.is_current = False
        self._pending: dict[int, str] = {}
        self._wake = asyncio.Event()

    def offer(self, response_id: int, data: str) -> None:
        """Put an answer's newest state in the place of an older one that was not taken yet."""
        self._pending.pop(response_id, None)
        self._pending[response_id] = data
        self._wake.set()

    def advance(self, cursor: Cursor, *, wake: bool = False) -> None:
        """Say that everything up to here has been offered; ``wake`` to let the reader know even if that was nothing."""
        self.cursor = cursor
        if wake:
            self._wake.set()

    def take(self) -> tuple[list[str], Cursor | None]:
        """Take all that is there, and the cursor that holds once the reader has all of it."""
        taken = list(self._pending.values())
        self._pending.clear()
        self._wake.clear()
        return taken, self.cursor

    def end(self) -> None:
        """Let the reader stop."""
        self.ended = True
        self._wake.set()

    async def wait(self, seconds: float) -> bool:
        """Wait for something to take or for the end, at most so long.

        Returns:
            False where the time was up.
        """
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._wake.wait()
        except TimeoutError:
            return False
        return True


@dataclass(slots=True)
class Group:
    """All who listen to one owner's answers.

    ``watched`` holds what is known of his answers that are not scored; ``claims`` what he has claimed and is still to
    be moved.
    """

    listeners: set[Listener] = field(default_factory=set)
    watched: dict[int, str] = field(default_factory=dict)
    claims: set[int] = field(default_factory=set)
