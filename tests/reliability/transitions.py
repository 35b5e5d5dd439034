"""What each transition makes of a handoff. Written from the design, without a look at the SQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from tests.reliability.picture import Handoff, When

if TYPE_CHECKING:
    from uuid import UUID

SUSPECT_AFTER = 3
BURIED_AFTER = 10
LOST_REASON = (
    "Its worker stopped without a word 10 times while scoring this answer, the last time "
    "with no other answer in hand: it probably crashes or stalls the scorer."
)


def losses_when_leased(row: Handoff) -> int:
    """A lease that is taken from somebody counts as lost."""
    return row.losses + (row.token is not None)


def is_due(row: Handoff, now: datetime, *, just_started: bool) -> bool:
    """Whether it may be leased. Right after PostgreSQL's start no lease counts as run out."""
    return (
        row.is_open
        and row.digest is not None
        and isinstance(row.due, datetime)
        and row.due <= now
        and not (just_started and row.token is not None)
    )


def is_ordinary(row: Handoff) -> bool:
    """Whether it may be scored beside others."""
    return losses_when_leased(row) < SUSPECT_AFTER


def is_suspect(row: Handoff) -> bool:
    """Whether it must be scored among its like."""
    return SUSPECT_AFTER <= losses_when_leased(row) < BURIED_AFTER


def group_of(suspects: list[Handoff], *, slots: int) -> list[Handoff]:
    """Those that are scored together, of suspects that are due, the longest due first.

    As many losses as the first one, and a quarter of the slots for each loss beyond the second.
    """
    if not suspects:
        return []
    losses = losses_when_leased(suspects[0])
    group = [row for row in suspects if losses_when_leased(row) == losses]
    return group[: max(1, slots // int(4 ** (losses - SUSPECT_AFTER + 1)))]


def is_lost(row: Handoff) -> bool:
    """Whether it must be buried."""
    return losses_when_leased(row) >= BURIED_AFTER


def leased(row: Handoff, token: UUID) -> Handoff:
    """Somebody works on it."""
    return replace(row, losses=losses_when_leased(row), token=token, leased_at=When.NOW, due=When.LATER)


def renewed(row: Handoff) -> Handoff:
    """Its holder works on."""
    return replace(row, due=When.LATER)


def _released(row: Handoff, *, delay_seconds: float, reason: str | None) -> Handoff:
    return replace(row, token=None, due=When.LATER if delay_seconds else When.NOW, error=reason or row.error)


def postponed(row: Handoff, *, delay_seconds: float, reason: str | None, suspicious: bool) -> Handoff:
    """Infrastructure failed."""
    return replace(
        _released(row, delay_seconds=delay_seconds, reason=reason),
        postponements=row.postponements + 1,
        suspicions=row.suspicions + suspicious,
    )


def failed(row: Handoff, *, delay_seconds: float, reason: str | None) -> Handoff:
    """An attempt was used up."""
    return replace(
        _released(row, delay_seconds=delay_seconds, reason=reason), attempts=row.attempts + 1, suspicions=0
    )


def handed_back(row: Handoff, *, delay_seconds: float, reason: str | None) -> Handoff:
    """Its worker stops."""
    return _released(row, delay_seconds=delay_seconds, reason=reason)


def buried(row: Handoff, *, reason: str) -> Handoff:
    """No further try."""
    return replace(row, token=None, due=When.NEVER, state="dead", attempts=row.attempts + 1, error=reason)


def buried_as_lost(row: Handoff, *, reason: str) -> Handoff:
    """Its workers died too often; no attempt is used up."""
    return replace(
        row, token=None, due=When.NEVER, state="dead", losses=losses_when_leased(row), error=reason
    )


def dismissed(row: Handoff, *, by: str) -> Handoff:
    """A person has looked at it."""
    return replace(row, state="dismissed", error=f"{row.error} (dismissed by {by})")


def retried(row: Handoff) -> Handoff:
    """A new life, nothing held against it."""
    return replace(
        row,
        state="open",
        token=None,
        attempts=0,
        postponements=0,
        suspicions=0,
        losses=0,
        due=When.NEVER if row.digest is None else When.NOW,
    )


def revived(row: Handoff, digest: str) -> Handoff:
    """Its question was published."""
    return replace(row, digest=digest, due=When.NOW)


def rescored(row: Handoff | None, response_id: int, digest: str, lane: str) -> Handoff:
    """Another score is wanted: a new right to score, never in a worse lane, and nothing of the old lease."""
    if row is None:
        return Handoff(response_id, None, digest, When.NOW, lane=lane)
    if row.is_open and row.digest == digest:
        return row
    kept = "live" if row.is_open and row.lane == "live" else lane
    return Handoff(response_id, None, digest, When.NOW, lane=kept, error=row.error)
