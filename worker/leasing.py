"""Leasing: runs a lease statement and starts what it returns, whatever happens to whoever asked."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from storage.engine import single_statements
from storage.translation import translated
from worker.leased import Lease

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from worker.leased import Source
    from worker.pool import ScoringPool
    from worker.question_cache import QuestionCache
    from worker.rate_limits import RateLimits

    # Leases up to so many on a connection, and returns their rows.
    Statement = Callable[[AsyncConnection, int], Awaitable[list[dict[str, Any]]]]


class Leasing:
    """Leases answers and hands them to the pool.

    Args:
        engine: Where the tables are.
        pool: What scores them.
        questions: What they are scored against.
        rate_limits: Grant a permit for each.
        lease_seconds: How long a lease lasts.
        on_success: Called when a statement was answered.
        on_end: Called when a statement is over, however it ended, and holds no slots any more.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        pool: ScoringPool,
        questions: QuestionCache,
        rate_limits: RateLimits,
        *,
        lease_seconds: float,
        on_success: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._questions = questions
        self._rate_limits = rate_limits
        self._lease_seconds = lease_seconds
        self._on_success = on_success
        self._on_end = on_end
        self._tasks: set[asyncio.Task[int]] = set()
        # Slots that statements under way may fill.
        self.reserved = 0

    @property
    def under_way(self) -> bool:
        """Whether a lease is being taken."""
        return bool(self._tasks)

    async def lease(
        self,
        statement: Statement,
        room: int,
        *,
        source: Source,
        lane: str = "live",
        certain: bool = False,
    ) -> int:
        """Run a lease statement, for as many as the rate limits grant, and start what it returns.

        In a task of its own: whoever asks may be cancelled, but a lease that was granted must be started or
        handed back, or its answer would wait until the lease runs out.

        Args:
            statement: Not run where nothing is granted.
            room: How many slots it may fill.
            source: What led to it.
            lane: Whose permits are used.
            certain: Whether as many as ``room`` are known to be due.

        Returns:
            How many were leased.
        """
        self.reserved += room
        task = asyncio.get_running_loop().create_task(
            self._lease_and_start(statement, room, source=source, lane=lane, certain=certain), name="lease"
        )
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def wait(self) -> None:
        """Wait for what is under way."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    def _ended(self, task: asyncio.Task[int]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked may be gone; then nobody else would fetch it
        self._on_end()

    async def _lease_and_start(
        self, statement: Statement, room: int, *, source: Source, lane: str, certain: bool
    ) -> int:
        leases: list[Lease] = []
        started: set[int] = set()
        granted = 0
        try:
            granted = await self._rate_limits.acquire(room, lane=lane, certain=certain)
            if granted == 0:  # and it is not worth a statement
                return 0
            asked_at = time.monotonic()
            with translated():
                async with single_statements(self._engine) as conn:
                    leases = [Lease.from_row(row, source) for row in await statement(conn, granted)]
                questions = await self._questions.get(lease.question_digest for lease in leases)
            self.reserved -= room
            room = 0
            # A lease that comes after its time, because this process was frozen, is not begun with: whoever took over
            # may have paid already.
            if time.monotonic() - asked_at < self._lease_seconds:
                for lease in leases:
                    self._pool.start(lease, questions[lease.question_digest])
                    started.add(lease.handoff_id)
                    self._rate_limits.began(lease.handoff_id)
        finally:
            self.reserved -= room
            self._rate_limits.used(granted, len(started), certain=certain)
            for lease in leases:
                if lease.handoff_id not in started:
                    self._pool.give_back(lease)
        self._on_success()
        return len(leases)
