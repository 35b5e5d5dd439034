"""Why a model call was paid twice: attributed to what the run itself did to whom, and when. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.chaos.ledger import Call

# A finished score waits for its commit, in an outage of PostgreSQL until that is over.
COMMIT_SECONDS = 5.0
# A reply that the model server has sent may be on its way through the proxy when that falls silent.
MARGIN_SECONDS = 1.0
# A worker that was away may find a lease in its hands that was granted long ago, and begin with it.
AFTERMATH_SECONDS = 5.0


class Cause(StrEnum):
    """What makes a second call right, or at least forgivable."""

    KILLED = "its worker was killed before the score was committed"
    POISONED = "its worker was killed by the answer that kills workers"
    STALLED = "its worker was stalled for longer than its lease"
    CUT_OFF = "its worker was cut off from PostgreSQL for longer than its lease"
    CRASHED = "PostgreSQL crashed and forgot the lease"
    REPLY_LOST = "the reply was lost between model and worker"


@dataclass(frozen=True, slots=True)
class Wound:
    """What the run did, as far as it can make a call be paid twice.

    ``fault`` is the number of the fault in the run; None for what no fault of the plan did.
    """

    cause: Cause
    since: float
    until: float
    pid: int | None = None
    fault: int | None = None

    def explains(self, wasted: Call, calls: Sequence[Call]) -> bool:
        """Whether it is the reason why one of the calls for a handoff did not count.

        Args:
            wasted: The call that did not.
            calls: All paid ones for the handoff.
        """
        match self.cause:
            case Cause.KILLED | Cause.POISONED:
                # Whatever it had asked for and not committed; how soon the model server noticed does not matter.
                return self._struck(wasted) and self._touches(wasted)
            case Cause.STALLED | Cause.CUT_OFF:
                # Either the one that was late is wasted, or the one that was made in its stead.
                return any(self._struck(call) and self._touches(call, AFTERMATH_SECONDS) for call in calls)
            case Cause.CRASHED:
                return any(self._touches(call) for call in calls) and any(
                    call.begun > self.since for call in calls
                )
            case Cause.REPLY_LOST:
                return self._struck(wasted) and (
                    wasted.begun < self.until and wasted.ended > self.since - MARGIN_SECONDS
                )

    def _struck(self, call: Call) -> bool:
        return call.pid == self.pid

    def _touches(self, call: Call, aftermath_seconds: float = 0.0) -> bool:
        return call.begun < self.until + aftermath_seconds and call.ended > self.since - COMMIT_SECONDS


@dataclass(frozen=True, slots=True)
class Wasted:
    """A paid call that did not count, and why; ``wound`` is None where nothing explains it."""

    call: Call
    calls: tuple[Call, ...]
    wound: Wound | None


def attribute(paid: Iterable[Call], counted: Iterable[int], wounds: Sequence[Wound]) -> list[Wasted]:
    """Find the calls that were paid for a handoff besides the one that counted, and say why.

    Args:
        paid: Calls that were paid, without those for poisoned answers.
        counted: The numbers of the calls whose score was stored.
        wounds: What the run did.

    Returns:
        One for each call that was one too many.
    """
    stored = frozenset(counted)
    by_handoff: dict[tuple[int, str], list[Call]] = {}
    for call in sorted(paid, key=lambda call: call.begun):
        by_handoff.setdefault(call.handoff, []).append(call)
    found = []
    for calls in by_handoff.values():
        # Where none was stored, the handoff was replaced by a rescore: the last one is what it would have cost.
        right = next((call for call in calls if call.number in stored), calls[-1])
        for wasted in calls:
            if wasted is not right:
                explained = (wound for wound in wounds if wound.explains(wasted, calls))
                found.append(Wasted(wasted, tuple(calls), next(explained, None)))
    return found
