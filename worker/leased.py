"""A handoff in this worker's hands."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from worker.scorers.protocol import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    # What led to a lease: a message that named the answer, a look for what is due, or one for suspects.
    Source = Literal["message", "pull", "suspects"]


@dataclass(frozen=True, slots=True)
class Lease:
    """What a lease statement returned: the right to work on one answer for a while."""

    handoff_id: int
    created_at: datetime
    response_id: int
    question_digest: str
    lane: str
    lease_token: UUID
    attempts: int
    postponements: int
    suspicions: int
    lease_losses: int
    answer: Answer = field(repr=False)
    # Between the moment it was due and the lease.
    waited_seconds: float = 0.0
    source: Source = "pull"
    # Where the submit's trace goes on, in the words of the W3C's "Trace Context".
    trace_context: Mapping[str, Any] | None = field(default=None, repr=False)

    @classmethod
    def from_row(cls, row: Mapping[str, Any], source: Source = "pull") -> Lease:
        """Take over a row of ``storage.leases``."""
        return cls(
            handoff_id=row["handoff_id"],
            created_at=row["created_at"],
            response_id=row["response_id"],
            question_digest=row["question_digest"],
            lane=row["lane"],
            lease_token=row["lease_token"],
            attempts=row["attempts"],
            postponements=row["postponements"],
            suspicions=row["suspicions"],
            lease_losses=row["lease_losses"],
            answer=Answer(row["response_id"], row["answer_text"], row["answer_metadata"]),
            waited_seconds=row["waited_seconds"],
            source=source,
            trace_context=row["trace_context"],
        )

    def under(self, lease_token: UUID) -> Lease:
        """The same work under another token, after it was leased again."""
        return self if lease_token == self.lease_token else replace(self, lease_token=lease_token)
