"""Where a pull begins: not at what is gone, and never past what is due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from storage.leases import pull_handoffs
from tests.factories import LEASE_SECONDS, change_handoff, publish, submit
from worker.pull_cursor import RESTART_SECONDS, PullCursor

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Clock:
    """Goes only when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def leases(*seconds: int) -> list[dict[str, Any]]:
    """Rows that were due so many seconds after noon."""
    return [{"was_due_at": NOON + timedelta(seconds=each)} for each in seconds]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cursor(clock: Clock) -> PullCursor:
    return PullCursor(clock)


def test_a_full_pull_moves_it_to_the_last_row(cursor: PullCursor) -> None:
    """Rows come in any order; the next pull begins at the latest, which may have others due at the same moment."""
    assert cursor.after is None
    assert cursor.pulled(leases(1, 3, 2), 3)
    assert cursor.after == NOON + timedelta(seconds=3)


def test_a_short_pull_from_the_beginning_ends_it(cursor: PullCursor) -> None:
    """Nothing is due any more."""
    assert not cursor.pulled(leases(1), 2)
    assert cursor.after is None


def test_a_short_pull_from_the_middle_looks_at_the_beginning_again(cursor: PullCursor) -> None:
    """Somebody may have committed an earlier one meanwhile: the lane is not empty before that was looked at."""
    cursor.pulled(leases(1, 2), 2)

    assert cursor.pulled([], 2)
    assert cursor.after is None
    assert not cursor.pulled([], 2)


def test_it_starts_anew_after_a_while_however_much_is_due(cursor: PullCursor, clock: Clock) -> None:
    """What became due late waits half a second, not until all else is done."""
    cursor.pulled(leases(1, 2), 2)
    for _ in range(4):
        clock.now += RESTART_SECONDS / 5
        assert cursor.after is not None
        cursor.pulled(leases(3, 4), 2)
    clock.now = Clock.now + RESTART_SECONDS

    assert cursor.after is None


def test_a_pull_that_was_not_sent_says_nothing(cursor: PullCursor) -> None:
    """Where the rate limits grant nothing, the lane may hold as much as before."""
    cursor.pulled(leases(1, 2), 2)

    assert cursor.pulled([], 0)
    assert cursor.after == NOON + timedelta(seconds=2)


async def test_what_was_due_before_is_left_out(conn: AsyncConnection) -> None:
    """The statement begins where the cursor says, and says when each row was due before it was leased."""
    await publish(conn)
    early, late = [(await submit(conn))["response_id"] for _ in range(2)]
    for response_id, hour in ((early, 1), (late, 2)):
        await change_handoff(conn, response_id, due_at=datetime(2026, 1, 1, hour, tzinfo=UTC))

    async def pulled(after: datetime | None) -> list[tuple[int, datetime]]:
        rows = await pull_handoffs(
            conn, lane="live", lease_token=uuid4(), lease_seconds=LEASE_SECONDS, limit=5, after=after
        )
        return [(row["response_id"], row["was_due_at"]) for row in rows]

    assert await pulled(datetime(2026, 1, 1, 2, tzinfo=UTC)) == [(late, datetime(2026, 1, 1, 2, tzinfo=UTC))]
    assert await pulled(None) == [(early, datetime(2026, 1, 1, 1, tzinfo=UTC))]
