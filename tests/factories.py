"""What tests submit, publish and look at; every function takes only what its test is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from sqlalchemy import func, select, text, update

from storage import publish_questions, submit_response
from storage.leases import lease_handoffs
from storage.settlements import Release, Settlement, bury_handoffs
from storage.tables import handoffs, metadata, scores

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

MODULE = "biology"
QUESTION = "photosynthesis"
# No lease runs out during a test.
LEASE_SECONDS = 600.0
# For statements that shall find a lease run out: the server has been up for longer than this.
SHORT_LEASE_SECONDS = 0.1


def question(**changes: Any) -> dict[str, Any]:
    """A question that may be published."""
    return {
        "module_slug": MODULE,
        "question_id": QUESTION,
        "question_text": "What does a plant need light for?",
        "rubric": "Full marks for naming photosynthesis and sugar.",
    } | changes


def submission(**changes: Any) -> dict[str, Any]:
    """What may be submitted, by user 1 unless another owner is given."""
    owner = {} if changes.keys() & {"user_id", "anonymous_token"} else {"user_id": 1}
    return (
        {
            "module_slug": MODULE,
            "question_id": QUESTION,
            "answer_text": "It turns light, water and carbon dioxide into sugar.",
        }
        | owner
        | changes
    )


def token() -> str:
    """An anonymous token that no other test has."""
    return f"anonymous-{uuid4().hex}"


async def publish(conn: AsyncConnection, **changes: Any) -> str:
    """Publish a question and return its digest."""
    published = await publish_questions(conn, [question(**changes)])
    return str(published[0]["question_digest"])


async def submit(conn: AsyncConnection, **changes: Any) -> dict[str, Any]:
    """Submit one answer and return its row."""
    return await submit_response(conn, **submission(**changes))


async def handoff_of(conn: AsyncConnection, response_id: int) -> dict[str, Any] | None:
    """The handoff of a response, if it has one."""
    row = (
        (await conn.execute(select(handoffs).where(handoffs.c.response_id == response_id))).mappings().first()
    )
    return None if row is None else dict(row)


async def scores_of(conn: AsyncConnection, response_id: int) -> list[dict[str, Any]]:
    """All scores of a response, oldest first, whoever owns it."""
    query = select(scores).where(scores.c.response_id == response_id).order_by(scores.c.score_id)
    return [dict(row) for row in (await conn.execute(query)).mappings()]


async def count(conn: AsyncConnection, table: str) -> int:
    """How many rows a table has."""
    return int((await conn.execute(select(func.count()).select_from(metadata.tables[table]))).scalar_one())


# What names a handoff.
_NAME = ("handoff_id", "created_at")


class Leased(Protocol):
    """A lease, as a worker or a test remembers it."""

    @property
    def handoff_id(self) -> int: ...
    @property
    def created_at(self) -> datetime: ...


def settlement(
    held: Mapping[str, Any] | Leased, *, overall_score: float = 4.0, model_id: str = "test-model"
) -> Settlement:
    """A finished score, for a lease or a handoff."""
    named = held if isinstance(held, Mapping) else {name: getattr(held, name) for name in _NAME}
    return Settlement(
        **{name: named[name] for name in _NAME},
        model_id=model_id,
        prompt_version="test-1",
        score_data={"overall_score": overall_score, "reasoning": "Names both."},
    )


def release(lease: Mapping[str, Any], **changes: Any) -> Release:
    """The end of a lease without a score, by its holder unless another token is given."""
    held = {"handoff_id": lease["handoff_id"], "lease_token": lease["lease_token"]}
    return Release(**(held | changes))


async def lease(
    conn: AsyncConnection, *response_ids: int, lease_seconds: float = LEASE_SECONDS
) -> list[dict[str, Any]]:
    """Lease these responses, as far as they are due, under a token of their own."""
    return await lease_handoffs(
        conn,
        response_ids=response_ids,
        lease_token=uuid4(),
        lease_seconds=lease_seconds,
        limit=max(1, len(response_ids)),
    )


async def change_handoff(conn: AsyncConnection, response_id: int, **columns: Any) -> None:
    """Put a handoff into a state that would take hours to reach."""
    await conn.execute(update(handoffs).where(handoffs.c.response_id == response_id).values(**columns))


async def make_overdue(conn: AsyncConnection, response_id: int) -> None:
    """Let a handoff have been due, or its lease have run out, a minute ago."""
    await change_handoff(conn, response_id, due_at=text("statement_timestamp() - interval '1 minute'"))


async def bury(conn: AsyncConnection, response_id: int, reason: str = "It could not be scored.") -> None:
    """Make a handoff dead, as a worker does."""
    leases = await lease(conn, response_id)
    assert await bury_handoffs(conn, [release(held, reason=reason) for held in leases])
