"""Every statement that changes several handoffs locks them in the order of their ids, whatever order it is given.

This is why no two of them ever wait for each other. A race would show it only now and then: here somebody holds
the first row, and whoever waits for it must not hold any other one yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from storage import publish_questions, submit_responses
from storage.dead import dismiss_dead, rescore_responses, retry_dead
from storage.settlements import (
    bury_handoffs,
    fail_handoffs,
    hand_back_handoffs,
    postpone_handoffs,
    settle_handoffs,
)
from tests.factories import (
    bury,
    change_handoff,
    handoff_of,
    lease,
    publish,
    question,
    release,
    settlement,
    submission,
)
from tests.races import blocked, committed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    Work = Callable[[AsyncConnection, list[dict[str, Any]]], Awaitable[Any]]

# Those that nobody else has locked.
_FREE = text("SELECT handoff_id FROM scoring_handoffs ORDER BY handoff_id FOR UPDATE SKIP LOCKED")


async def settle(conn: AsyncConnection, rows: list[dict[str, Any]]) -> None:
    await settle_handoffs(conn, [settlement(row) for row in rows])


async def postpone(conn: AsyncConnection, rows: list[dict[str, Any]]) -> None:
    await postpone_handoffs(conn, [release(row) for row in rows])


async def fail(conn: AsyncConnection, rows: list[dict[str, Any]]) -> None:
    await fail_handoffs(conn, [release(row, reason="r") for row in rows])


async def give_up(conn: AsyncConnection, rows: list[dict[str, Any]]) -> None:
    await bury_handoffs(conn, [release(row, reason="r") for row in rows])


async def hand_back(conn: AsyncConnection, rows: list[dict[str, Any]]) -> None:
    await hand_back_handoffs(conn, [release(row) for row in rows])


async def rescore(conn: AsyncConnection, rows: list[dict[str, Any]]) -> None:
    await rescore_responses(conn, response_ids=[row["response_id"] for row in rows])


async def retry(conn: AsyncConnection, rows: list[dict[str, Any]]) -> None:
    await retry_dead(conn, response_ids=[row["response_id"] for row in rows])


async def dismiss(conn: AsyncConnection, rows: list[dict[str, Any]]) -> None:
    await dismiss_dead(conn, response_ids=[row["response_id"] for row in rows], dismissed_by="ops")


async def publish_for_them(conn: AsyncConnection, rows: list[dict[str, Any]]) -> None:
    assert rows
    await publish_questions(conn, [question(rubric="newest")])


async def prepared(conn: AsyncConnection, *, state: str) -> list[dict[str, Any]]:
    """Three handoffs whose ids are in another order than their responses, and than their places on disk.

    Returns:
        The last one first.
    """
    await publish(conn, rubric="old")
    ids = [row["response_id"] for row in await submit_responses(conn, [submission()] * 3)]
    await publish(conn, rubric="new")
    await rescore_responses(conn, response_ids=ids[:1])
    match state:
        case "leased":
            assert len(await lease(conn, *ids)) == 3
        case "dead":
            for response_id in ids:
                await bury(conn, response_id)
        case _:
            for response_id in ids:
                await change_handoff(conn, response_id, question_digest=None, due_at=text("'infinity'"))
    rows = [await handoff_of(conn, response_id) for response_id in ids]
    by_id = sorted((row for row in rows if row is not None), key=lambda row: int(row["handoff_id"]))
    assert [row["response_id"] for row in by_id] == [*ids[1:], ids[0]]
    await change_handoff(conn, by_id[0]["response_id"], postponements=1)
    return by_id[::-1]


@pytest.mark.commits
@pytest.mark.parametrize(
    ("work", "state"),
    [
        (settle, "leased"),
        (postpone, "leased"),
        (fail, "leased"),
        (give_up, "leased"),
        (hand_back, "leased"),
        (rescore, "leased"),
        (rescore, "dead"),
        (retry, "dead"),
        (dismiss, "dead"),
        (publish_for_them, "unpublished"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_who_waits_for_the_first_row_holds_no_other(
    engine: AsyncEngine, work: Work, state: str
) -> None:
    """The lowest handoff id is locked first."""
    rows = await committed(engine, lambda conn: prepared(conn, state=state))
    ids = sorted(int(row["handoff_id"]) for row in rows)

    async with engine.connect() as holder:
        await holder.execute(
            text("SELECT 1 FROM scoring_handoffs WHERE handoff_id = :id FOR UPDATE"), {"id": ids[0]}
        )
        async with blocked(engine, lambda conn: work(conn, rows)) as waiting:
            async with engine.connect() as other:
                free = list((await other.execute(_FREE)).scalars())
            await holder.rollback()
        await waiting

    assert free == ids[1:]
