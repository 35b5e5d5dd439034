"""A handoff in this worker's hands."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from worker.scorers.protocol import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID


@dataclass(frozen=True, slots=True)
class Lease:
    """What a lease statement returned: the right to work on one answer for a while."""

    handoff_id: int
    response_id: int
    question_digest: str
    lane: str
    lease_token: UUID
    attempts: int
    postponements: int
    suspicions: int
    lease_losses: int
    answer: Answer = field(repr=False)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Lease:
        """Take over a row of ``storage.leases``."""
        return cls(
            handoff_id=row["handoff_id"],
            response_id=row["response_id"],
            question_digest=row["question_digest"],
            lane=row["lane"],
            lease_token=row["lease_token"],
            attempts=row["attempts"],
            postponements=row["postponements"],
            suspicions=row["suspicions"],
            lease_losses=row["lease_losses"],
            answer=Answer(row["response_id"], row["answer_text"], row["answer_metadata"]),
        )

    def under(self, lease_token: UUID) -> Lease:
        """The same work under another token, after it was leased again."""
        return self if lease_token == self.lease_token else replace(self, lease_token=lease_token)
