"""What producers and the model server write down, one line each, so that it outlives whoever wrote it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAID = "paid"


@dataclass(frozen=True, slots=True)
class Asked:
    """An answer that a producer is about to submit, or to submit again: everything that makes it this one."""

    key: str
    at: float
    question_id: str
    text: str
    user_id: int | None = None
    anonymous_token: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """An answer whose storage was acknowledged to the producer."""

    key: str
    response_id: int
    at: float


@dataclass(frozen=True, slots=True)
class Refused:
    """An answer that was refused for good. Nothing that is submitted here deserves that."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claim whose storage was acknowledged."""

    claim_id: int
    anonymous_token: str
    user_id: int
    at: float


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the model, from its arrival to the end of its reply, in seconds since the epoch."""

    number: int
    response_id: int
    digest: str
    pid: int
    begun: float
    ended: float
    # PAID where the full reply was sent; else why there was none.
    outcome: str
    poison: str | None = None

    @property
    def handoff(self) -> tuple[int, str]:
        """What it was about. A rescore is against another edition, so it is another handoff."""
        return self.response_id, self.digest


Line = Asked | Stored | Refused | Claimed | Call
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Asked, Stored, Refused, Claimed, Call)}


class Journal:
    """A file that only grows. A line that was written is there, whatever happens to this process.

    Args:
        path: The file; several processes may write to it.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, line: Line) -> None:
        """Append a line, in one system call: no process can die in the middle of it."""
        os.write(self._file, json.dumps({"kind": type(line).__name__} | asdict(line)).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_journal(path: Path) -> Iterator[Line]:
    """Read the lines of a journal, oldest first; none where there is no file."""
    if not path.exists():
        return
    with path.open() as lines:
        for line in lines:
            values = json.loads(line)
            yield _KINDS[values.pop("kind")](**values)
