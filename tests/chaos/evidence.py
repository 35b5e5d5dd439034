"""Gathers the evidence of a run: journals, ledger, database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from tests.chaos.audit import Evidence, Handoff, Score
from tests.chaos.ledger import Asked, Call, Claimed, Refused, Stored, read_journal

if TYPE_CHECKING:
    from tests.chaos.arena import Arena

_RESPONSES = text("SELECT response_id, CAST(submission_key AS text) AS key FROM assessment_responses")
_SCORES = text("""
    SELECT response_id, handoff_id, question_digest AS digest, CAST(score_data ->> 'reasoning' AS integer) AS call
    FROM assessment_scores
""")
_HANDOFFS = text("SELECT response_id, state, attempts, last_error FROM scoring_handoffs")
_APPLIED = text("SELECT claim_id FROM assessment_claims WHERE applied_at IS NOT NULL")


async def gather(arena: Arena, *, verify_status: int) -> Evidence:
    """Read everything that a run left.

    Args:
        arena: The run, at rest.
        verify_status: What ``scoring verify --full`` exited with.

    Returns:
        The evidence.
    """
    evidence = Evidence(
        happenings=arena.happenings,
        wounds=arena.wounds,
        attempts=arena.observer.attempts,
        rescored=arena.editions.asked,
        problems=arena.problems,
        verify_status=verify_status,
    )
    for path in (*arena.crowd.journals, arena.provider.ledger):
        for line in read_journal(path):
            match line:
                case Asked():
                    evidence.asked[line.key] = line
                case Stored():
                    evidence.stored.append(line)
                case Refused():
                    evidence.refused.append(line)
                case Claimed():
                    evidence.claimed.append(line)
                case Call():
                    evidence.calls.append(line)
    look = arena.observer.rows
    evidence.responses = {row["key"]: row["response_id"] for row in await look(_RESPONSES)}
    evidence.scores = [Score(**row) for row in await look(_SCORES)]
    evidence.handoffs = {row["response_id"]: Handoff(**row) for row in await look(_HANDOFFS)}
    evidence.applied = frozenset(row["claim_id"] for row in await look(_APPLIED))
    return evidence
